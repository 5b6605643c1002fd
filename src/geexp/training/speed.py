"""What a run does to be fast, in one line."""

import torch

from geexp.config.schema import TrainConfig


def said_of_speed(config: TrainConfig, optimizer: torch.optim.Optimizer) -> str:
    """``32-true, channels_last, fused SGD, not compiled, ge.implementation=auto``."""
    trainer = config.trainer
    fused = all(group.get("fused") for group in optimizer.param_groups)
    words = [
        trainer.precision,
        "channels_last" if trainer.channels_last else "contiguous",
        "fused SGD" if fused else "SGD",
        f"compiled ({trainer.compile_mode})" if trainer.compile else "not compiled",
    ]
    if config.ge.variant != "none":
        words.append(f"ge.implementation={config.ge.implementation}")
    if trainer.accumulate > 1:
        words.append(f"{trainer.accumulate} batches a step")
    return ", ".join(words)
