"""Build the network of a configuration."""

from typing import Any

import torch
from torch import nn

from geexp.backbones.build import assemble
from geexp.backbones.complexity import Complexity, count_complexity
from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig, GatherExciteConfig, ModelConfig, TrainConfig
from geexp.registry import bound


def build_network(
    model: ModelConfig, ge: GatherExciteConfig, *, num_classes: int, image_size: int, in_channels: int
) -> nn.Module:
    """Build the network of a configuration.

    Raises:
        ConfigError: for an invalid import path, or arguments that the network or the operator does not accept.
    """
    try:
        arguments = _given(model, "stride_in", "shortcut") | model.arguments
        return assemble(
            bound(str(model._target_), arguments, called_with=("num_classes", "in_channels")),
            _operator(ge),
            stages=ge.stages,
            num_classes=num_classes,
            image_size=image_size,
            in_channels=in_channels,
            init=model.init,
            bn_momentum=model.bn_momentum,
            zero_init_residual=model.zero_init_residual,
        )
    except ValueError as error:  # found while building the network, such as a reduction larger than its channels
        raise ConfigError(f"model={model.name} ge={ge.variant}: {str(error).rstrip('.')}.") from error


def network_of(config: TrainConfig) -> nn.Module:
    """Build the network of a run, for the images of its data set; see ``build_network``."""
    return build_network(config.model, config.ge, **_images(config.data))


def count_network(model: ModelConfig, ge: GatherExciteConfig, **images: int) -> Complexity:
    """Parameters and multiply-accumulates of the network from ``build_network``, counted on the meta device."""
    with torch.device("meta"):
        network = build_network(model, ge, **images)
    return count_complexity(network, (images["in_channels"], images["image_size"], images["image_size"]))


def count_run(config: TrainConfig) -> Complexity:
    """``count_network`` for the network of a run."""
    return count_network(config.model, config.ge, **_images(config.data))


def _images(data: DataConfig) -> dict[str, int]:
    return {"num_classes": data.num_classes, "image_size": data.image_size, "in_channels": data.channels}


def _operator(ge: GatherExciteConfig) -> Any:
    if ge.variant == "none":
        return None
    settings = _given(ge, "pool", "border", "reduction", "implementation") | ge.arguments
    if is_ours(ge._target_):
        settings["variant"] = ge.variant
    return bound(str(ge._target_), {"extent": ge.extent, **settings}, called_with=("size",), after=1)


def _given(group: Any, *keys: str) -> dict[str, Any]:
    return {key: getattr(group, key) for key in keys if getattr(group, key) is not None}
