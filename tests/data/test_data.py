"""Data sets and the reference feed, on real images and real files."""

import gzip
import struct
from importlib.resources import files

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image

from geexp.config.command import config_directory
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig, TrainConfig
from geexp.config.validation import validated
from geexp.data.datasets import open_dataset
from geexp.data.module import ImageData
from geexp.data.presence import require_data
from geexp.data.reference_feed import EpochSampler, TransformedImages, evaluation_transform, training_transform


def data_config(*overrides: str) -> DataConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(config_directory(), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides))).data


def image_data(*overrides: str, batch_size: int = 32, workers: int = 0, seed: int = 0) -> ImageData:
    return ImageData(data_config(*overrides), FeedConfig("reference", workers), batch_size=batch_size, seed=seed)


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


def test_order_is_a_permutation_and_a_function_of_seed_and_epoch():
    sampler = EpochSampler(100, seed=3)
    first = list(sampler)
    assert sorted(index for _, index in first) == list(range(100))
    assert {epoch for epoch, _ in first} == {0}
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert [i for _, i in second] != [i for _, i in first]
    assert list(EpochSampler(100, seed=3, epoch=1)) == second
    assert [i for _, i in EpochSampler(100, seed=4)] != [i for _, i in first]


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    config = data_config()
    images = TransformedImages(open_dataset(config, train=True), training_transform(config), seed=0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [images[(0, i)][0] for i in range(20)]
    assert torch.equal(torch.get_rng_state(), state)  # training's own randomness is not touched
    again = [images[(0, i)][0] for i in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, images[(1, i)][0]) for i, a in enumerate(first))


def test_workers_change_nothing():
    alone = [batch for _, batch in zip(range(3), image_data().train_dataloader(), strict=False)]
    shared = [batch for _, batch in zip(range(3), image_data(workers=2).train_dataloader(), strict=False)]
    for (images, labels), (other_images, other_labels) in zip(alone, shared, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def photo(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth and coloured like a photograph, so that JPEG and resizing behave as on one."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def imagenet(tmp_path):
    """An ImageNet-shaped folder of three classes, with a grey, a CMYK and a PNG image among the photographs."""
    for split in ("train", "val"):
        for label, name in enumerate(("n01440764", "n01443537", "n01484850")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                photo(10 * label + i, (300 + 50 * i, 260)).save(folder / f"{name}_{i}.JPEG")
    train = tmp_path / "train"
    photo(100, (256, 300), "L").save(train / "n01440764/grey.JPEG")
    photo(101, (256, 300), "CMYK").save(train / "n01443537/cmyk.JPEG")
    photo(102, (256, 300)).save(train / "n01484850/png.JPEG", format="PNG")
    return tmp_path


def test_imagenet_folder(imagenet):
    overrides = ("data=imagenet", f"data.root={imagenet}", "data.num_classes=3")
    require_data(data_config(*overrides))
    data = image_data(*overrides, batch_size=12)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (12, 3, 224, 224)
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_imagenet_evaluation_is_the_centre_of_256(imagenet):
    config = data_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3")
    with Image.open(imagenet / "val/n01440764/n01440764_0.JPEG") as image:
        got = evaluation_transform(config)(image)
        want = TF.to_tensor(TF.center_crop(TF.resize(image, 256), [224, 224]))
    want = TF.normalize(want, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(got, want)


def test_wrong_number_of_classes(imagenet):
    with pytest.raises(ConfigError, match=r"data.num_classes=1000: data=imagenet has 3 classes"):
        open_dataset(data_config("data=imagenet", f"data.root={imagenet}"), train=True)


def test_a_truncated_image_is_named(imagenet):
    path = imagenet / "train/n01440764/n01440764_1.JPEG"
    path.write_bytes(path.read_bytes()[:1500])
    data = image_data("data=imagenet", f"data.root={imagenet}", "data.num_classes=3", batch_size=12)
    with pytest.raises(DataError, match=r"cannot read .*n01440764_1\.JPEG"):
        next(iter(data.train_dataloader()))


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
    require_data(config)
    theirs, ours = open_dataset(config, train=False), open_dataset(data_config(), train=False)
    assert len(theirs) == len(ours) == 2_000
    assert theirs[7][0].tobytes() == ours[7][0].tobytes()
    assert int(theirs[7][1]) == ours[7][1]


def test_fashion_mnist_gzipped(fashion):
    raw = fashion / "FashionMNIST" / "raw"
    for path in list(raw.iterdir()):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    config = data_config("data=fashion_mnist", f"data.root={fashion}")
    require_data(config)
    assert len(open_dataset(config, train=True)) == 10_000
    archive = raw / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"data=fashion_mnist: the files in .* cannot be used"):
        open_dataset(config, train=True)


def test_a_file_cut_short_is_refused(fashion):
    path = fashion / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is not a whole IDX file"):
        open_dataset(data_config("data=fashion_mnist", f"data.root={fashion}"), train=False)


def test_splits_with_different_classes_are_refused(imagenet):
    (imagenet / "val/n01443537").rename(imagenet / "val/n01443538")
    with pytest.raises(DataError, match="class folders n01443537, n01443538"):
        open_dataset(data_config("data=imagenet", f"data.root={imagenet}", "data.num_classes=3"), train=True)


def test_too_large_a_batch():
    with pytest.raises(ConfigError, match=r"optim.batch_size=20000.*10000 training images"):
        _ = image_data(batch_size=20_000).training_images


def test_evaluation_does_not_depend_on_the_augmentation(imagenet):
    overrides = ("data=imagenet", f"data.root={imagenet}", "data.num_classes=3", "data.augmentation.crop=null")
    data = image_data(*overrides, batch_size=9)
    assert next(iter(data.train_dataloader()))[0].shape == (9, 3, 224, 224)
    assert next(iter(data.val_dataloader()))[0].shape == (9, 3, 224, 224)
