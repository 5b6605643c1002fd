"""Packs: made of real folders and archives by the real command, broken in real ways, and fed."""

import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import RecipeConfig, TrainConfig
from geexp.data.datasets import open_dataset
from geexp.data.folder import FolderImages
from geexp.data.imagenet_archives import open_training_archive, open_validation_archive
from geexp.data.module import ImageData
from geexp.data.pack import open_pack
from geexp.data.packing import PartialPack, open_sources, pack_split, shrunk_size
from tests.conftest import environment
from tests.support.configuration import train_config
from tests.support.photos import CLASSES, photo
from tests.support.processes import default_sigint

ORIGINAL = RecipeConfig("original")
JPEG = RecipeConfig("jpeg", max_side=500, quality=90)
RAW = RecipeConfig("raw", short_side=256)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    contents = []
    for seed, (size, kind) in enumerate(
        [((300, 260), "JPEG"), ((640, 480), "JPEG"), ((200, 640), "JPEG"), ((90, 60), "PNG"), ((500, 375), "JPEG")]
    ):
        buffer = io.BytesIO()
        photo(seed, size).save(buffer, kind)
        contents.append(buffer.getvalue())
    return contents


@pytest.fixture
def root(tmp_path, photos) -> Path:
    """Three classes of class folders; the validation images have the names that they have in ImageNet."""
    numbers = iter(np.random.default_rng(0).permutation(range(1, 10)))
    for label, name in enumerate(CLASSES):
        for split in ("train", "val"):
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
        for i in range(6):
            path = tmp_path / "imagenet/train" / name / f"{name}_{7 * i + label}.JPEG"
            path.write_bytes(photos[(label + i) % len(photos)])
        for i in range(3):
            path = tmp_path / "imagenet/val" / name / f"ILSVRC2012_val_{next(numbers):08}.JPEG"
            path.write_bytes(photos[(label + i) % len(photos)])
    return tmp_path / "imagenet"


def configured(root: Path, *overrides: str) -> TrainConfig:
    return train_config("data=imagenet", f"data.root={root}", "data.num_classes=3", *overrides)


def fed(root: Path, *overrides: str) -> ImageData:
    config = configured(root, *overrides)
    return ImageData(config.data, config.feed, batch_size=5, seed=3)


def pack(root: Path, recipe: RecipeConfig, folder: Path, split: str = "train", **options):
    return pack_split(FolderImages(root / split), folder, split, recipe, workers=2, **options)


def contents(folder: Path) -> dict[str, object]:
    """What is in a folder of packs; of an index its arrays (an .npz holds the time at which it was written)."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found[path.name] = {name: (arrays[name].dtype, arrays[name].tolist()) for name in arrays}
        else:
            found[path.name] = path.read_bytes()
    return found


def test_a_pack_of_originals_feeds_what_the_folder_feeds(root, run):
    done = run("pack", f"data.root={root}", "data.num_classes=3", "recipe=original")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "18 images  3 classes" in lines[0]
    assert f"{root}/pack-original/train.bin" in lines[0]
    words = f"python -m geexp.train data=imagenet data.root={root} data.num_classes=3 recipe=original feed=pack"
    assert lines[2].endswith(words)
    folder, packed = fed(root, "feed=folder"), fed(root, "feed=pack", "feed.engine=workers", "feed.workers=1")
    for loader in ("train_dataloader", "val_dataloader"):
        batches = list(zip(getattr(folder, loader)(), getattr(packed, loader)(), strict=True))
        assert batches
        for (images, labels), (other_images, other_labels) in batches:
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
    assert packed.training_images.name(0) == f"{root}/pack-original/train.bin: n01440764/n01440764_0.JPEG"
    assert pack(root, ORIGINAL, root / "pack-original").seconds is None  # it is there already


@pytest.mark.parametrize(
    ("size", "recipe", "stored"),
    [
        ((1000, 750), JPEG, (500, 375)),
        ((750, 1001), JPEG, (374, 500)),
        ((500, 400), JPEG, (500, 400)),
        ((90, 60), JPEG, (90, 60)),
        ((1000, 750), RAW, (341, 256)),
        ((300, 900), RAW, (256, 768)),
        ((4000, 255), RAW, (4000, 255)),
        ((9000, 10), JPEG, (500, 1)),
    ],
)
def test_images_are_shrunk_and_never_enlarged(size, recipe, stored):
    assert shrunk_size(*size, recipe) == stored


def test_a_jpeg_pack(root, tmp_path, photos):
    pack(root, JPEG, tmp_path / "pack")
    images = open_pack(tmp_path / "pack", "train", JPEG)
    sizes = {(300, 260), (500, 375), (156, 500), (90, 60)}
    assert {images.picture(i).size for i in range(len(images))} == sizes
    assert all(images.content(i)[:2].tobytes() == b"\xff\xd8" for i in range(len(images)))  # also what was PNG
    with Image.open(io.BytesIO(photos[1])) as original:
        expected = np.asarray(original.resize((500, 375), Image.Resampling.BILINEAR), dtype=float)
    (index,) = (i for i in range(len(images)) if images.relative_name(i) == "n01440764/n01440764_7.JPEG")
    assert np.abs(np.asarray(images.picture(index)) - expected).mean() < 2


def test_evaluation_on_a_raw_pack_is_the_reference_to_the_last_bit(root):
    """Its images have the size to which evaluation would shrink them. (Those smaller than that are enlarged.)"""
    for split in ("train", "val"):
        pack(root, RAW, root / "pack-raw-short256", split)
    raw, reference = fed(root, "feed=pack", "recipe=raw"), fed(root, "feed=reference")
    large = [i for i in range(9) if min(reference.evaluation_images.picture(i).size) >= 256]
    assert len(large) == 4
    shift, scale = (torch.tensor(v)[:, None, None] for v in (raw.data.mean, raw.data.std))
    ours = torch.cat([images for images, _ in raw.val_dataloader()])
    theirs = torch.cat([images for images, _ in reference.val_dataloader()])
    assert torch.equal(ours[large], (theirs * scale + shift).mul(255).round().to(torch.uint8)[large])
    assert all(images.shape == (5, 3, 224, 224) for images, _ in raw.train_dataloader())


def archives_of(root: Path, folder: Path) -> None:
    """The official three, in their official layout."""
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
        for name in reversed(CLASSES):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for path in sorted((root / "train" / name).iterdir(), reverse=True):
                    part.add(path, path.name)
            entry = tarfile.TarInfo(f"{name}.tar")
            entry.size = len(inner.getvalue())
            tar.addfile(entry, io.BytesIO(inner.getvalue()))
    images = sorted(root.glob("val/*/*"), key=lambda path: path.name)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in images:
            tar.add(path, path.name)
    synsets = [(i, name, "words", "gloss", 0, 0.0, 0, 6) for i, name in zip((3, 1, 2), CLASSES, strict=True)]
    synsets.append((4, "n00001740", "entity", "gloss", 3, [1.0, 2.0, 3.0], 2, 0))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    table = np.array([[row] for row in synsets], dtype=[(name, object) for name in (*fields, "num_train_images")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    ids = {name: str(i) for i, name, *_ in synsets}
    files = {
        "ILSVRC2012_validation_ground_truth.txt": "\n".join(ids[path.parent.name] for path in images).encode() + b"\n",
        "meta.mat": meta.getvalue(),
    }
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_the_official_archives_make_the_very_same_pack(root, run, tmp_path):
    archives_of(root, tmp_path / "tars")
    arguments = (f"data.root={tmp_path}/tars", "data.num_classes=3", "recipe=raw", f"out={tmp_path}/pack")
    done = run("pack", *arguments, "format=json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(p["split"], p["images"], p["left_out"]) for p in result["packs"]] == [("train", 18, 0), ("val", 9, 0)]
    assert result["train"].endswith(f"recipe=raw feed=pack feed.pack={tmp_path}/pack")
    for split in ("train", "val"):
        pack(root, RAW, tmp_path / "of_folders", split)
    assert contents(tmp_path / "pack") == contents(tmp_path / "of_folders")
    config = configured(root, "recipe=raw", "feed=pack", f"feed.pack={tmp_path}/pack")
    assert len(open_dataset(config.data, config.feed, train=True)) == 18


def test_a_truncated_archive_is_refused(root, tmp_path):
    """tarfile takes many of these for the end of the archive."""
    tars = tmp_path / "tars"
    archives_of(root, tars)
    path = tars / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    for size in range(len(whole.rstrip(b"\0")) // 512 * 512, 0, -512 * 67):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"img_train\.tar is truncated or damaged"):
            open_training_archive(tars)
    for name, at in (("devkit_t12.tar.gz", 0.5), ("img_val.tar", 0.7)):
        path = tars / f"ILSVRC2012_{name}"
        os.truncate(path, int(path.stat().st_size * at))
        with pytest.raises(DataError, match=rf"{path.name} is .*damaged"):
            open_validation_archive(tars)


def many(root: Path, photos: list[bytes]) -> None:
    for name in CLASSES:
        for i in range(40):
            (root / "train" / name / f"more_{i}.JPEG").write_bytes(photos[1])


def stopped(root: Path, folder: Path, how: signal.Signals, at: int) -> subprocess.CompletedProcess[str]:
    """The command, sent a signal when its file has so many bytes."""
    arguments = (f"data.root={root}", "data.num_classes=3", "recipe=jpeg", "workers=1", f"out={folder}")
    process = subprocess.Popen(
        [sys.executable, "-m", "geexp.pack", *arguments],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_sigint,
    )
    data = folder / "train.bin.partial"
    while not (data.exists() and data.stat().st_size > at):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(how)
    return subprocess.CompletedProcess((), stderr=process.communicate()[1], returncode=process.wait())


def assert_goes_on(root: Path, recipe: RecipeConfig, folder: Path, caplog, message: str) -> None:
    """Packing again logs the message, and the files are those of a pack made at once."""
    with caplog.at_level("INFO"):
        pack(root, recipe, folder)
    assert message in caplog.text
    pack(root, recipe, folder.with_name("whole"))
    assert contents(folder) == contents(folder.with_name("whole"))


def test_interrupted_and_killed_and_finished_gives_the_same_files(root, photos, tmp_path, caplog):
    many(root, photos)
    folder = tmp_path / "pack"
    interrupted = stopped(root, folder, signal.SIGINT, at=100_000)
    assert interrupted.returncode == 130
    assert "images of train.bin are packed. The same command" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    killed = stopped(root, folder, signal.SIGKILL, at=500_000)
    assert "of 138 images are packed already" in killed.stderr
    with pytest.raises(DataError, match="not finished"):
        open_pack(folder, "train", JPEG)
    assert_goes_on(root, JPEG, folder, caplog, "of 138 images are packed already")


class Killed(BaseException):
    pass


def die(*_, **__):
    raise Killed


def test_a_partial_pack_goes_on_from_its_checkpoint(root, tmp_path, monkeypatch):
    """Whatever came after it, whole or in part; and from the start if data that it states are gone."""
    pack(root, ORIGINAL, tmp_path / "whole")
    for after in (b"half a record", b"", None):
        with monkeypatch.context() as patch:
            patch.setattr("geexp.data.packing._index", die)
            with pytest.raises(Killed):
                pack(root, ORIGINAL, tmp_path / "cut")
        data = tmp_path / "cut/train.bin.partial"
        if after is None:
            os.truncate(data, data.stat().st_size - 1)
        else:
            data.write_bytes(data.read_bytes() + after)
        pack(root, ORIGINAL, tmp_path / "cut")
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
        (tmp_path / "cut/train.npz").unlink()
        (tmp_path / "cut/train.bin").unlink()


def test_killed_between_the_last_steps(root, tmp_path, monkeypatch):
    """The new index is in place, and the data are another pack's: nothing looks whole."""
    folder, replace = tmp_path / "pack", os.replace
    pack(root, JPEG, folder)
    pack(root, ORIGINAL, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "replace", lambda old, new: die() if old.suffixes == [".bin", ".partial"] else replace(old, new)
        )
        with pytest.raises(Killed):
            pack(root, ORIGINAL, folder, force=True)
    with pytest.raises(DataError, match=r"train\.bin has [\d,]+ bytes instead of the [\d,]+ of its index"):
        open_pack(folder, "train", ORIGINAL)
    pack(root, ORIGINAL, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_pack_is_not_replaced_without_force(root, tmp_path, photos):
    folder = tmp_path / "pack"
    pack(root, ORIGINAL, folder)
    before = contents(folder)
    with pytest.raises(DataError, match=r"recipe original instead of jpeg-max500-q90\. .*force=true"):
        pack(root, JPEG, folder)
    (root / "train/n01440764/new.JPEG").write_bytes(photos[0])
    with pytest.raises(DataError, match=r"a pack of other images"):
        pack(root, ORIGINAL, folder)
    assert contents(folder) == before
    assert pack(root, JPEG, folder, force=True).images == 19
    assert len(open_pack(folder, "train", JPEG)) == 19


def test_a_partial_pack_of_something_else_is_discarded(root, tmp_path, photos, caplog):
    bad = root / "train/n01484850/n01484850_2.JPEG"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*n01484850_2\.JPEG \(image 13\).*on_error=skip"):
        pack(root, JPEG, tmp_path / "pack")
    bad.write_bytes(content)
    assert_goes_on(root, RAW, tmp_path / "pack", caplog, "of another recipe or other images and is started over")


def test_unreadable_images_are_left_out_on_request(root, tmp_path, caplog, monkeypatch):
    bad = root / "train/n01440764/n01440764_14.JPEG"
    bad.write_bytes(bad.read_bytes()[:1000])
    (root / "train/n01484850/n01484850_2.JPEG").write_bytes(b"")
    packed = pack(root, RAW, tmp_path / "raw", on_error="skip")
    assert (packed.images, packed.left_out, packed.classes) == (16, 2, 3)
    assert "2 images could not be read and are left out: n01440764/n01440764_14.JPEG, n01484850/n01484850_2.JPEG" in (
        caplog.text
    )
    images = open_pack(tmp_path / "raw", "train", RAW)
    assert np.bincount(images.labels).tolist() == [5, 6, 5]
    names = [images.relative_name(i) for i in range(16)]
    assert all(images.classes[label] == name.split("/")[0] for label, name in zip(images.labels, names, strict=True))
    assert images.left_out == ["n01440764/n01440764_14.JPEG", "n01484850/n01484850_2.JPEG"]
    with pytest.raises(DataError, match="the file is empty"):
        pack(root, ORIGINAL, tmp_path / "original")  # which does not decode
    with monkeypatch.context() as patch:
        patch.setattr("geexp.data.packing._index", die)
        with pytest.raises(Killed):
            pack(root, RAW, tmp_path / "again", on_error="skip")
    with pytest.raises(DataError, match=r"n01440764_14\.JPEG \(image 1\)"):  # without skip it is tried again
        pack(root, RAW, tmp_path / "again")
    assert pack(root, RAW, tmp_path / "again", on_error="skip").left_out == 2


def test_a_full_disk_and_on_after_it(root, photos, tmp_path, caplog):
    many(root, photos)
    limit = (500_000, 500_000)
    arguments = (f"data.root={root}", "data.num_classes=3", "recipe=original", f"out={tmp_path}/pack")
    full = subprocess.run(
        [sys.executable, "-m", "geexp.pack", *arguments],
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    assert "File too large" in full.stderr
    assert "of 138 images are packed, and the others need about" in full.stderr
    assert full.stdout == ""
    assert_goes_on(root, ORIGINAL, tmp_path / "pack", caplog, "of 138 images are packed already")


def test_too_little_space_is_said_before_it_begins(root, tmp_path, monkeypatch):
    monkeypatch.setattr("geexp.data.packing.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"train\.bin needs .* kB and 1\.0 kB are free"):
        pack(root, ORIGINAL, tmp_path / "pack")


def test_two_at_once_are_refused(root, tmp_path):
    path = tmp_path / "pack/train.bin"
    with PartialPack(path, {}), pytest.raises(DataError, match="another process is packing it"):
        pack(root, ORIGINAL, tmp_path / "pack")


def test_a_flipped_byte_is_found_once_and_soundness_is_remembered(root, tmp_path, caplog, monkeypatch):
    pack(root, ORIGINAL, tmp_path)
    with caplog.at_level("INFO"):
        open_pack(tmp_path, "train", ORIGINAL)
        assert caplog.text.count("verified by hash") == 1
        open_pack(tmp_path, "train", ORIGINAL)
        assert caplog.text.count("verified by hash") == 1
    path = tmp_path / "train.bin"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.bin is damaged: n01484850/n01484850_9\.JPEG \(image 17\).*force=true"):
        open_pack(tmp_path, "train", ORIGINAL)
    content[-5] ^= 1
    path.write_bytes(content)
    open_pack(tmp_path, "train", ORIGINAL)


@pytest.mark.parametrize("recipe", [ORIGINAL, RAW])
def test_a_pack_goes_to_processes_that_are_spawned(root, tmp_path, recipe):
    pack(root, recipe, tmp_path)
    images = open_pack(tmp_path, "train", recipe)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.name(7) == images.name(7)
    assert copy.picture(7).tobytes() == images.picture(7).tobytes()


def test_damaged_files_and_another_recipe_are_refused(root, tmp_path):
    pack(root, RAW, tmp_path)
    with pytest.raises(ConfigError, match=r"packed with recipe raw-short256, .*jpeg-max500-q90"):
        open_pack(tmp_path, "train", JPEG)
    data, index = tmp_path / "train.bin", tmp_path / "train.npz"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(DataError, match=r"train\.bin has [\d,]+ bytes instead of the [\d,]+ of its index"):
        open_pack(tmp_path, "train", RAW)
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.npz is damaged"):
        open_pack(tmp_path, "train", RAW)
    with np.load(io.BytesIO(whole)) as arrays:
        np.savez(index, **(dict(arrays) | {"format": np.array(99)}))
    with pytest.raises(DataError, match=r"has format 99, .*reads format 1"):
        open_pack(tmp_path, "train", RAW)
    index.unlink()
    with pytest.raises(DataError, match=r"train\.npz is not there"):
        open_pack(tmp_path, "train", RAW)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["data=cifar10"], ["data=cifar10", "feed=resident"]),
        (["source=tars"], ["source=tars", "archives"]),
        (["data.root=nowhere"], ["train or val", "ILSVRC2012_img_train.tar", "data.root"]),
        (["data.root=nowhere", "source=archives"], ["source=archives", "ILSVRC2012_img_train.tar"]),
        (["recipe=jpeg", "data.recipe.short_side=256"], ["recipe=jpeg", "data.recipe.max_side", "short_side"]),
    ],
)
def test_wrong_options(run, arguments, parts):
    done = run("pack", *arguments)
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_classes_are_refused_before_packing(root):
    with pytest.raises(ConfigError, match=r"data\.num_classes=4: data=imagenet has 3 classes in its training split"):
        open_sources(configured(root, "data.num_classes=4").data, "folders")
    (root / "val" / CLASSES[0]).rename(root / "val/n00000001")
    with pytest.raises(DataError, match="only train has n01440764; only val has n00000001"):
        open_sources(configured(root).data, "folders")
