"""Generate the embedded data set: a stratified subset of Fashion-MNIST in one compressed file.

    python scripts/make_fashion_mnist_mini.py <folder with the four gzipped IDX files>

The subset depends on the seed only, so the file is reproducible bit for bit (with the same NumPy).
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "src/geexp/data/fashion_mnist_mini.npz"
PER_CLASS = {"train": 1000, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    rng = np.random.default_rng(2018)
    arrays = {}
    for split, per_class in PER_CLASS.items():
        images = read_idx(source / f"{PREFIX[split]}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(source / f"{PREFIX[split]}-labels-idx1-ubyte.gz", 8)
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)])
        chosen.sort()
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
