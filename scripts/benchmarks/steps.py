"""Cost of a training step (forward, loss, backward, SGD) with Gather-Excite, relative to the plain network.

    python scripts/benchmarks/steps.py --model resnet50 --batch-size 8

Images and labels are random and on the device. / plain: relative to the same network without Gather-Excite, in the same
round. saved: bytes saved for backward, without parameters; peak: peak memory of the GPU allocator during the step,
without parameters and momenta. timm: the same network with timm's operators, see ``contenders.RepairedTimm``.
"""

import argparse
import gc
import sys
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measuring
from contenders import RepairedTimm
from geexp.backbones import build_model
from geexp.backbones.anatomy import blocks, slot, slot_shapes
from geexp.config.schema import OptimConfig
from geexp.operators import VARIANTS
from geexp.training.optimizer import make_optimizer
from measuring import MEMORY_FORMATS, Row, Target

_ON_GPU = {"rounds": 15, "batch_size": 256, "precision": "bf16-mixed"}
_NUM_CLASSES = 1000


def case_of(model: str, variant: str, extent: int | str, layout: str, precision: str) -> str:
    return f"{model}, {measuring.operator_name(variant, extent)}, {layout}, {precision}"


def targets_of(device: str) -> Iterator[Target]:
    """Bounds for ResNet-50: on a CPU in float32, on a GPU in bfloat16 at batch 256."""
    precision, bounds = "32-true", {"theta_minus": 1.04, "theta": 1.20, "theta_plus": 1.25}
    if device == "cuda":
        precision, bounds = "bf16-mixed", {"theta_minus": 1.02, "theta": 1.05, "theta_plus": 1.06, "se": 1.06}
    for variant, bound in bounds.items():
        case = case_of("resnet50", variant, "global", "channels_last", precision)
        yield Target(case, "auto", "step", "≤", bound, "plain")
    if device == "cpu":
        for layout in MEMORY_FORMATS:
            case = case_of("resnet50", "theta_minus", "global", layout, precision)
            yield Target(case, "fused", "saved", "≤", 1.01, "plain")


class Step:
    """A network with its optimizer and a batch; each call is one step."""

    def __init__(self, network: nn.Module, layout: str, options: argparse.Namespace) -> None:
        memory_format, generator = MEMORY_FORMATS[layout], torch.Generator().manual_seed(0)
        shape = (options.batch_size, 3, options.image_size, options.image_size)
        self.images = torch.randn(shape, generator=generator).to(options.device, memory_format=memory_format)
        self.labels = torch.randint(_NUM_CLASSES, shape[:1], generator=generator).to(options.device)
        self.network = network.to(options.device).to(memory_format=memory_format).train()
        self.optimizer = make_optimizer(self.network, OptimConfig(lr=1e-3))
        self.half = options.precision == "bf16-mixed"
        if options.compile:
            self.network.compile()

    def loss(self) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.half):
            return F.cross_entropy(self.network(self.images), self.labels)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def amounts(self) -> dict[str, float]:
        saved = measuring.saved_bytes(self.loss, self.network.parameters())
        self.optimizer.zero_grad()
        return {"saved": saved} | measuring.peak_bytes(self, self.images.device.type)


def networks_of(options: argparse.Namespace, variant: str, extent: int | str) -> dict[str, nn.Module]:
    """The network without operators, with ours by implementation, and with timm's."""

    def build(**ge: object) -> nn.Module:
        return build_model(options.model, num_classes=_NUM_CLASSES, image_size=options.image_size, **ge)

    networks = {"plain": build()}
    networks |= {name: build(ge=variant, extent=extent, implementation=name) for name in options.implementations}
    if options.only_ours:
        return networks
    networks["timm"] = build()
    shapes = slot_shapes(networks["timm"], (3, options.image_size, options.image_size))
    for name, block in blocks(networks["timm"]).items():
        _, C, H, W = shapes[name]
        setattr(block, slot(block), RepairedTimm(C, variant=variant, extent=extent, size=(H, W)))
    return networks


def measure(
    variant: str, extent: int | str, layout: str, options: argparse.Namespace, clock: measuring.Clock
) -> Iterator[Row]:
    case = case_of(options.model, variant, extent, layout, options.precision)
    print(f"measuring {case}", file=sys.stderr)
    networks = networks_of(options, variant, extent)
    steps = {name: Step(network, layout, options) for name, network in networks.items()}
    seconds = measuring.interleaved(steps, clock, rounds=options.rounds)
    for name, step in steps.items():
        yield Row(case, name, {"step": seconds[name]}, step.amounts())


def main() -> None:
    parser = measuring.operator_parser(__doc__)
    parser.add_argument("--model", default="resnet50", help="any name that geexp.build_model knows")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.set_defaults(batch_size=4, layouts=["channels_last"], implementations=["auto", "fused"])
    options = measuring.parse(parser, _ON_GPU)
    clock, rows = measuring.clock_for(options.device), list[Row]()
    operators = product(options.variants or VARIANTS, options.extents or ["global"])
    for (variant, extent), layout in product(operators, options.layouts):
        rows += measure(variant, extent, layout, options, clock)
        gc.collect()  # networks of hundreds of megabytes, in reference cycles
    network = f"{options.model}, compiled" if options.compile else options.model
    title = f"Training step of {network}, batch {options.batch_size}, {options.precision}, {options.device}"
    targets, plain = targets_of(options.device), {"/ plain": ["plain"]}
    measuring.report(title, rows, against=plain, targets=targets, remarks=__doc__, options=options)


if __name__ == "__main__":
    main()
