"""What the compilers make of the tail's Triton kernels, without a GPU."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# Arguments that are maps, and therefore of the network's dtype; all others are float32.
_MAPS = ("z", "shortcut", "out", "grad", "grad_sum", "grad_z", "weight", "logits")
_GATHERED = ("plane", "gathered", "grad_gathered", "grad_logits")  # maps, too, if the extent is finite
_NUMBERS = {"N": "i32", "PER": "i32", "eps": "fp32", "share": "fp32"}


@dataclass(frozen=True)
class Code:
    """One kernel: registers per thread, spilled bytes, and how often each kind of instruction stands in the PTX.

    Kinds are loads and stores of global memory, such as ``ld.global.v4.b32``, and divisions of integers, ``div``.
    """

    registers: int
    spilled: int
    instructions: Counter[str]


def compiled(
    kernel: str,
    C: int,
    side: int,
    dtype: torch.dtype,
    *,
    arch: int,
    contiguous: bool = False,
    weighted: bool = True,
    extent: int | None = None,
) -> Code:
    """A kernel for square images, as its arguments would be specialised in a training; ``extent`` is None if global."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from geexp.operators.tail import global_kernels, window_kernels
    from geexp.operators.tail.launch import constants, window_constants

    maps = _MAPS if extent is None else _MAPS + _GATHERED
    if extent is None:
        function = getattr(global_kernels, kernel)
        sizes = constants(kernel, C, side * side, contiguous=contiguous, weighted=weighted)
    else:
        function, step = getattr(window_kernels, kernel), 2 if weighted else extent
        grids = [(-(-side // e), -(-side // e)) for e in (step, extent)]
        sizes = window_constants(kernel, C, (side, side), step, *grids, contiguous=contiguous)
    flags = {
        "WEIGHTED": weighted,
        "ON_BATCH": True,
        "UPDATE": True,
        "OF_LOGITS": True,
        "OF_NORM": True,
        "PADDED": False,
    }
    known = {**sizes, **flags, "ACC": global_kernels.accumulator(torch.float32)}
    fixed = {name: known[name] for name in function.arg_names if name in known}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, name in enumerate(function.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = _NUMBERS[name]
        else:
            signature[name] = _TYPES[dtype] if name in maps else "*fp32"
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, fixed, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    ptx = made.asm["ptx"]
    kinds = re.findall(r"\b(?:ld|st)\.global[\w.]*|\b(?:div|rem)(?=\.[su]\d)", ptx)
    return Code(*_resources(made.asm["cubin"]), Counter(kinds))


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"(\w+):(\d+)", said))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])
