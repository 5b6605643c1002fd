"""The folder of realistic images: shaped as ImageNet, the same for the same seed, with ImageNet's odd files."""

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from PIL import Image

from geexp.benchmarks import photographs
from geexp.benchmarks.photographs import make_photo_folder
from geexp.config.errors import ConfigError
from tests.conftest import environment

SCRIPT = Path(__file__).parents[2] / "scripts/make_photo_folder.py"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return make_photo_folder(folder, classes=12, train=36, val=12, seed=1)


def test_shape_and_counts(made):
    assert (made.classes, made.train, made.val) == (12, 36, 12)
    files = contents(made.folder)
    assert made.bytes == sum(map(len, files.values()))
    for split, images in (("train", 3), ("val", 1)):
        classes = sorted((made.folder / split).iterdir())
        assert len(classes) == 12
        assert all(len(name.name) == 9 and name.name[0] == "n" and name.name[1:].isdigit() for name in classes)
        assert all(len(list(name.iterdir())) == images for name in classes)
    first = min(path.name for path in (made.folder / "train").iterdir())
    assert f"train/{first}/{first}_1.JPEG" in files


def test_sizes_and_kinds_are_those_of_imagenet(made):
    images = [Image.open(path) for path in made.folder.glob("train/*/*")]
    assert {image.size for image in images} & {(500, 375), (375, 500)}
    assert sum(image.format == "PNG" for image in images) == 1
    assert {image.mode for image in images} == {"RGB", "L", "CMYK"}
    assert sum(image.getexif().get(0x0112, 1) != 1 for image in images) == 1
    assert sum("progressive" in image.info for image in images) == 1
    assert 50e3 < made.bytes / (made.train + made.val) < 250e3


def test_files_depend_on_the_seed_alone(made, tmp_path):
    make_photo_folder(tmp_path / "again", classes=12, train=36, val=12, seed=1, workers=3)
    assert contents(tmp_path / "again") == contents(made.folder)
    make_photo_folder(tmp_path / "other", classes=1, train=2, val=1, seed=2)
    assert not set(contents(tmp_path / "other").values()) & set(contents(made.folder).values())


def test_refusals(made, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not empty"):
        make_photo_folder(made.folder)
    with pytest.raises(ConfigError, match="classes=20: each needs an image"):
        make_photo_folder(tmp_path / "new", classes=20, train=30, val=10)

    def not_installed(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(photographs, "find_spec", not_installed)
    with pytest.raises(ConfigError, match=r"pip install 'geexp\[benchmark\]'"):
        make_photo_folder(tmp_path / "new", classes=1, train=1, val=1)
    assert not os.listdir(tmp_path)


def test_script(tmp_path):
    arguments = [sys.executable, str(SCRIPT), "photos", "--classes", "2", "--train", "2", "--val", "2"]
    options = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    first = subprocess.run(arguments, **options)
    assert first.returncode == 0
    assert "data=imagenet data.root=photos data.num_classes=2" in first.stdout
    second = subprocess.run(arguments, **options)
    assert (second.returncode, second.stdout) == (2, "")
    assert "not empty" in second.stderr
