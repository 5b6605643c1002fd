"""The folder of realistic images: shaped as ImageNet, the same for the same seed, with ImageNet's odd files."""

import os
from pathlib import Path

import pytest
from PIL import Image

import photographs
from geexp.config.errors import ConfigError
from photographs import make_photo_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    size = make_photo_folder(folder, classes=12, train=36, val=12, seed=1)
    assert size == sum(map(len, contents(folder).values()))
    return folder


def test_folder_is_shaped_as_imagenet(made):
    for split, images in (("train", 3), ("val", 1)):
        classes = sorted((made / split).iterdir())
        assert len(classes) == 12
        assert all(len(name.name) == 9 and name.name[0] == "n" and name.name[1:].isdigit() for name in classes)
        assert all(len(list(name.iterdir())) == images for name in classes)
    first = min(path.name for path in (made / "train").iterdir())
    assert f"train/{first}/{first}_1.JPEG" in contents(made)
    images = [Image.open(path) for path in made.glob("train/*/*")]
    assert {image.size for image in images} & {(500, 375), (375, 500)}
    assert sum(image.format == "PNG" for image in images) == 1
    assert {image.mode for image in images} == {"RGB", "L", "CMYK"}
    assert sum(image.getexif().get(0x0112, 1) != 1 for image in images) == 1
    assert sum("progressive" in image.info for image in images) == 1
    sizes = [path.stat().st_size for path in made.glob("*/*/*")]
    assert 50e3 < sum(sizes) / len(sizes) < 250e3


def test_files_depend_on_the_seed_alone(made, tmp_path):
    make_photo_folder(tmp_path / "again", classes=12, train=36, val=12, seed=1, workers=3)
    assert contents(tmp_path / "again") == contents(made)
    make_photo_folder(tmp_path / "other", classes=1, train=2, val=1, seed=2)
    assert not set(contents(tmp_path / "other").values()) & set(contents(made).values())


def test_refusals(made, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not empty"):
        make_photo_folder(made)
    with pytest.raises(ConfigError, match=r"classes=20.* val=10"):
        make_photo_folder(tmp_path / "new", classes=20, train=30, val=10)

    monkeypatch.setattr(photographs, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install scikit-image"):
        make_photo_folder(tmp_path / "new", classes=1, train=1, val=1)
    assert not os.listdir(tmp_path)
