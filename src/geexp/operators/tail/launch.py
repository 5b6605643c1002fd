"""Sizes and grids of the Triton kernels of a residual block's tail, and their launch."""

from typing import Any

import torch
from torch import Tensor, nn

from geexp.operators.gather import Size
from geexp.operators.tail.compiled import count_batch

_PROGRAMS = 1024  # which occupy a GPU several times over
_IMAGES = 64  # that the kernels of the small gradients take at a time


def constants(kernel: str, C: int, L: int, *, contiguous: bool, weighted: bool) -> dict[str, int]:
    """The sizes that a kernel is compiled for: strides, tiles, and the pieces a plane of L pixels is cut in.

    None depends on the batch, so that a batch of another size compiles nothing. A tile has 2048 values or fewer, 16 per
    thread. Where the gather's weight is read, two images share it.
    """
    pieces = -(-L // (1024 if contiguous else 512))
    if contiguous:
        BL = min(128, power_of_two(L))
        BC = min((1024 if L % 8 else 2048) // BL, power_of_two(C))  # single values take more registers
    else:
        BC = min(64, power_of_two(C))
        BL = min(2048 // BC, power_of_two(L))
    rows = -(-L // (pieces * BL)) * BL
    of_image = {"C": C, "L": L, "SC": L if contiguous else 1, "SL": 1 if contiguous else C, "S": pieces, "ROWS": rows}
    if kernel in ("normalise", "small_gradients"):
        return {**of_image, "BN": _IMAGES, "BC": min(8, power_of_two(C))}
    images = 2 if weighted and kernel in ("sum_planes", "branch_and_weight_gradient") else 1
    return {**of_image, "BN": images, "BL": max(1, BL // images), "BC": BC}


def power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class Kernels:
    """Calls kernels by name for maps like ``z``, with their grids and constants."""

    def __init__(self, z: Tensor, *, weighted: bool, on_batch: bool) -> None:
        from geexp.operators.tail import global_kernels, window_kernels  # not at import: they need Triton

        self.functions: dict[str, Any] = {**vars(global_kernels), **vars(window_kernels)}
        self.like = z
        self.kind = torch.promote_types(z.dtype, torch.float32)
        self.flags = {"WEIGHTED": weighted, "ON_BATCH": on_batch, "ACC": global_kernels.accumulator(self.kind)}
        self.N, self.C, H, W = z.shape
        self.L = H * W

    @property
    def images_of_group(self) -> int:
        """The weight's gradient is summed within groups of images first, enough of them to occupy a GPU."""
        own = self._constants("branch_and_weight_gradient")
        programs = -(-self.C // own["BC"]) * -(-self.L // own["BL"])
        images = -(-self.N * programs // _PROGRAMS)
        return -(-images // own["BN"]) * own["BN"]

    def _constants(self, kernel: str) -> dict[str, int]:
        contiguous, weighted = self.like.is_contiguous(), self.flags["WEIGHTED"]
        return constants(kernel, self.C, self.L, contiguous=contiguous, weighted=weighted)

    def empty(self, shapes: str) -> list[Tensor]:
        """Tensors for results, by letters: N, C, L, S pieces of a plane, G groups of images."""
        sizes = {"N": self.N, "C": self.C, "L": self.L, "S": self._constants("sum_planes")["S"]}
        sizes["G"] = -(-self.N // self.images_of_group)
        return [self.like.new_empty([sizes[letter] for letter in shape], dtype=self.kind) for shape in shapes.split()]

    def normalise(
        self, norm: nn.BatchNorm2d, gamma: Tensor, beta: Tensor, lines: Tensor | None, weight_sum: Tensor | None
    ) -> list[Tensor]:
        """BN's mean and inverse deviation, ``[C]``, t and the gathered values, ``[N, C]``. Moves BN's statistics.

        Args:
            lines: the gather's weight as an image lies in memory, and ``weight_sum``, ``[C]``; None for an average.
        """
        sums, squares, dots, *found = self.empty("NSC NSC NSC C C NC NC")
        self.call("sum_planes", self.like, lines, sums, squares, dots, self.N)
        moves = norm.training and norm.running_mean is not None
        known = sums, squares, dots, weight_sum, gamma, beta, norm.running_mean, norm.running_var
        share = count_batch(norm) if moves else 0.0
        self.call("normalise", self.like, *known, *found, self.N, norm.eps, share, UPDATE=moves)
        return found

    def call(self, kernel: str, *arguments: Any, **flags: bool) -> None:
        function, known = self.functions[kernel], {**self._constants(kernel), **self.flags, **flags}
        fixed = {name: known[name] for name in function.arg_names if name in known}
        function[self._grid(kernel, known)](*arguments, **fixed, num_warps=4)

    def _grid(self, kernel: str, sizes: dict[str, Any]) -> tuple[int, ...]:
        tiles = -(-self.C // sizes["BC"])
        if kernel in ("normalise", "small_gradients"):
            return (tiles,)
        if kernel == "branch_and_weight_gradient":
            return tiles, -(-self.L // sizes["BL"]), -(-self.N // self.images_of_group)
        return tiles, sizes["S"], -(-self.N // sizes["BN"])


def window_constants(
    kernel: str, C: int, size: Size, extent: int, windows: Size, cells: Size, *, contiguous: bool
) -> dict[str, int]:
    """As ``constants``, for maps of this ``size``, with the grids of the gather's windows and of the gate's cells."""
    (H, W), (HM, WM) = size, cells if kernel in ("join_cells", "split_gradient_cells") else windows
    known = {"C": C, "H": H, "W": W, "E": extent, "WM": WM, "HM": HM, "M": HM * WM}

    def strides(pixels: int) -> Size:
        return (pixels, 1) if contiguous else (1, C)

    known["SC"], known["SL"] = strides(H * W)
    known["MC"], known["ML"] = strides(HM * WM)
    tile, on_map = 2048, kernel in ("join_cells", "branch_gradient_windows")
    if kernel == "weight_gradient_windows":
        tile //= 16
    positions = H * W if on_map else HM * WM
    if contiguous:
        place = min(128 if tile == 2048 else 8, power_of_two(positions))
        known["BC"] = min(tile // place, power_of_two(C))
    else:
        known["BC"] = min(max(64, tile // 2 // power_of_two(positions)), power_of_two(C))
        place = min(tile // known["BC"], power_of_two(positions))
    known["BL" if on_map else "BP"] = place
    known["S"] = -(-positions // place)
    if kernel == "branch_gradient_windows":
        known |= {"HG": HM, "WG": WM, "GC": known["MC"], "GL": known["ML"], "HM": cells[0], "WM": cells[1]}
        known["MC"], known["ML"] = strides(cells[0] * cells[1])
    known["EY"], known["EX"] = -(-H // known["HM"]), -(-W // known["WM"])
    return known


class WindowKernels(Kernels):
    """``Kernels`` for a gather of finite ``extent``; its grids of windows and of the gate's cells."""

    def __init__(
        self, z: Tensor, extent: int, windows: Size, cells: Size, *, weighted: bool, padded: bool, on_batch: bool
    ) -> None:
        super().__init__(z, weighted=weighted, on_batch=on_batch)
        self.flags["PADDED"] = padded
        self.extent, self.windows, self.cells = extent, windows, cells

    @property
    def images_of_group(self) -> int:
        tiles = -(-self.C // self._constants("weight_gradient_windows")["BC"])
        return -(-self.N * tiles // _PROGRAMS)

    def partial_sums(self, kernel: str) -> Tensor:
        """For the two kinds of partial sums of this kernel, ``[2, N, pieces of a plane, C]``."""
        return self.like.new_empty((2, self.N, self._constants(kernel)["S"], self.C), dtype=self.kind)

    def _constants(self, kernel: str) -> dict[str, int]:
        size, contiguous = (self.like.shape[2], self.like.shape[3]), self.like.is_contiguous()
        return window_constants(kernel, self.C, size, self.extent, self.windows, self.cells, contiguous=contiguous)

    def _grid(self, kernel: str, sizes: dict[str, Any]) -> tuple[int, ...]:
        tiles = -(-self.C // sizes["BC"])
        if kernel == "weight_gradient_windows":
            return tiles, -(-self.N // self.images_of_group)
        return tiles, sizes["S"], self.N
