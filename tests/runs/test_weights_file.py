"""What a detector starts from: one file, by its name or by a pattern, known by its content."""

from pathlib import Path

import pytest

from geexp.config.compose import composed_training
from geexp.config.errors import ConfigError
from geexp.runs.job import make_job, weights_file


def detector(given: str):
    return composed_training("experiment=coco_theta_e8", f"backbone_checkpoint={given}")


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_pattern_finds_the_run_that_is_there(tmp_path):
    file = write(tmp_path / "seed0-12ab34cd/checkpoints/last.ckpt")
    write(tmp_path / "seed1-12ab34cd/checkpoints/last.ckpt")
    by_pattern, by_name = detector(f"{tmp_path}/seed0-*/checkpoints/last.ckpt"), detector(str(file))
    assert weights_file(by_pattern) == file
    weights_file(by_pattern)
    assert make_job(by_pattern).slug == make_job(by_name).slug


def test_a_relative_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("outputs/seed0-1/last.ckpt"))
    assert weights_file(detector("outputs/seed0-*/last.ckpt")) == Path("outputs/seed0-1/last.ckpt")


def test_other_content_is_another_run_and_another_place_is_not(tmp_path):
    one, copied, other = (
        detector(str(write(tmp_path / name / "last.ckpt", content)))
        for name, content in (("a", b"one"), ("b", b"one"), ("c", b"other"))
    )
    assert make_job(one).identity == make_job(copied).identity
    assert make_job(one).slug != make_job(other).slug


def test_a_file_that_was_moved_meanwhile_does_not_stop_a_run_from_resuming(tmp_path):
    write(tmp_path / "a/last.ckpt")
    write(tmp_path / "b/last.ckpt", b"other")
    before = detector(str(tmp_path / "a/last.ckpt"))
    with pytest.raises(ConfigError, match=r"detector\.backbone"):
        make_job(detector(str(tmp_path / "b/last.ckpt"))).require_same(make_job(before).identity)
    (tmp_path / "a").rename(tmp_path / "c")
    make_job(detector(str(tmp_path / "c/last.ckpt"))).require_same(make_job(before).identity)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("seed0-*/last.ckpt", ["matches 2 files", "seed0-a", "seed0-b", "Choose one"]),
        ("seed7-*/last.ckpt", ["No such file", "python -m geexp.train model=resnet50 ge=theta ge.extent=8"]),
        ("nothing.pth", ["No such file", "torchvision or timm"]),
    ],
)
def test_none_or_several_are_refused_when_it_is_to_be_trained_and_not_before(tmp_path, given, words):
    for name in ("seed0-a", "seed0-b"):
        write(tmp_path / name / "last.ckpt")
    config = detector(f"{tmp_path}/{given}")
    assert make_job(config).identity["detector"]["backbone"] == "missing"
    with pytest.raises(ConfigError) as error:
        weights_file(config)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
