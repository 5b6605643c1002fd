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
    kernel: str, C: int, L: int, dtype: torch.dtype, *, arch: int, contiguous: bool = False, weighted: bool = True
) -> Code:
    """A kernel of ``triton_kernels`` for images of L pixels, as its arguments would be specialised in a training."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from geexp.operators import triton_kernels
    from geexp.operators.triton_tail import constants

    function = getattr(triton_kernels, kernel)
    flags = {"WEIGHTED": weighted, "ON_BATCH": True, "UPDATE": True, "OF_LOGITS": True, "OF_NORM": True}
    known = {**constants(kernel, C, L, contiguous=contiguous, weighted=weighted), **flags}
    known["ACC"] = triton_kernels.accumulator(torch.float32)
    fixed = {name: known[name] for name in function.arg_names if name in known}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, name in enumerate(function.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = _NUMBERS[name]
        else:
            signature[name] = _TYPES[dtype] if name in _MAPS else "*fp32"
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
