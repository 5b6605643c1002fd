"""The last checkpoint and the one before it: if one is damaged, training resumes from the other."""

import logging
import os
import pickle
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch

from geexp.config.errors import DataError
from geexp.operators.tail import choices
from geexp.runs.atomic_write import remove_unfinished
from geexp.runs.run_files import checkpoint_folder
from geexp.training.checkpoints import AtomicCheckpointIO, checkpoint_to_resume, load_checkpoint
from geexp.training.classification import Classification
from geexp.training.run import _prepare
from tests.support.configuration import train_config


def content(epoch: int) -> dict:
    weights = torch.Generator().manual_seed(epoch)
    return {
        "state_dict": {f"layer{i}.weight": torch.randn(3, 5, generator=weights) for i in range(4)},
        "geexp": {"format": 1, "config": {"seed": 0}, "run_id": "abc", "epoch": epoch, "metrics": {"val/loss": 0.5}},
    }


def save(run: Path, epoch: int) -> None:
    AtomicCheckpointIO().save_checkpoint(content(epoch), checkpoint_folder(run) / "last.ckpt")


def same(ours: dict, theirs: dict) -> bool:
    weights, expected = ours["state_dict"], theirs["state_dict"]
    equal = weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    return equal and ours["geexp"] == theirs["geexp"]


@pytest.fixture
def run(tmp_path, caplog) -> Path:
    """A run with two checkpoints, after epochs 1 and 2."""
    caplog.set_level(logging.WARNING)
    save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path


@pytest.fixture
def last(run) -> Path:
    return checkpoint_folder(run) / "last.ckpt"


def resumes_from(run: Path) -> tuple[str, int]:
    found = checkpoint_to_resume(run)
    assert found is not None
    assert same(found.content, content(found.info.epoch))
    return found.path.name, found.info.epoch


def test_the_one_before_is_kept(run):
    assert resumes_from(run) == ("last.ckpt", 2)
    assert same(load_checkpoint(checkpoint_folder(run) / "previous.ckpt").content, content(1))
    assert sorted(path.name for path in checkpoint_folder(run).iterdir()) == ["last.ckpt", "previous.ckpt"]
    AtomicCheckpointIO().save_checkpoint(content(3), checkpoint_folder(run) / "best.ckpt")
    assert resumes_from(run) == ("last.ckpt", 2)  # of other checkpoints there is one


def test_killed_at_any_moment_of_the_writing_there_is_one_to_resume_from(run, tmp_path_factory, monkeypatch):
    """The folder is copied before and after everything that the writing does: what a SIGKILL would leave there."""
    moments: list[Path] = []

    def watched(function, name):
        def step(*arguments):
            for when in ("before", "after"):
                moments.append(tmp_path_factory.mktemp("moment") / f"{when} {name}")
                shutil.copytree(run, moments[-1])
                if when == "before":
                    result = function(*arguments)
            return result

        return step

    with monkeypatch.context() as patch:
        for owner, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
            patch.setattr(owner, name, watched(getattr(owner, name), name))
        save(run, 3)
    assert [moment.name for moment in moments[1::2]] == [
        "after save", "after fsync", "after replace", "after replace", "after fsync",
    ]  # fmt: skip
    found = [resumes_from(moment) for moment in moments]
    between = [("previous.ckpt", 2)] * 2  # last.ckpt has become previous.ckpt, and the new one has not its name yet
    assert found == [("last.ckpt", 2)] * 5 + between + [("last.ckpt", 3)] * 3
    for moment in moments:
        remove_unfinished(checkpoint_folder(moment))  # as the next start does, which then saves
        save(moment, 4)
        assert resumes_from(moment) == ("last.ckpt", 4)
        before = load_checkpoint(checkpoint_folder(moment) / "previous.ckpt")
        assert before.info.epoch in (2, 3)
        assert len(list(checkpoint_folder(moment).iterdir())) == 2


def test_killed_while_it_starts_over_no_checkpoint_is_without_its_history(run, last, monkeypatch):
    AtomicCheckpointIO().save_checkpoint(content(2), last.with_name("best.ckpt"))
    for name in ("history.jsonl", "result.json"):
        (run / name).write_text("{}")
    left, unlink = [], Path.unlink

    def watched(path: Path, **options) -> None:
        unlink(path, **options)
        left.append({file.name for file in run.rglob("*.*")})

    monkeypatch.setattr(Path, "unlink", watched)
    _prepare(run, checkpoint=None)
    assert len(left) == 5
    assert left[-1] == set()
    assert all("history.jsonl" in files for files in left[:-1])


def test_a_checkpoint_cut_short_anywhere_is_passed_over(run, last, caplog):
    whole = last.read_bytes()
    lengths = {*range(0, len(whole), len(whole) // 100), *range(len(whole) - 60, len(whole))}
    for length in lengths:
        caplog.clear()
        last.write_bytes(whole[:length])
        assert resumes_from(run) == ("previous.ckpt", 1), length
        (warning,) = caplog.messages
        assert str(last) in warning
        assert "previous.ckpt" in warning


def test_a_bit_flipped_anywhere_changes_nothing_or_is_noticed(run, last, caplog):
    """In 150 places, and in all of the archive's entry on a tensor, one bit of which makes torch leave it unread."""
    whole, noticed = last.read_bytes(), 0
    name = whole.rindex(b"archive/data/0")
    bits = random.Random(0).sample(range(8 * len(whole)), 150)
    for bit in [*bits, *range(8 * (name - 46), 8 * name)]:
        caplog.clear()
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        last.write_bytes(damaged)
        from_file, _ = resumes_from(run)  # whose values are those that were written
        assert len(caplog.messages) == (from_file == "previous.ckpt"), bit
        noticed += len(caplog.messages)
    assert noticed > 250  # the rest is padding, and times that nobody reads


def test_a_file_of_somebody_else(run, last, caplog):
    for number, foreign in enumerate((b"", b"epoch 3", {"state_dict": {}}, [1, 2], {"geexp": {"format": 2}}), 1):
        if isinstance(foreign, bytes):
            last.write_bytes(foreign)
        else:
            torch.save(foreign, last)
        assert resumes_from(run) == ("previous.ckpt", 1)
        assert len(caplog.messages) == number


def test_no_readable_checkpoint(run, last, caplog):
    previous = last.with_name("previous.ckpt")
    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError) as error:
        checkpoint_to_resume(run)
    for part in (str(last), str(previous), "damaged", "force=true"):
        assert part in str(error.value)
    assert not caplog.messages  # the error has it all
    previous.unlink()
    with pytest.raises(DataError, match=r"last\.ckpt"):
        checkpoint_to_resume(run)
    last.unlink()
    assert checkpoint_to_resume(run) is None


def test_a_disk_that_is_full_takes_nothing_away(run, last):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"last\.ckpt cannot be written: .*MiB are free"):
            save(run, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert resumes_from(run) == ("last.ckpt", 2)
    assert len(list(last.parent.iterdir())) == 2


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def test_checkpoints_that_are_not_ours(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(DataError, match="no such file"):
        load_checkpoint(path)
    for write, message in (
        (lambda: path.write_bytes(b"not a checkpoint"), "damaged"),
        (lambda: path.write_bytes(pickle.dumps(Evil())), "cannot be read"),
        (lambda: torch.save({"state_dict": {}, "x": Evil()}, path), "cannot be read"),
        (lambda: torch.save({"state_dict": {}}, path), "not written by a run of this version of geexp"),
    ):
        write()
        with pytest.raises(DataError, match=message):
            load_checkpoint(path)


def test_what_was_chosen_on_a_gpu_is_chosen_again(tmp_path, monkeypatch):
    made = {"theta global 256x56x56 bfloat16 channels_last": "composed"}
    module = Classification().module(train_config("model=resnet8"), None)
    monkeypatch.setattr(choices, "_chosen", dict(made))
    content = {}
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    monkeypatch.setattr(choices, "_chosen", {})
    module.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert choices.export() == made
