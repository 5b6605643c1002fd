"""From a configuration to its network."""

from dataclasses import asdict

from torch import nn

from geexp.backbones import build_model
from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig, GatherExciteConfig, ModelConfig


def build_network(model: ModelConfig, ge: GatherExciteConfig, data: DataConfig) -> nn.Module:
    """The network that a configuration describes, for the images of its data set."""
    settings = asdict(ge)
    try:
        return build_model(
            **asdict(model),
            **{"ge": settings.pop("variant"), **settings},
            num_classes=data.num_classes,
            image_size=data.image_size,
            in_channels=data.channels,
        )
    except ValueError as error:  # what only the built network can know, such as a reduction beyond its channels
        raise ConfigError(f"model={model.name} ge={ge.variant}: {error}.") from error
