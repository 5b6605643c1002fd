"""``python -m geexp.check_data`` as its users run it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geexp.config.errors import DataError
from geexp.config.schema import FeedConfig, RecipeConfig
from geexp.data.check import check_images
from geexp.data.datasets import open_dataset
from geexp.data.folder import FolderImages
from geexp.data.pack import open_pack
from geexp.data.packing import pack_split
from tests.conftest import environment
from tests.support.configuration import data_config
from tests.support.photos import photo
from tests.support.processes import default_sigint


@pytest.fixture
def three_classes(imagenet) -> list[str]:
    return ["data=imagenet", f"data.root={imagenet}", "data.num_classes=3"]


@pytest.fixture
def damaged(imagenet) -> dict[str, Path]:
    """One file of each kind of damage, two of them in the validation split."""
    truncated = imagenet / "train/n01440764/n01440764_1.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:1500])
    empty = imagenet / "train/n01484850/n01484850_0.JPEG"
    empty.write_bytes(b"")
    text = imagenet / "val/n01443537/n01443537_2.JPEG"
    text.write_text("<html>404 Not Found</html>")
    broken_link = imagenet / "val/n01484850/zzz.JPEG"
    broken_link.symlink_to(imagenet / "nowhere")
    return {"truncated": truncated, "empty": empty, "text": text, "link": broken_link}


def test_all_is_well(run, three_classes):
    done = run("check_data", *three_classes)
    assert done.returncode == 0, done.stderr
    lines = {line[:16].strip(): line[16:].split("  ") for line in done.stdout.splitlines()}
    assert [cell.strip() for cell in lines["images"] if cell] == ["12", "9"]
    assert [cell.strip() for cell in lines["largest class"] if cell] == ["n01440764: 4", "n01440764: 3"]
    assert [cell.strip() for cell in lines["smallest image"] if cell] == ["256x300", "300x260"]
    assert [cell.strip() for cell in lines["largest image"] if cell] == ["400x260", "400x260"]
    assert [cell.strip() for cell in lines["read by Pillow"] if cell] == ["1 PNG RGB", "0"]
    assert [cell.strip() for cell in lines["cannot be read"] if cell] == ["0", "0"]


def test_every_damaged_file_is_named(run, three_classes, damaged):
    done = run("check_data", *three_classes)
    assert done.returncode == 1
    listed = [line for line in done.stdout.splitlines() if line.startswith(("train ", "val "))]
    assert listed == [
        f"train 2: {damaged['truncated']}: image file is truncated (16 bytes not processed)",
        f"train 8: {damaged['empty']}: empty file",
        f"val 5: {damaged['text']}: 26 bytes that are no image, or whose header is damaged",
        f"val 9: {damaged['link']}: No such file or directory",
    ]
    assert "4 of 22 images cannot be read" in done.stderr
    assert "feed.on_error=skip" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_one_document(run, three_classes, damaged):
    done = run("check_data", *three_classes, "format=json", "workers=3")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["data"] == "imagenet"
    assert report["unreadable"] == 4
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert [one["index"] for one in train["unreadable"]] == [2, 8]
    assert [one["name"] for one in val["unreadable"]] == [str(damaged["text"]), str(damaged["link"])]
    assert train["by_pillow"] == {"PNG RGB": 1}
    assert train["smallest_class"] == {"name": "n01440764", "images": 4}
    assert train["largest"] == [400, 260]


@pytest.mark.parametrize("decode", ["torchvision", "torchcodec", "pil"])
def test_every_decoder_finds_the_same(imagenet, damaged, decode):
    config = data_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3")
    report = check_images(open_dataset(config, FeedConfig("folder"), train=True), decode, workers=4)
    assert [Path(one.name) for one in report.unreadable] == [damaged["truncated"], damaged["empty"]]
    assert report.by_pillow == ({} if decode == "pil" else {"PNG RGB": 1})
    assert (report.smallest, report.largest) == ((256, 300), (400, 260))


def test_a_pack_is_verified_anew(imagenet):
    """Damage that leaves size and time of the file as they are is not seen by a run that verified it before."""
    pack_split(FolderImages(imagenet / "train"), imagenet / "pack", "train", RecipeConfig(), workers=2)
    report = check_images(open_pack(imagenet / "pack", "train", RecipeConfig()), "auto", workers=2)
    assert (report.images, report.unreadable, report.by_pillow) == (12, [], {"PNG RGB": 1})
    path = imagenet / "pack/train.bin"
    time, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    images = open_pack(imagenet / "pack", "train", RecipeConfig())
    with pytest.raises(DataError, match=r"train\.bin is damaged: n01484850/png\.JPEG \(image 11\)"):
        check_images(images, "auto", workers=2)


def test_nothing_can_be_read(imagenet):
    for file in imagenet.glob("train/*/*"):
        file.write_bytes(b"")
    config = data_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3")
    report = check_images(open_dataset(config, FeedConfig("folder"), train=True), "auto", workers=2)
    assert len(report.unreadable) == report.images == 12
    assert report.smallest is report.largest is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["workers=0"], ["workers=0", "at least 1"]),
        (["feed=folder"], ["feed=folder", "data=fashion_mnist_mini"]),
        (["data=imagenet", "data.root=nowhere"], ["train and val not found in"]),
        (["data=imagenet", "data.root=."], ["data.num_classes=1000", "data=imagenet", "3 classes"]),
        (["-m", "workers=1,2"], ["-m"]),
    ],
)
def test_wrong_options(run, imagenet, arguments, parts):
    """Reported before anything is read."""
    done = run("check_data", *arguments)
    assert done.returncode == 2
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_interrupted_on_a_terminal(tmp_path):
    """A bar is shown there; Ctrl-C ends it soon, with 130, and the terminal is as it was."""
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        photo(1, (3000, 3000)).save(tmp_path / "one.jpg")
        for i in range(2000):
            os.link(tmp_path / "one.jpg", tmp_path / split / "a" / f"{i}.jpg")
        (tmp_path / "one.jpg").unlink()
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "geexp.check_data", "data=imagenet", f"data.root={tmp_path}", "data.num_classes=1"],
        env=environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=tmp_path,
        preexec_fn=default_sigint,
    )
    os.close(terminal)
    shown, until = b"", time.monotonic() + 60
    while b"reading train" not in shown and time.monotonic() < until:
        shown += os.read(controller, 1024)
    process.send_signal(signal.SIGINT)
    try:
        while True:  # a terminal that nobody reads from would hold the process up
            shown += os.read(controller, 1024)
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait(timeout=60) == 130
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert b"Traceback" not in shown
    assert shown.rstrip().endswith(b"\x1b[?25h") or shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
