"""``what=step``: a whole training step - forward, loss, backward, SGD - with Gather-Excite over one without.

Images and labels are made up and lie on the device. timm's operators sit in the same network, in the same places.
"""

import gc
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.backbones import build_model
from geexp.backbones.anatomy import blocks, slot, slot_shapes
from geexp.benchmarks.contenders import RepairedTimm
from geexp.benchmarks.interleaved import Clock, clock_for, interleaved
from geexp.benchmarks.memory import peak_bytes, saved_bytes
from geexp.benchmarks.progress import Advance, progress
from geexp.benchmarks.rows import Column, Comparison, Row
from geexp.benchmarks.step_cases import PLAIN, step_case, step_pairs, step_targets
from geexp.config.benchmark import StepSettings
from geexp.config.catalog import BACKBONES
from geexp.config.schema import ModelConfig, OptimConfig
from geexp.training.optimizer import make_sgd

_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_WARM_UP = 1  # a step is long enough to touch all the memory that it needs
_REMARKS = [
    "/ plain: over the same network without Gather-Excite, in the same round (low-high over the rounds). kept: for the "
    "backward pass, without parameters; peak: of torch's allocator during the step, beyond parameters and momenta.",
    "timm: its GatherExcite in the same places of the same network, repaired where its constructor fails; its global "
    "convolution goes without the padding that makes it another operator.",
]


def benchmark_steps(settings: StepSettings) -> Comparison:
    """Measure what ``settings`` name.

    Raises:
        ConfigError: for ``device=cuda`` without a GPU.
    """
    clock = clock_for(settings.device)
    cases, rows = [*product(step_pairs(settings), settings.layouts)], []
    with progress("measuring", len(cases) * (_WARM_UP + settings.rounds)) as advance:
        for (variant, extent), layout in cases:
            rows += _rows(variant, extent, layout, settings, clock, advance)
            gc.collect()  # a network of some hundred megabytes, and its blocks know each other
    columns = [
        Column("ms", "step", scale=1e3, digits=1),
        Column("/ plain", "step", against=(PLAIN,), digits=3),
        Column("kept MB", "saved", scale=1e-6, digits=0),
        Column("/ plain", "saved", against=(PLAIN,)),
        Column("peak MB", "peak", scale=1e-6, digits=0),
        Column("/ plain", "peak", against=(PLAIN,)),
    ]
    network = f"{settings.model.name}{', compiled' if settings.compile else ''}"
    title = f"Training step of {network}, batch {settings.batch_size}, {settings.precision}, {settings.device}"
    return Comparison(title, columns, rows, step_targets(settings.device), _REMARKS)


def _rows(
    variant: str, extent: int | str, layout: str, settings: StepSettings, clock: Clock, advance: Advance
) -> list[Row]:
    networks = _networks(settings, variant, extent)
    steps = {name: Step(network, layout, settings) for name, network in networks.items()}
    times = interleaved(steps, rounds=settings.rounds, warm_up=_WARM_UP, clock=clock, advance=advance)
    case = step_case(settings.model.name, variant, extent, layout, settings.precision)
    return [
        Row(case, name, {"step": times[name]}, {"saved": step.saved(), "peak": step.peak()})
        for name, step in steps.items()
    ]


def _networks(settings: StepSettings, variant: str, extent: Any) -> dict[str, nn.Module]:
    model = asdict(settings.model)
    return {
        PLAIN: build_model(**model),
        **{
            name: build_model(**model, ge=variant, extent=extent, implementation=name)
            for name in settings.implementations
        },
        "timm": _with_timms(settings.model, variant, extent),
    }


def _with_timms(model: ModelConfig, variant: str, extent: Any) -> nn.Module:
    """The same network with timm's operator in every block."""
    network, size = build_model(**asdict(model)), BACKBONES[model.name].image_size
    shapes = slot_shapes(network, (3, size, size))
    for place, block in blocks(network).items():
        _, C, H, W = shapes[place]
        setattr(block, slot(block), RepairedTimm(C, variant=variant, extent=extent, size=(H, W)))
    return network


class Step:
    """A network with its optimizer and a batch; called, it makes one step."""

    def __init__(self, network: nn.Module, layout: str, settings: StepSettings) -> None:
        facts, device = BACKBONES[settings.model.name], torch.device(settings.device)
        memory_format = _MEMORY_FORMATS[layout]
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch_size, 3, facts.image_size, facts.image_size)
        self.images = torch.randn(shape, generator=generator).to(device, memory_format=memory_format)
        self.labels = torch.randint(facts.num_classes, shape[:1], generator=generator).to(device)
        self.network = network.to(device).train()
        self.network.to(memory_format=memory_format)  # type: ignore[call-overload]  # its stub knows no such thing
        self.optimizer = make_sgd(self.network, OptimConfig(lr=1e-3))
        self.half = settings.precision == "bf16-mixed"
        if settings.compile:
            self.network.compile()

    def loss(self) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.half):
            return F.cross_entropy(self.network(self.images), self.labels)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def saved(self) -> int:
        """Bytes kept between forward and backward."""
        return saved_bytes(self.loss, self.network.parameters())

    def peak(self) -> int:
        """Bytes that a step needs at most beyond parameters and momenta."""
        self.optimizer.zero_grad(set_to_none=True)
        return peak_bytes(self, self.images.device.type)
