"""``data=image_folder``: any class folders, by every command."""

import json
import shutil
from pathlib import Path

import pytest

from geexp.config.class_folders import count_classes
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.runs.job import make_job
from tests.support.configuration import train_config
from tests.support.photos import write_classes

SMALL = ["model=resnet8", "data.image_size=32", "optim.batch_size=8", "trainer=cpu", "logger=none"]
SMALL += ["schedule=demo", "trainer.max_epochs=2"]


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two classes, in a folder whose name needs quotes on a command line."""
    root = tmp_path / "my pets v1.0=new"
    for split, number in (("train", 12), ("val", 3)):
        write_classes(root / split, ["cat", "dog"], number)
    return root


def of(root: Path) -> list[str]:
    return ["data=image_folder", f"data.root='{root}'"]


def config(root: Path, *overrides: str) -> TrainConfig:
    return train_config(*of(root), *overrides)


def test_name_and_number_of_classes_come_from_the_folder(pets):
    data = config(pets).data
    assert (data.name, data.num_classes, data.total_classes, data.kind) == (pets.name, 2, 2, "files")
    job = make_job(config(pets))
    assert job.identity["data"]["name"] == pets.name
    assert job.slug.startswith("my-pets-v1.0-new/")
    assert make_job(config(pets, "data.name=pets")).slug.startswith("pets/")
    assert make_job(config(pets, "data.name=pets")).slug != make_job(config(pets, "data.name=cats")).slug
    (pets / "train/.hidden").mkdir()
    assert count_classes(str(pets)) == 2


@pytest.mark.parametrize("name", ["imagenet", "..", ".hidden", "a/b", "=", "猫", "null", "2012"])
def test_odd_names_give_a_usable_folder(pets, name):
    folder = Path(make_job(config(pets, f"data.name='{name}'")).slug)
    assert len(folder.parts) == 5
    assert not folder.parts[0].startswith(".")
    assert config(pets, f"data.name='{name}'").data.training_images is None  # no facts of another data set


def test_classes_are_counted_in_a_pack_where_the_folders_are_gone(pets, run):
    assert run("pack", *of(pets)).returncode == 0
    shutil.rmtree(pets / "train")
    assert config(pets, "feed=pack").data.num_classes == 2
    (pets / "pack-original/train.npz").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"data\.root=.*train/<class>.*data\.num_classes=<n>"):
        count_classes(str(pets))


@pytest.mark.parametrize("entry", ["train", "pack", "check_data"])
def test_a_missing_root_is_one_message(run, entry, tmp_path):
    for arguments, part in (([], "data.root=null"), (["data.root=nowhere"], f"{tmp_path}/nowhere/train")):
        done = run(entry, "data=image_folder", *arguments)
        assert done.returncode == 2, done.stderr
        assert part in done.stderr
        assert "data.root=<folder>" in done.stderr
        assert "Traceback" not in done.stderr
        assert "interpolation" not in done.stderr


def test_only_one_split(run, pets):
    shutil.rmtree(pets / "val")
    done = run("train", *of(pets), *SMALL)
    assert done.returncode == 2
    assert "val not found in" in done.stderr


def test_checked_planned_trained_and_evaluated(run, pets, tmp_path):
    checked = json.loads(run("check_data", *of(pets), "format=json").stdout)
    assert [report["images"] for report in checked["splits"].values()] == [24, 6]
    assert "my-pets-v1.0-new/" in run("train", "-m", *of(pets), *SMALL, "seed=0,1", "dry_run=true").stdout
    assert not list(tmp_path.glob("outputs/*/*/*/*/*/checkpoints"))
    trained = run("train", *of(pets), *SMALL)
    assert trained.returncode == 0, trained.stderr
    (folder,) = tmp_path.glob("outputs/my-pets-v1.0-new/*/*/*/*/")
    moved = pets.rename(tmp_path / "moved")
    assert json.loads(run("evaluate", f"run='{folder}'", f"root={moved}", "format=json").stdout)["identical"] is True
