"""Which anchors and regions a training step learns from is drawn at random: here from a seed of its own.

torchvision draws them from the default generators, so a resumed training would draw others than one that was never
interrupted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the CPU's and the device's default generators start from ``seed``; after, they are as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
