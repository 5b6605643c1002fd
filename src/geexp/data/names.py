"""A million names as two arrays: their bytes end to end, and where each one ends."""

import os
from collections.abc import Iterable

import numpy as np


def join_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """``uint8 [bytes]`` and ``int64 [n]``."""
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def name_at(names: np.ndarray, ends: np.ndarray, index: int) -> str:
    start = ends[index - 1] if index else 0
    return os.fsdecode(names[start : ends[index]].tobytes())
