"""All feeds give what the reference feed gives, whatever makes the batches."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy.stats import chisquare
from torchvision.transforms import RandomResizedCrop

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import AugmentationConfig, FeedConfig, RecipeConfig
from geexp.data.feeds import Feed, normalised
from geexp.data.folder import FolderImages
from geexp.data.images import ArrayImages
from geexp.data.module import ImageData
from geexp.data.order import FixedOrder, TrainingOrder, mix
from geexp.data.packing import pack_split
from geexp.data.pixel_feed import resized_crop_box
from geexp.data.reading import explained_workers
from geexp.data.resident_feed import ResidentImages
from tests.conftest import environment
from tests.support.configuration import train_config
from tests.support.photos import photo

REFERENCE = FeedConfig("reference", "workers", 0)
IN_PROCESS = FeedConfig("folder", "threads", 0)
ENGINES = [IN_PROCESS, FeedConfig("folder", "threads", 2), FeedConfig("folder", "workers", 2)]


def photos(imagenet, feed: FeedConfig, *overrides: str, batch_size: int = 6) -> ImageData:
    data = train_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3", *overrides).data
    return ImageData(data, feed, batch_size=batch_size, seed=0)


def batches(data: ImageData, epochs: int = 1, *, train: bool = True) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """As the network gets them."""
    feed = data.train_dataloader() if train else data.val_dataloader()
    found = []
    for epoch in range(epochs):
        if train:
            feed.sampler.set_epoch(epoch)
        found += [data.on_after_batch_transfer(batch, 0) for batch in feed]
    return found


def levels(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return 255 * (images * std[:, None, None] + mean[:, None, None])


@pytest.mark.parametrize(
    ("augmentation", "train", "tolerance"),
    [("paper", True, 0.05), ("senet", True, 0.05), ("none", True, 0.01), ("paper", False, 0.01)],
)
def test_folder_agrees_with_the_reference(imagenet, augmentation, train, tolerance):
    """Same images in the same order with the same draws; what differs is the rounding of the resizing."""
    option = f"data/augmentation={augmentation}"
    wanted = batches(photos(imagenet, REFERENCE, option), 4, train=train)
    found = batches(photos(imagenet, IN_PROCESS, option), 4, train=train)
    assert len(wanted) == len(found)
    for (want, want_labels), (got, got_labels) in zip(wanted, found, strict=True):
        assert torch.equal(got_labels, want_labels)
        assert got_labels.dtype == torch.int64
        assert got.shape == want.shape
        assert got.is_contiguous(memory_format=torch.channels_last)
        difference = (levels(got) - levels(want)).abs()
        assert difference.mean() <= tolerance
        assert difference.max() < 1.01


@pytest.mark.parametrize(
    "feed", [*ENGINES[1:], FeedConfig("reference", "workers", 2)], ids=lambda f: f"{f.name}-{f.engine}-{f.workers}"
)
@pytest.mark.parametrize("train", [True, False])
def test_engines_give_the_same_bytes(imagenet, feed, train):
    wanted = batches(photos(imagenet, REFERENCE if feed.name == "reference" else IN_PROCESS), 2, train=train)
    data = photos(imagenet, feed)
    found = batches(data, 2, train=train)
    assert len(found) == len(wanted)
    for (want, want_labels), (got, got_labels) in zip(wanted, found, strict=True):
        assert torch.equal(got, want)
        assert torch.equal(got_labels, want_labels)
    pngs = 2 if train and feed.name == "folder" else 0  # named .JPEG: one in each of two epochs
    assert data.account()["train" if train else "val"] == {"fallbacks": pngs, "skipped": {}}


def test_augmentation_is_a_function_of_seed_epoch_and_index(imagenet):
    """And training's own randomness is not touched."""
    for feed in (REFERENCE, IN_PROCESS):
        reader = photos(imagenet, feed, batch_size=12)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = batches(reader, 2)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, batches(reader, 2), strict=True))
        assert not torch.equal(first[0][0].sort(0).values, first[1][0].sort(0).values)


def test_crop_boxes_are_drawn_as_torchvision_draws_them():
    sizes = [(375, 500), (500, 333), (20, 1500), (1500, 20), (1, 1), (3, 2), (256, 256)]
    for number, (height, width) in enumerate(sizes * 60):
        torch.manual_seed(mix("boxes", number))
        least = (0.08, 0.25)[number % 2]
        want = RandomResizedCrop.get_params(torch.empty(3, height, width), [least, 1.0], [3 / 4, 4 / 3])
        generator = torch.Generator().manual_seed(mix("boxes", number))
        assert resized_crop_box(height, width, least, generator) == want


def resident_images(pixels: np.ndarray, channels: int) -> ResidentImages:
    images, augmentation = ArrayImages(pixels, np.arange(len(pixels))), AugmentationConfig("pad", 4, True)
    return ResidentImages(images, augmentation, channels=channels, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_window_of_the_resident_feed_is_that_of_pil(channels):
    """All 9 x 9 windows, mirrored or not, of several images: pad, crop, flip as torchvision does them on PIL images."""
    shape = (5, 32, 32) if channels == 1 else (5, 32, 32, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    resident = resident_images(pixels, channels)
    for image, mirrored, top, left in itertools.product(range(5), range(2), range(9), range(9)):
        want = TF.crop(TF.pad(Image.fromarray(pixels[image]), 4), top, left, 32, 32)
        want = TF.pil_to_tensor(TF.hflip(want) if mirrored else want)
        got = resident.window(*(torch.tensor([value]) for value in (image, mirrored, top, left)))[0]
        assert torch.equal(got, want)


def test_windows_of_the_resident_feed_are_drawn_evenly():
    """Which of the 162 windows an image gets, over many epochs: a chi-squared test, at one in a million."""
    rows, columns = np.meshgrid(np.arange(1, 33), np.arange(1, 33), indexing="ij")
    coordinates = np.stack([rows, columns, columns], -1).astype(np.uint8)
    resident = resident_images(np.repeat(coordinates[None], 50, 0), channels=3)
    seen: dict[tuple[int, int, bool], int] = {}
    for epoch in range(400):
        centre = resident.batch(epoch, torch.arange(50)).images[:, :, 16, 16:18].int()
        for (top, left), (_, right) in zip(centre[:, :2, 0].tolist(), centre[:, :2, 1].tolist(), strict=True):
            key = (top, left if right > left else 34 - left, right < left)
            seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 162
    assert chisquare(list(seen.values())).pvalue > 1e-6


def test_resident_batches_are_a_function_of_seed_epoch_and_index():
    def data(feed: FeedConfig, *more: str) -> ImageData:
        return ImageData(train_config(*more).data, feed, batch_size=250, seed=0)

    resident = FeedConfig("resident")
    first = batches(data(resident), 2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, batches(data(resident), 2), strict=True))
    assert len(first) == 80
    assert not torch.equal(first[0][1], first[40][1])
    # Without augmentation nothing is left to differ from the reference feed: not one bit, and in the same order.
    plain = ("data/augmentation=none",)
    for train in (True, False):
        wanted = batches(data(REFERENCE, *plain), train=train)
        found = batches(data(resident, *plain), train=train)
        for (want, want_labels), (got, got_labels) in zip(wanted, found, strict=True):
            assert torch.equal(got, want)
            assert torch.equal(got_labels, want_labels)


def test_normalised_is_to_tensor_and_normalize():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 3, 16, 16)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    assert torch.equal(normalised(pixels, mean, std)[0], TF.normalize(TF.to_tensor(picture), mean, std))
    assert normalised(pixels.to(memory_format=torch.channels_last), mean, std).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.fixture
def damaged(imagenet):
    """Two of the twelve training images, and the first four of the nine of evaluation."""
    train = imagenet / "train"
    one, two = train / "n01440764/n01440764_1.JPEG", train / "n01443537/n01443537_2.JPEG"
    one.write_bytes(one.read_bytes()[:1500])
    two.write_bytes(b"x")
    for path in sorted((imagenet / "val").rglob("*.JPEG"))[:4]:
        path.write_text("not an image")
    return imagenet


def test_a_damaged_image_stops_with_its_name(damaged):
    for feed in [REFERENCE, *ENGINES]:
        with pytest.raises(DataError, match=r"n0144\d+_\d\.JPEG \(image \d+\).*feed.on_error=skip"):
            batches(photos(damaged, feed, batch_size=12))


def test_16_bits_and_transparency_are_the_same_in_every_feed_and_logged_once(tmp_path, caplog):
    for split in ("train", "val"):
        for name, level in (("dark", 20_000), ("light", 50_000)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                grey = np.full((64, 64), level + number, dtype=np.uint16)
                Image.fromarray(grey).save(tmp_path / split / name / f"{number}.png")
        Image.new("LA", (64, 64), (0, 0)).save(tmp_path / split / "light/transparent.png")
        pack_split(FolderImages(tmp_path / split), tmp_path / "pack-original", split, RecipeConfig(), workers=1)
        raw = RecipeConfig("raw", short_side=256)
        pack_split(FolderImages(tmp_path / split), tmp_path / "pack-raw", split, raw, workers=1)
    expected = [[78] * 4 + [195] * 4 + [255], [78] * 4 + [195] * 4 + [255]]
    for feed in (
        REFERENCE,
        *ENGINES,
        FeedConfig("pack", "threads", 0),
        FeedConfig("pack", pack=f"{tmp_path}/pack-raw"),
    ):
        more = ["data.recipe.name=raw", "data.recipe.short_side=256"] if feed.pack else []
        data = train_config("data=imagenet", f"data.root={tmp_path}", "data.num_classes=2", "feed=pack", *more).data
        images = ImageData(data, feed, batch_size=3, seed=0)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = [
                sorted(levels(shown)[:, 0, 30, 30].round().int().tolist()[k] for shown, _ in epoch for k in range(3))
                for epoch in (batches(images), batches(images, train=False))
            ]
        assert found == expected, feed
        for sentence in ("16-bit grey images", "on white"):
            assert sum(sentence in record.message for record in caplog.records) == (0 if feed.pack else 1), feed


def skipping(feed: FeedConfig) -> FeedConfig:
    return replace(feed, on_error="skip")


@pytest.mark.parametrize(
    "feed", [REFERENCE, *ENGINES, FeedConfig("pack", "threads", 2)], ids=lambda f: f"{f.name}-{f.engine}-{f.workers}"
)
def test_damaged_images_are_replaced_in_training_and_left_out_of_evaluation(damaged, feed, caplog):
    if feed.name == "pack":
        for split in ("train", "val"):
            folder = FolderImages(damaged / split)
            pack_split(folder, damaged / "pack-original", split, RecipeConfig(), workers=1)
    data = photos(damaged, skipping(feed), batch_size=2)
    with caplog.at_level(logging.WARNING):
        found, evaluated = batches(data, 3), batches(data, train=False)
    assert [len(labels) for _, labels in found] == [len(images) for images, _ in found] == [2] * 18
    # The first two batches of evaluation have no image left.
    assert [labels.tolist() for _, labels in evaluated] == [[1, 1], [2, 2], [2]]
    account = data.account()
    assert sorted(name[-16:] for name in account["train"]["skipped"]) == ["n01440764_1.JPEG", "n01443537_2.JPEG"]
    assert len(account["val"]["skipped"]) == 4
    told = [record for record in caplog.records if "skipped" in record.message]
    assert len(told) == 2 + 4  # each once, however often it comes
    wanted = batches(photos(damaged, skipping(REFERENCE if feed.name == "reference" else IN_PROCESS), batch_size=2), 3)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(found, wanted, strict=True))
    resumed = photos(damaged, skipping(feed), batch_size=2)
    resumed.load_state_dict(data.state_dict())
    assert resumed.account() == account


def test_replacements_are_those_of_an_uninterrupted_epoch(damaged):
    whole = batches(photos(damaged, skipping(IN_PROCESS), batch_size=2))
    data = photos(damaged, skipping(IN_PROCESS), batch_size=2)
    for done in range(6):
        feed = data.train_dataloader()
        feed.load_state_dict({"epoch": 0, "batches": done, "images": 12})
        rest = [data.on_after_batch_transfer(batch, 0) for batch in feed]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[done:], strict=True))


def test_ranks_take_equally_many_steps_whatever_is_damaged(damaged):
    """Batches of one: a rank whose only image is damaged would otherwise leave the others waiting."""
    lengths, shown = [], []
    for rank in range(4):
        data = photos(damaged, skipping(IN_PROCESS), batch_size=4)
        train = TrainingOrder(12, batch_size=1, seed=0, rank=rank, world=4)
        data.training_feed = data._feed(data.training_images, train, train=True)
        lengths.append([len(labels) for _, labels in batches(data, 2)])
        val = FixedOrder(9, batch_size=1, rank=rank, world=4)
        data.evaluation_feed = data._feed(data.evaluation_images, val, train=False)
        shown += [label for _, labels in batches(data, train=False) for label in labels.tolist()]
    assert lengths == [[1] * 6] * 4
    assert sorted(shown) == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("feed", [REFERENCE, *ENGINES[1:]], ids=lambda f: f"{f.name}-{f.engine}-{f.workers}")
def test_if_most_images_are_damaged_it_stops(damaged, feed):
    files = sorted((damaged / "val").rglob("*.JPEG"))
    files[4].write_bytes(b"")  # the fifth of nine
    for path in (damaged / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    for train, number in ((True, 12), (False, 9)):
        with pytest.raises(DataError, match=rf"more than half of {number} images .*\.JPEG.*check_data"):
            batches(photos(damaged, skipping(feed)), train=train)


def test_a_feed_that_is_left_early_leaves_no_thread(imagenet):
    before = set(threading.enumerate())
    feed = photos(imagenet, FeedConfig("folder", "threads", 3), batch_size=2).train_dataloader()
    iterator = iter(feed)
    next(iterator)
    iterator.close()
    assert set(threading.enumerate()) <= before
    assert len(list(feed)) == 6  # and the next epoch is whole


@pytest.mark.parametrize(
    ("name", "workers", "needed"),
    # The images of 2 batches per worker + 1, of uint8 or float32, but at most all of a split; 64 KiB per process.
    [
        ("folder", 2, 5 * 2 * 3 * 224**2 + 3 * 2**16),
        ("folder", 7, 12 * 3 * 224**2 + 8 * 2**16),
        ("reference", 1, 3 * 2 * 3 * 224**2 * 4 + 2 * 2**16),
    ],
)
def test_too_little_shared_memory_is_found_before_training(imagenet, monkeypatch, name, workers, needed):
    free = SimpleNamespace(f_frsize=1, f_bavail=needed)
    monkeypatch.setattr(os, "statvfs", lambda path: {"/dev/shm": free}[path])
    feed = FeedConfig(name, "workers", workers)
    photos(imagenet, feed, batch_size=2).setup("fit")
    free.f_bavail = 65536
    ways_out = [r"feed\.workers=0", r"--shm-size=1g", *([r"feed\.engine=threads"] if name == "folder" else [])]
    for words in ([f"feed.workers={workers}", "/dev/shm", r"65\.5 kB", f"{needed / 1e6:.1f} MB"], ways_out):
        with pytest.raises(ConfigError, match="(?s)" + "".join(f"(?=.*{word})" for word in words)):
            photos(imagenet, feed, batch_size=2).setup("fit")
    for other in (FeedConfig(name, "workers", 0), FeedConfig("folder", "threads", 2)):
        photos(imagenet, other, batch_size=2).setup("fit")


def test_a_dead_worker_is_explained(imagenet):
    others = psutil.Process().children()  # such as the server of the forked commands
    data = photos(imagenet, FeedConfig("folder", "workers", 1), batch_size=1)
    iterator = iter(data.train_dataloader())
    next(iterator)
    for child in psutil.Process().children():
        if child not in others and "resource_tracker" not in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    # torch notices by a signal, in the feed or in whatever else is going on; a run is wrapped in the same way.
    with pytest.raises(DataError, match="a worker process of the feed has died"), explained_workers():
        list(iterator)


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_only_what_comes_from_a_worker_is_blamed_on_it(kind):
    raised_by_a_reader = kind(f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback …")
    for error, reading in ((kind(), False), (raised_by_a_reader, True)):
        with pytest.raises(kind), explained_workers(reading=reading):
            raise error
    lost = kind(f"Caught {kind.__name__} in pin memory thread for device 0.")
    with pytest.raises(DataError, match=r"feed\.workers"), explained_workers(reading=True):
        raise lost


def test_a_feed_goes_on_from_a_checkpoint(imagenet):
    whole = batches(photos(imagenet, IN_PROCESS, batch_size=3))
    feed = photos(imagenet, IN_PROCESS, batch_size=3).train_dataloader()
    iterator = iter(feed)
    next(iterator), next(iterator)
    state = feed.state_dict()
    assert (state["epoch"], state["batches"]) == (0, 2)
    data = photos(imagenet, IN_PROCESS, batch_size=3)
    other: Feed = data.train_dataloader()
    other.load_state_dict(state)
    rest = [data.on_after_batch_transfer(batch, 0) for batch in other]
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[2:], strict=True))
    assert len(list(other)) == 4  # the next epoch is whole again
    other.load_state_dict(state)
    other.sampler.set_epoch(1)  # the epoch of the checkpoint was its last batch's: the next one begins at its start
    assert len(list(other)) == 4
    photo(7, (80, 60)).save(imagenet / "train/n01440764/more.JPEG")
    with pytest.raises(DataError, match=r"has 13 images, and had 12 .*force=true"):
        photos(imagenet, IN_PROCESS).train_dataloader().load_state_dict(state)


def test_decoders_can_be_chosen(imagenet):
    wanted = batches(photos(imagenet, IN_PROCESS))
    for decode in ("torchvision", "torchcodec", "pil"):
        found = batches(photos(imagenet, FeedConfig("folder", "threads", 0, decode=decode)))
        assert all(torch.equal(a[0], b[0]) for a, b in zip(found, wanted, strict=True)), decode


def test_names_that_are_not_text(imagenet):
    bad = os.fsencode(imagenet / "train/n01440764") + b"/bad\xff.JPEG"
    with open(bad, "wb"):
        pass
    data = photos(imagenet, FeedConfig("folder", "threads", 0, on_error="skip"), batch_size=13)
    batches(data)
    json.dumps(data.account(), ensure_ascii=False).encode()  # as result.json is written
    assert "bad\\xff.JPEG" in next(iter(data.account()["train"]["skipped"]))


@pytest.mark.slow
def test_a_thread_of_the_feed_starts_no_threads_of_torch(imagenet):
    """Sixteen of torch for each of eight would be more than a hundred."""
    script = """
import sys, psutil, torch
from geexp.config.schema import FeedConfig
from geexp.data.module import ImageData
from tests.conftest import environment
from tests.support.configuration import train_config
from tests.support.photos import photo
torch.set_num_threads(16)
data = train_config("data=imagenet", f"data.root={sys.argv[1]}", "data.num_classes=3", "data/augmentation=senet").data
images = ImageData(data, FeedConfig("folder", "threads", 8), batch_size=4, seed=0)
before = psutil.Process().num_threads()
most = 0
for feed in (images.train_dataloader(), images.val_dataloader()):
    for _ in range(3):
        for _ in feed:
            most = max(most, psutil.Process().num_threads())
print(most - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(imagenet)],
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 16
