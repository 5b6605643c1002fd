"""``data.keep_classes``: the first classes of a data set, whatever it is stored as and however it is fed."""

import numpy as np
import pytest
import torch

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig, RecipeConfig
from geexp.data.check import check_images
from geexp.data.datasets import open_dataset
from geexp.data.folder import FolderImages
from geexp.data.images import ArrayImages
from geexp.data.module import ImageData
from geexp.data.pack import open_pack
from geexp.data.packing import pack_split
from geexp.data.pixel_feed import centre
from geexp.runs.job import make_job
from tests.support.configuration import data_config, train_config

RAW = RecipeConfig("raw", short_side=64)


def kept(n: int) -> list[str]:
    return [f"data.keep_classes={n}", f"data.num_classes={n}"]


def two_of_three(root, *overrides: str) -> DataConfig:
    return data_config("data=imagenet", f"data.root={root}", *kept(2), *overrides)


@pytest.fixture
def packs(imagenet):
    """The three classes as packs of the recipes original and raw."""
    for name, recipe in (("original", RecipeConfig()), ("raw", RAW)):
        for split in ("train", "val"):
            pack_split(FolderImages(imagenet / split), imagenet / f"pack-{name}", split, recipe, workers=1)
    return imagenet


def assert_first_of(part, whole, n: int) -> None:
    """``part`` has every image of the first ``n`` classes of ``whole`` and no others."""
    indices = np.flatnonzero(whole.labels < n)
    assert part.classes == whole.classes[:n]
    assert len(part) == len(indices)
    assert part.labels.tolist() == whole.labels[indices].tolist()
    for ours, theirs in enumerate(indices.tolist()):
        assert part.picture(ours).tobytes() == whole.picture(theirs).tobytes()


def test_images_in_memory():
    feed = FeedConfig("resident")
    whole = open_dataset(data_config("data=fashion_mnist_mini"), feed, train=False)
    part = open_dataset(data_config("data=fashion_mnist_mini", *kept(3)), feed, train=False)
    assert whole.labels[:50].tolist() != sorted(whole.labels[:50].tolist())  # these are in no order
    assert isinstance(part, ArrayImages)  # as the resident feed needs them
    assert len(part) == 600
    assert_first_of(part, whole, 3)
    data = ImageData(data_config("data=fashion_mnist_mini", *kept(2)), feed, batch_size=100, seed=0)
    batches = list(data.train_dataloader())
    assert len(batches) == 2_000 // 100
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [1_000, 1_000]


def test_a_folder(imagenet):
    part = open_dataset(two_of_three(imagenet), FeedConfig("folder"), train=True)
    assert len(part) == 8
    assert_first_of(part, FolderImages(imagenet / "train"), 2)


@pytest.mark.parametrize("recipe", [RecipeConfig(), RAW], ids=lambda recipe: recipe.name)
def test_a_pack(packs, recipe):
    whole = open_pack(packs / f"pack-{recipe.name}", "train", recipe)
    part = whole.first_classes(2)
    assert_first_of(part, whole, 2)
    assert len(part) == 8
    assert len(whole) == 12  # which is as it was


def feeds(root) -> dict[str, ImageData]:
    """Every way to feed two of the three classes, in batches of four."""
    raw = ("recipe=raw", "data.recipe.short_side=64", "feed=pack")
    settings = {
        "reference": (FeedConfig("reference", "workers", 0), ()),
        "folder": (FeedConfig("folder", "threads", 1), ()),
        "folder, workers": (FeedConfig("folder", "workers", 1), ()),
        "pack": (FeedConfig("pack", "threads", 1, pack=f"{root}/pack-original"), ()),
        "pack, workers": (FeedConfig("pack", "workers", 1, pack=f"{root}/pack-original"), ()),
        "raw": (FeedConfig("pack", "threads", 1, pack=f"{root}/pack-raw"), raw),
    }
    return {
        name: ImageData(two_of_three(root, "data.image_size=56", *overrides), feed, batch_size=4, seed=0)
        for name, (feed, overrides) in settings.items()
    }


def test_every_feed_gives_the_same_batches(packs):
    data = feeds(packs)
    for loader in ("train_dataloader", "val_dataloader"):
        epochs = {name: list(getattr(one, loader)()) for name, one in data.items()}
        expected = [labels.tolist() for _, labels in epochs["reference"]]
        counts = np.bincount([label for batch in expected for label in batch]).tolist()
        assert counts == ([4, 4] if loader == "train_dataloader" else [3, 3])
        for name, batches in epochs.items():
            assert [labels.tolist() for _, labels in batches] == expected, name
        for name in ("folder, workers", "pack", "pack, workers"):
            for (ours, _), (theirs, _) in zip(epochs[name], epochs["folder"], strict=True):
                assert torch.equal(ours, theirs), name


def pack_without(root, *names: str) -> None:
    """Packs of recipe original, when these training images cannot be read."""
    for name in names:
        (root / "train" / name).write_bytes(b"")
    for split in ("train", "val"):
        pack_split(
            FolderImages(root / split), root / "pack-original", split, RecipeConfig(), workers=1, on_error="skip"
        )


def test_a_pack_may_lack_images_of_the_other_classes(imagenet):
    pack_without(imagenet, "n01484850/n01484850_0.JPEG")
    data = ImageData(two_of_three(imagenet), FeedConfig("pack", on_error="stop"), batch_size=8, seed=0)
    assert len(data.training_images) == 8
    assert data.account()["train"]["skipped"] == {}


def test_what_a_pack_lacks_of_the_kept_classes_is_told(imagenet):
    lacking = "n01443537/n01443537_1.JPEG"
    pack_without(imagenet, lacking, "n01484850/n01484850_0.JPEG")
    with pytest.raises(DataError, match=rf"without 1 images .* such as {lacking}\. To train without"):
        open_dataset(two_of_three(imagenet), FeedConfig("pack", on_error="stop"), train=True)
    data = ImageData(two_of_three(imagenet), FeedConfig("pack", on_error="skip"), batch_size=7, seed=0)
    assert len(data.training_images) == 7
    assert data.account()["train"]["skipped"] == {lacking: "left out of the pack"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.keep_classes=2"], r"data\.num_classes=10: .*data\.keep_classes=2\. .*data\.num_classes=2"),
        (["data.num_classes=2", "data.keep_classes=3"], r"data\.num_classes=2: .*data\.keep_classes=3"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        data_config(*overrides)


def test_more_classes_than_there_are():
    with pytest.raises(ConfigError, match=r"data\.keep_classes=11: .*fashion_mnist_mini has .*10 classes in its tr"):
        open_dataset(data_config(*kept(11)), FeedConfig("resident"), train=True)


def test_it_is_another_run():
    assert make_job(train_config(*kept(2))).slug != make_job(train_config()).slug


def test_packs_hold_all_the_classes(run, imagenet):
    done = run("pack", f"data.root={imagenet}", *kept(2))
    assert done.returncode == 2
    assert "data.keep_classes=2: a pack contains all classes" in done.stderr
    assert not list(imagenet.glob("pack*"))


def test_check_data_verifies_the_kept_part_of_a_pack(packs):
    path = packs / "pack-original/train.bin"
    images = open_dataset(two_of_three(packs), FeedConfig("pack"), train=True)
    assert check_images(images, "auto", workers=1).images == 8
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the third class
    path.write_bytes(content)
    assert check_images(images, "auto", workers=1).images == 8
    content[images.index.ends[7] - 1] ^= 1  # the last byte of the second
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.bin is damaged: n01443537/.* \(image 7\)"):
        check_images(images, "auto", workers=1)


@pytest.mark.parametrize(("size", "short"), [(224, 256), (112, 128), (56, 64)])
def test_the_evaluation_crop_is_as_large_a_part_of_smaller_images(size, short):
    pixels = torch.randint(0, 256, (short, short, 3), dtype=torch.uint8)
    edge = (short - size) // 2
    assert torch.equal(centre(pixels, size), pixels[edge : edge + size, edge : edge + size])  # nothing was resized
