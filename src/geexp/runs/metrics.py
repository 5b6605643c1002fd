"""The score of a run: top-1 error or mAP. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """``key`` is its name in metrics; values are in percent."""

    key: str
    name: str
    lower_is_better: bool

    def better(self, value: float, than: float) -> bool:
        return value < than if self.lower_is_better else value > than

    def best(self, values: list[float]) -> float:
        return min(values) if self.lower_is_better else max(values)

    def loss(self, metrics: Mapping[str, Any]) -> float:
        """The value to be minimised by Hydra's sweepers."""
        value = float(metrics[self.key])
        return value if self.lower_is_better else 100 - value


TOP1_ERROR = Score("val/top1_error", "top-1 error", lower_is_better=True)
AP = Score("val/AP", "mAP", lower_is_better=False)


def score_of(metrics: Mapping[str, Any]) -> Score:
    """The score of a run with these metrics."""
    return AP if AP.key in metrics else TOP1_ERROR


def coco_numbers(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """COCO's twelve metrics in percent, as text; a dash if there are no objects of that size."""
    return [
        (key.removeprefix("val/"), "    -" if value is None else f"{value:5.1f}")
        for key, value in metrics.items()
        if key.startswith(("val/AP", "val/AR"))
    ]
