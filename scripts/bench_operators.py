"""The operators against their plain composition, and against timm's where timm's can be built.

    python scripts/bench_operators.py [--batch 8] [--rounds 15] [--json FILE]

Forward and forward+backward of one operator at ResNet-50's stage sizes, in both memory formats: the ratio of CPU times
(above 1: ours is faster), interleaved in one process, medians; and the bytes kept for backward over the bytes of x.
"plain" is what one writes first: pool or convolve, resize the gate to full resolution, sigmoid, multiply.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from geexp import GatherExcite

SHAPES = {"56x56x256": (256, 56), "14x14x1024": (1024, 14)}
CASES = [("theta_minus", 8), ("theta_minus", "global"), ("theta", 8), ("theta", "global"), ("theta_plus", "global")]
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Plain(nn.Module):
    """The same operator without any of our formulations; a global convolution is nn.Conv2d's."""

    def __init__(self, ours: GatherExcite) -> None:
        super().__init__()
        self.transform = ours.excite.transform
        self.gather = ours.gather
        if ours.variant in ("theta", "theta_plus") and ours.extent == "global":
            product, *rest = ours.gather
            conv = nn.Conv2d(ours.channels, ours.channels, product.kernel_size, groups=ours.channels, bias=False)
            self.gather = nn.Sequential(conv, *rest)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.transform(self.gather(x))
        if logits.shape[2:] != (1, 1):
            logits = F.interpolate(logits, size=x.shape[2:])
        return x * torch.sigmoid(logits)


def seconds(module: nn.Module, x: Tensor, *, backward: bool) -> float:
    start = time.process_time()
    if backward:
        module(x).backward(torch.ones_like(x))
    else:
        with torch.no_grad():
            module(x)
    return time.process_time() - start


def ratio(plain: nn.Module, ours: nn.Module, x: Tensor, *, backward: bool, rounds: int) -> float:
    pairs = []
    for round_ in range(rounds + 3):
        pair = [seconds(module, x, backward=backward) for module in (plain, ours)]
        if round_ >= 3:  # warm-up
            pairs.append(pair[0] / pair[1])
    return statistics.median(pairs)


def saved(module: nn.Module, x: Tensor) -> float:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in parameters) / (x.numel() * x.element_size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(s, c, f) for s in SHAPES for c in CASES for f in FORMATS]
    rows = []
    for shape, (variant, extent), layout in track(jobs, "measuring", console=Console(stderr=True)):
        channels, size = SHAPES[shape]
        ours = GatherExcite(channels, variant=variant, extent=extent, size=size).to(memory_format=FORMATS[layout])
        plain = Plain(ours).to(memory_format=FORMATS[layout])
        x = torch.randn(options.batch, channels, size, size).contiguous(memory_format=FORMATS[layout]).requires_grad_()
        rows.append(
            {
                "shape": shape,
                "operator": f"{variant} {extent}",
                "layout": layout,
                "forward": ratio(plain, ours, x, backward=False, rounds=options.rounds),
                "forward_backward": ratio(plain, ours, x, backward=True, rounds=options.rounds),
                "saved_plain": saved(plain, x),
                "saved_ours": saved(ours, x),
            }
        )
    title = f"batch {options.batch}, float32, one thread; torch {torch.__version__}, {platform.machine()}"
    table = Table(title=title)
    for heading in ("shape", "operator", "layout"):
        table.add_column(heading, no_wrap=True)
    for heading in ("fwd", "fwd+bwd", "kept: plain", "ours"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row[k]:.2f}" for k in ("forward", "forward_backward", "saved_plain", "saved_ours"))
        table.add_row(row["shape"], row["operator"], row["layout"], *figures)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"title": title, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
