"""A user's own data set, by ``data._target_``: any map-style set of (image, label)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image

from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.check import check_images
from geexp.data.datasets import open_dataset
from geexp.data.images import MapStyleImages
from geexp.data.module import ImageData
from geexp.data.reference_feed import evaluation_transform
from tests.support.cifar import small_cifar10

REFERENCE = FeedConfig("reference", "workers", 0)


class Squares:
    """``kind`` of images; the label is the size of the set modulo three."""

    def __init__(self, train, kind="pil", count=None, attribute=None, classes=None, fails=None):
        self.train, self.kind, self.count, self.fails = train, kind, count or (24 if train else 9), fails
        self.read = []
        if attribute is not None:
            setattr(self, attribute, torch.arange(self.count) % 3)
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        if self.fails and index == 5:
            raise {"ValueError": ValueError, "KeyError": KeyError}[self.fails]("a bug in __getitem__")
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image = {
            "pil": lambda: Image.fromarray(pixels),
            "grey": lambda: Image.fromarray(pixels[:, :, 0]),
            "16-bit grey": lambda: Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257),
            "array": lambda: pixels,
            "one channel": lambda: pixels[:, :, :1],
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "grey tensor": lambda: torch.from_numpy(pixels[:, :, 0].copy()),
            "one channel tensor": lambda: torch.from_numpy(pixels[None, :, :, 0].copy()),
            "floats": lambda: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
            "list": lambda: [1, 2, 3],
        }[self.kind]()
        return image, index % 3


def config(target: str = f"{__name__}.Squares", keep: int | None = None, **arguments) -> DataConfig:
    classes = arguments.pop("num_classes", keep or 3)
    size, mean = arguments.pop("image_size", 16), [0.5] * 3
    return DataConfig(
        "squares", classes, size, 3, mean, mean, keep_classes=keep, _target_=target, arguments=arguments,
        root=arguments.pop("root", None),
    )  # fmt: skip


def opened(*, train: bool = True, **arguments) -> MapStyleImages:
    images = open_dataset(config(**arguments), REFERENCE, train=train)
    assert isinstance(images, MapStyleImages)
    return images


def test_images_of_every_kind():
    for kind in ("pil", "array", "tensor"):
        images = opened(kind=kind)
        assert np.array_equal(np.asarray(images.picture(4)), np.asarray(opened().picture(4))), kind
    grey = np.asarray(opened(kind="grey").picture(4))
    for kind in ("one channel", "grey tensor", "one channel tensor"):
        assert np.array_equal(np.asarray(opened(kind=kind).picture(4)), grey), kind
    assert opened(kind="grey tensor").pixels(4, None).shape == (16, 16, 3)


def test_16_bit_pictures_are_scaled():
    deep, grey = opened(kind="16-bit grey"), opened(kind="grey")
    assert torch.equal(deep.pixels(4, None), grey.pixels(4, None))
    for channels in (1, 3):
        shape = DataConfig("squares", 3, 16, channels, [0.5] * channels, [0.5] * channels)
        transform = evaluation_transform(shape)
        assert torch.equal(transform(deep.picture(4)), transform(grey.picture(4)))


@pytest.mark.parametrize("kind", ["floats", "list"])
def test_other_images_are_refused_with_the_way_out(kind):
    with pytest.raises(ConfigError, match=r"data\._target_=.*Squares: image 0 .*uint8 .*ToTensor"):
        opened(kind=kind)


def test_both_splits_and_their_labels():
    train, val = opened(), opened(train=False)
    assert (len(train), len(val)) == (24, 9)
    assert train.dataset.train
    assert not val.dataset.train
    assert train.labels.tolist() == [i % 3 for i in range(24)]
    assert train.classes == ["0", "1", "2"]
    assert opened(classes=["a", "b", "c"]).classes == ["a", "b", "c"]


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_labels_without_reading_the_images(attribute):
    images = opened(attribute=attribute)
    assert set(images.dataset.read) == {0}  # whose kind and size are looked at
    assert images.labels.tolist() == [i % 3 for i in range(24)]
    assert set(opened().dataset.read) == set(range(24))


def test_the_first_classes_keep_their_places():
    images = opened(keep=2)
    assert images.labels.tolist() == [0, 1] * 8
    assert [images.name(i) for i in (2, 3)] == ["image 3", "image 4"]
    assert np.array_equal(np.asarray(images.picture(2)), np.asarray(opened().picture(3)))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"num_classes": 5, "classes": ["a", "b", "c"]}, ["data.num_classes=5", "3 classes", "training"]),
        ({"num_classes": 2}, ["data.num_classes=2", "3 classes", "training"]),
        ({"num_classes": 2, "classes": ["a", "b"]}, ["data._target_=", "from 0 to 2", "from 0 to 1"]),
        ({"keep": 5, "classes": ["a", "b", "c"]}, ["data.keep_classes=5", "3 classes"]),
        ({"image_size": 32}, ["data.image_size=32", "16x16", "evaluation_crop"]),
        ({"knid": "pil"}, ["data._target_=", "Squares", "knid"]),
        ({"target": "nowhere.Squares"}, ["data._target_=", "nowhere"]),
        ({"target": "torchvision.datasets.ImageNet"}, ["data._target_=", "ImageNet", "train"]),
    ],
)
def test_a_mistake_is_one_message(arguments, parts):
    with pytest.raises(ConfigError) as caught:
        opened(**arguments)
    for part in parts:
        assert part in str(caught.value)


def test_another_feed_is_refused():
    with pytest.raises(ConfigError, match=r"feed=resident.*feed=reference"):
        open_dataset(config(), FeedConfig("resident"), train=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fails", ["ValueError", "KeyError"])
def test_a_bug_in_the_users_code_is_no_damaged_image(fails, workers):
    """It would be reported without its traceback, or left out with feed.on_error=skip."""
    feed = FeedConfig("reference", "workers", workers, on_error="skip")
    data = ImageData(config(fails=fails, attribute="targets"), feed, batch_size=8, seed=0)
    with pytest.raises((RuntimeError, KeyError), match="a bug in __getitem__"):
        list(data.train_dataloader())


def test_a_constructor_that_fails_keeps_its_exception(monkeypatch):
    def fails(train):
        return SimpleNamespace().missing

    monkeypatch.setattr(f"{__name__}.Squares", fails)
    with pytest.raises(AttributeError, match="missing"):
        opened()


def test_torchvisions_cifar10(tmp_path, monkeypatch):
    small = small_cifar10(tmp_path)
    small.pack()
    small.unpack()
    monkeypatch.setattr(tv, "CIFAR10", small.official)
    data = config("torchvision.datasets.CIFAR10", num_classes=10, image_size=32, root=str(tmp_path))
    images = open_dataset(data, REFERENCE, train=True)
    assert len(images) == 100
    assert images.classes[:2] == ["airplane", "automobile"]
    report = check_images(images, "pil", workers=2)
    assert (report.smallest, report.unreadable) == ((32, 32), [])


def test_checked_by_the_command(run, tmp_path):
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text(
        "_target_: mine.Mine\nnum_classes: 2\nimage_size: 8\nchannels: 3\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nnumber: 6\n"
    )
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def Mine(train, number):\n"
        "    return [(np.zeros((8, 8, 3), dtype=np.uint8), i % 2) for i in range(number)]\n"
    )
    arguments = [f"--config-dir={tmp_path}/conf", "data=mine", "format=json"]
    done = run("check_data", *arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["val"]["images"] == 6
