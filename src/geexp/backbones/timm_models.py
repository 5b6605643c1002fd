"""geexp's networks as timm models: ``timm.create_model("ge_resnet50", ge="theta_plus", extent=4)``."""

import inspect
from collections.abc import Callable
from typing import Any

from timm.models import is_model, register_model
from torch import nn

from geexp.backbones.build import build_model
from geexp.registry import options

# Options that timm's scripts pass to every model, with the only values that geexp's networks support.
_NEUTRAL = {"drop_rate": 0.0, "drop_path_rate": 0.0, "global_pool": "avg"}
_OPTIONS = set(inspect.signature(build_model).parameters)


def register_timm_models() -> list[str]:
    """Register every backbone with timm as ``ge_<name>`` and return those names.

    The entry points accept timm's ``num_classes``, ``in_chans`` and ``img_size``, and ``build_model``'s options; ``ge``
    defaults to ``theta``. Further calls have no effect.
    """
    names = [f"ge_{name}" for name, entry in options("model").items() if entry["name"] == name]
    for name in names:
        if not is_model(name):
            register_model(_entry_point(name))
    return names


def _entry_point(timm_name: str) -> Callable[..., nn.Module]:
    name = timm_name.removeprefix("ge_")

    def create(
        pretrained: bool = False,
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        ge: str = "theta",
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **settings: Any,
    ) -> nn.Module:
        if pretrained or pretrained_cfg:
            raise ValueError(f"{timm_name}: there are no pretrained weights; load a checkpoint of a run instead")
        for option in list(settings):
            if option in _NEUTRAL and settings[option] in (None, _NEUTRAL[option]):
                del settings[option]
            elif option not in _OPTIONS:
                raise ValueError(f"{timm_name}: {option}={settings[option]!r} is not an option of this model")
        home = options("model")[name]
        image_size = home["home_size"] if img_size is None else img_size
        model = build_model(
            name, ge=ge, num_classes=num_classes, in_channels=in_chans, image_size=image_size, **settings
        )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        # Read by timm's data pipeline to prepare images for a model.
        model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]
            "architecture": timm_name,
            "num_classes": home["home_classes"] if num_classes is None else num_classes,
            "input_size": (in_chans, height, width),
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
            **_statistics(home["home_size"] == 224, in_chans),
            **(pretrained_cfg_overlay or {}),
        }
        return model

    create.__name__ = create.__qualname__ = timm_name
    create.__doc__ = f"{name} with Gather-Excite (geexp.build_model)."
    return create


def _statistics(imagenet: bool, channels: int) -> dict[str, Any]:
    """Crop and normalisation of a backbone's usual data set, ImageNet or CIFAR-10."""
    if imagenet:
        crop, mean, std = 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    else:
        crop, mean, std = 1.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    if channels != 3:
        mean, std = (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels  # type: ignore[assignment]
    return {"crop_pct": crop, "mean": mean, "std": std}
