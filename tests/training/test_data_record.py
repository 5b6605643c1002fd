"""A run is not taken for one on other data: what it read is recorded, and compared before it is shown or resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, EvaluateConfig, FeedConfig, RecipeConfig
from geexp.data.folder import FolderImages
from geexp.data.module import ImageData
from geexp.data.packing import pack_split
from geexp.data.record import stored_record
from geexp.launching import jobs
from geexp.launching.jobs import require_same_data
from geexp.runs.data_record import DATA, SplitRecord, read_data_record
from geexp.runs.job import Job
from geexp.training.checkpoints import load_checkpoint
from geexp.training.classification import Classification
from geexp.training.evaluation import evaluate
from geexp.training.run import train
from tests.support.coco import annotations, write_coco
from tests.support.configuration import data_config, job
from tests.support.photos import write_classes

FLOWERS, CARS = ("daisy", "rose", "tulip"), ("bmw", "fiat", "vw")
SMALL = ["model=resnet8", "ge=none", "data=imagenet", "data.image_size=32", "data.num_classes=3", "trainer=cpu"]
SMALL += ["optim.batch_size=4", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "logger=none"]


def write(root: Path, classes: tuple[str, ...] = FLOWERS, number: int = 3) -> Path:
    for split in ("train", "val"):
        write_classes(root / split, classes, number)
    return root


def on(root: Path, run: Path, *overrides: str) -> Job:
    return job(run, *SMALL, f"data.root={root}", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run and its images."""
    folder = tmp_path_factory.mktemp("finished")
    train(on(write(folder / "flowers"), folder / "run"))
    return folder / "run", folder / "flowers"


@pytest.fixture
def done(finished, tmp_path) -> tuple[Path, Path]:
    """A copy of both."""
    for folder in finished:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "run", tmp_path / "flowers"


def test_a_finished_run_is_shown_for_its_own_data_alone(finished, tmp_path, forked):
    run, flowers = finished
    moved = shutil.copytree(flowers, tmp_path / "moved")
    for root in (flowers, moved):
        (shown,) = forked.run(tmp_path, "train", *SMALL, f"data.root={root}", f"hydra.run.dir={run}")
        assert shown.returncode == 0, shown.stderr
        assert "finished earlier" in shown.stderr
    cars = write(tmp_path / "cars", CARS)
    (refused,) = forked.run(tmp_path, "train", *SMALL, f"data.root={cars}", f"hydra.run.dir={run}")
    assert refused.returncode == 2
    assert "finished earlier" not in refused.stderr
    for part in (*FLOWERS, *CARS, f"data.root={cars}", f"data.root={flowers}", "data.name=", "outputs=", "force=true"):
        assert part in refused.stderr
    assert not refused.stdout


CHANGES = {
    "an image more": (
        lambda root: shutil.copy(root / "val/rose/rose_0.JPEG", root / "val/rose/new.JPEG"),
        "10 images in val",
    ),
    "another name": (
        lambda root: (root / "train/rose/rose_0.JPEG").rename(root / "train/rose/new.JPEG"),
        "9 images in train",
    ),
    "another class": (
        lambda root: [(root / split / "rose").rename(root / split / "lily") for split in ("train", "val")],
        "lily",
    ),
    "other labels": (
        lambda root: (root / "val/rose/rose_0.JPEG").rename(root / "val/tulip/rose_0.JPEG"),
        "images in val",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_data_is_noticed_by_a_finished_and_by_a_stopped_run(done, change):
    run, flowers = done
    require_same_data(on(flowers, run))
    make, part = CHANGES[change]
    make(flowers)
    with pytest.raises(ConfigError, match=part):
        require_same_data(on(flowers, run))
    (run / "result.json").unlink()  # now it is a stopped one
    with pytest.raises(ConfigError, match=part):
        require_same_data(on(flowers, run))
    before = {path: path.read_bytes() for path in (*run.glob("checkpoints/*"), run / "history.jsonl", run / DATA)}
    with pytest.raises(ConfigError, match=part):
        train(on(flowers, run))
    assert {path: path.read_bytes() for path in before} == before


def test_a_link_pointed_elsewhere_and_starting_over(done, tmp_path):
    run, flowers = done
    current, cars = tmp_path / "current", write(tmp_path / "cars", CARS)
    current.symlink_to(flowers)
    require_same_data(on(current, run))
    current.unlink()
    current.symlink_to(cars)
    with pytest.raises(ConfigError, match="classes bmw, fiat, vw"):
        require_same_data(on(current, run))
    require_same_data(on(current, run, "force=true"))
    train(on(current, run, "force=true"))
    require_same_data(on(cars, run))
    with pytest.raises(ConfigError, match="classes daisy, rose, tulip"):
        require_same_data(on(flowers, run))


@pytest.mark.parametrize("record", [None, "", "{}", '{"format": 99}', "[1]"])
def test_a_run_without_a_record_is_accepted(done, tmp_path, record):
    run, _ = done
    (run / DATA).unlink()
    if record is not None:
        (run / DATA).write_text(record)
    require_same_data(on(write(tmp_path / "cars", CARS), run))


def test_data_that_are_gone_are_not_compared(done):
    run, flowers = done
    shutil.rmtree(flowers)
    require_same_data(on(flowers, run))


def test_an_evaluation_on_other_classes_is_refused(done, tmp_path):
    run, _ = done
    checkpoint = load_checkpoint(run / "checkpoints/last.ckpt")
    more = write(tmp_path / "more", number=4)  # other images of the same classes are fine
    settings = EvaluateConfig(root=str(more), accelerator="cpu", workers=0)
    assert evaluate(Classification(), checkpoint, settings).measured["val/images"] == 12
    cars = write(tmp_path / "cars", CARS)
    with pytest.raises(DataError, match="bmw, fiat, vw"):
        evaluate(Classification(), checkpoint, replace(settings, root=str(cars)))


@pytest.mark.parametrize("keep", [None, 2])
def test_a_folder_and_a_pack_of_it_are_the_same_data(tmp_path, keep):
    """Whether they are opened or only their names are read."""
    root = write(tmp_path / "flowers")
    (root / "train/daisy/more").mkdir()
    shutil.copy(root / "train/rose/rose_0.JPEG", root / "train/daisy/more/caf\u00e9.JPEG")
    for split in ("train", "val"):
        pack_split(FolderImages(root / split), root / "pack-original", split, RecipeConfig(), workers=1)
    kept = [f"data.keep_classes={keep}"] if keep else []
    data = data_config("data=imagenet", f"data.root={root}", f"data.num_classes={keep or 3}", *kept)
    opened = [ImageData(data, FeedConfig(feed), batch_size=1, seed=0).record() for feed in ("folder", "pack")]
    stored = [stored_record(data, FeedConfig(feed)) for feed in ("folder", "pack")]
    assert stored == opened
    folder, pack = opened
    assert replace(folder, source=None) == replace(pack, source=None)
    assert (folder.source, pack.source) == (f"data.root={root}", f"feed.pack={root}/pack-original")
    assert (folder.classes, folder.train.images) == (list(FLOWERS[:keep]), 10 - 3 * (keep == 2))


class Own:
    """A user's own data set: ``root`` is a file with its labels."""

    def __init__(self, train, root):
        self.targets = json.loads(Path(root).read_text())
        self.classes = ["a", "b"]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return np.zeros((8, 8, 3), dtype=np.uint8), self.targets[index]


def test_a_data_set_of_ones_own_is_opened_only_if_it_is_somewhere_else(done, tmp_path, monkeypatch):
    run, _ = done
    for name, labels in (("one", [0, 1, 1]), ("copy", [0, 1, 1]), ("two", [0, 0, 1])):
        (tmp_path / name).write_text(json.dumps(labels))

    def own(name: str) -> Job:
        data = DataConfig("own", 2, 8, 3, [0.5] * 3, [0.5] * 3, root=str(tmp_path / name), _target_=f"{__name__}.Own")
        config = replace(made.config, data=data, feed=FeedConfig("reference", workers=0))
        return replace(made, config=replace(config, optim=replace(config.optim, batch_size=1)))

    made = on(tmp_path, run)
    Classification().data(own("one").config).record().write(run)
    assert read_data_record(run).train.images == 3
    require_same_data(own("copy"))
    with pytest.raises(ConfigError, match="labels of the 3 images in train"):
        require_same_data(own("two"))
    monkeypatch.setattr(jobs, "task_of", None)
    require_same_data(own("one"))


def test_a_detection_set_is_known_by_its_files_and_classes(done, tmp_path):
    from geexp.detection.task import Detection

    run, _ = done
    few, many = annotations(4), annotations(5)
    other = annotations(4)
    other["categories"][0]["name"] = "cat"
    detectors = {}
    for name, content in (("few", few), ("copy", few), ("many", many), ("other", other)):
        for split in ("train2014", "val2014"):
            write_coco(tmp_path / name, content, split)
        overrides = ["experiment=demo_detection", "data=coco2014", "data.num_classes=3", f"data.root={tmp_path / name}"]
        detectors[name] = job(run, *overrides)
    record = Detection().data(detectors["few"].config).record()
    assert (record.classes, record.train.images) == (["person", "dog", "toothbrush"], 4)
    record.write(run)
    require_same_data(detectors["copy"])
    for name, part in (("many", "5 images in train"), ("other", "classes cat")):
        with pytest.raises(ConfigError, match=part):
            require_same_data(detectors[name])


def test_names_that_are_no_text_are_recorded(tmp_path):
    root = write(tmp_path / "odd", ("a\udcff", "b", "c"))
    data = data_config("data=imagenet", f"data.root={root}", "data.num_classes=3")
    record = stored_record(data, FeedConfig("folder"))
    record.write(tmp_path)
    assert read_data_record(tmp_path) == record
    assert record.train == SplitRecord(9, record.train.digest)
