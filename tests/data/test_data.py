"""Data sets and the reference feed, on real images and real files."""

import gzip
import struct
from importlib.resources import files

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.datasets import open_dataset
from geexp.data.module import ImageData
from geexp.data.presence import require_data
from geexp.data.reference_feed import evaluation_transform
from tests.support.configuration import data_config


def image_data(*overrides: str, batch_size: int = 32, workers: int = 0, seed: int = 0) -> ImageData:
    feed = FeedConfig("reference", "workers", workers)
    return ImageData(data_config(*overrides), feed, batch_size=batch_size, seed=seed)


def opened(data: DataConfig, *, train: bool):
    return open_dataset(data, FeedConfig("reference", "workers"), train=train)


def test_the_embedded_set_is_balanced_and_real():
    arrays = np.load(files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb"), allow_pickle=False)
    assert arrays["train_images"].shape == (10_000, 28, 28)
    assert arrays["test_images"].shape == (2_000, 28, 28)
    assert np.bincount(arrays["train_labels"]).tolist() == [1_000] * 10
    assert np.bincount(arrays["test_labels"]).tolist() == [200] * 10
    pixels = arrays["train_images"].reshape(10_000, -1) / 255
    assert pixels.mean() == pytest.approx(0.286, abs=0.003)  # Fashion-MNIST's own mean and deviation
    assert pixels.std() == pytest.approx(0.353, abs=0.003)
    together = np.concatenate([arrays["train_images"], arrays["test_images"]]).reshape(12_000, -1)
    assert len(np.unique(together, axis=0)) > 11_950  # no image in both splits but the set's own few duplicates


def test_batches():
    data = image_data()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean().item()) < 0.2
    assert len(data.train_dataloader()) == 10_000 // 32  # the smaller last batch is dropped
    assert sum(len(batch[1]) for batch in image_data(batch_size=300).val_dataloader()) == 2_000  # but not here


def test_imagenet_evaluation_is_the_centre_of_256(imagenet):
    config = data_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3")
    with Image.open(imagenet / "val/n01440764/n01440764_0.JPEG") as image:
        got = evaluation_transform(config)(image)
        want = TF.to_tensor(TF.center_crop(TF.resize(image, 256), [224, 224]))
    want = TF.normalize(want, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(got, want)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """The embedded images in Fashion-MNIST's own format and places."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = np.load(files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb"), allow_pickle=False)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(arrays[f"{split}_images"]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(arrays[f"{split}_labels"]))
    return tmp_path


def test_fashion_mnist_from_its_own_files(fashion):
    config = data_config("data=fashion_mnist", f"data.root={fashion}")
    require_data(config, FeedConfig("resident"))
    theirs, ours = opened(config, train=False), opened(data_config(), train=False)
    assert len(theirs) == len(ours) == 2_000
    assert theirs.picture(7).tobytes() == ours.picture(7).tobytes()
    assert theirs.labels[7] == ours.labels[7]
    path = fashion / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is not a whole IDX file"):
        opened(config, train=False)


def test_fashion_mnist_gzipped(fashion):
    raw = fashion / "FashionMNIST" / "raw"
    for path in list(raw.iterdir()):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    config = data_config("data=fashion_mnist", f"data.root={fashion}")
    require_data(config, FeedConfig("resident"))
    assert len(opened(config, train=True)) == 10_000
    archive = raw / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"data=fashion_mnist: the files in .* cannot be used"):
        opened(config, train=True)


def test_too_large_a_batch():
    with pytest.raises(ConfigError, match=r"optim.batch_size=20000.*10000 training images"):
        _ = image_data(batch_size=20_000).training_images


def test_evaluation_does_not_depend_on_the_augmentation(imagenet):
    overrides = ("data=imagenet", f"data.root={imagenet}", "data.num_classes=3", "data.augmentation.crop=null")
    require_data(data_config(*overrides), FeedConfig("folder"))
    data = image_data(*overrides, batch_size=12)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (12, 3, 224, 224)
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert next(iter(data.val_dataloader()))[0].shape == (9, 3, 224, 224)
