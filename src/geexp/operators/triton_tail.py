"""The tail of a residual block by Triton kernels: relu(shortcut + GE(BN(branch))) for gathers of global extent.

Forward makes 4 passes over full-size tensors (read the branch; read branch and shortcut, write the result), backward 7
(read gradient, result and branch, write the shortcut's gradient; read that and the branch, write the branch's), as the
tail of a block without Gather-Excite would. The gathered values are known after the first sweep, because BN is affine;
what follows them on ``[N, C]`` - the gathered map's own BN, the excite sub-network - is left to PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geexp.operators.gather import DepthwiseProduct, GlobalConvGather
from geexp.operators.gather_excite import GatherExcite
from geexp.operators.tail import count_batch, differentiable_backward, takes_tail
from geexp.operators.torch_private import has_tensor_hooks

_PROGRAMS = 1024  # which occupy a GPU several times over
_IMAGES = 64  # that the kernels of the small gradients take at a time

Graph = tuple[Tensor, Sequence[Tensor], Tensor]


def takes_kernels(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    """Whether ``gather_excite_tail`` supports these inputs, with the same result as the plain composition."""
    if not operator.is_global or not takes_tail(norm, branch, shortcut):
        return False
    if has_tensor_hooks(operator):  # backward would call them twice, within the tail and behind it
        return False
    product = _product(operator)  # a map of another size gets the error message of the plain composition
    return product is None or branch.shape[1:] == (product.in_channels, *product.kernel_size)


def gather_excite_tail(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(shortcut + operator(norm(branch)))``; updates running statistics as the modules do.

    Args:
        operator: of global extent, averaging or parametrised.
        norm: with weight and bias, in training or eval mode; see ``takes_kernels``.
        branch, shortcut: ``[N, C, H, W]`` of one dtype, both contiguous or both channels_last.

    Returns:
        ``[N, C, H, W]``, in the branch's memory format. Backward saves the branch and this result. Double backward
        works, at the cost of the plain composition.
    """
    product, network = _product(operator), _network(operator)
    parameters = () if network is None else tuple(network.parameters())
    weight = None if product is None else product.weight
    with torch.cuda.device_of(branch):
        return _Tail.apply(branch, shortcut, norm.weight, norm.bias, weight, norm, network, *parameters)


def _product(operator: GatherExcite) -> DepthwiseProduct | None:
    gather = operator.gather
    return gather[0] if isinstance(gather, GlobalConvGather) else None  # type: ignore[return-value]


def _network(operator: GatherExcite) -> nn.Module | None:
    """What maps the gathered values to the gate's logits, ``[N, C, 1, 1]``; None for the identity."""
    gather, transform = operator.gather, operator.excite.transform
    steps = list(gather.children())[1:] if isinstance(gather, GlobalConvGather) else []
    if not isinstance(transform, nn.Identity):
        steps.append(transform)
    return nn.Sequential(*steps) if steps else None


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        shortcut: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor | None,
        norm: nn.BatchNorm2d,
        network: nn.Module | None,
        *parameters: Tensor,
    ) -> Tensor:
        on_batch = norm.training or norm.running_mean is None
        moves = norm.training and norm.running_mean is not None
        running = norm.running_mean, norm.running_var
        kernels = _Kernels(z, weighted=weight is not None, on_batch=on_batch)
        lines, weight_sum = _in_memory_order(weight, z)
        sums, squares, dots, mean, inverse, plane, gathered = kernels.empty("NSC NSC NSC C C NC NC")
        kernels.call("sum_planes", z, lines, sums, squares, dots, kernels.N)
        kernels.call(
            "normalise",
            *(z, sums, squares, dots, weight_sum, gamma, beta, *running, mean, inverse, plane, gathered),
            *(kernels.N, norm.eps, count_batch(norm) if moves else 0.0),
            UPDATE=moves,
        )
        ctx.graph, logits = None, gathered
        if network is not None:
            ctx.graph = _through(network, parameters, gathered, z)
            logits = ctx.graph[-1].detach()
        out = torch.empty_like(z)
        kernels.call("join", z, shortcut, logits, gamma, beta, mean, inverse, out)
        ctx.network, ctx.eps = network, norm.eps
        frozen = (None, None) if on_batch else running
        ctx.save_for_backward(z, out, gamma, beta, *frozen, weight, mean, inverse, plane, logits, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, out, gamma, beta, frozen_mean, _, weight, mean, inverse, plane, logits, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            first, rest = differentiable_backward(
                ctx.saved_tensors[:6], ctx.eps, grads[0], weight, ctx.network, parameters
            )
            return *first, None, None, *rest
        kernels = _Kernels(z, weighted=weight is not None, on_batch=frozen_mean is None)
        lines, weight_sum = _in_memory_order(weight, z)
        format_of_z = torch.contiguous_format if z.is_contiguous() else torch.channels_last
        grad = grads[0].contiguous(memory_format=format_of_z)
        grad_sum, grad_z = torch.empty_like(z), torch.empty_like(z)
        totals, moments, of_gathered, of_gamma, of_beta = kernels.empty("NSC NSC NC C C")
        kernels.call("split_gradient", grad, out, z, mean, grad_sum, totals, moments)

        def small(*, of_logits: bool, of_norm: bool) -> None:
            known = totals, moments, logits, plane, weight_sum, gamma, beta, inverse
            flags = {"OF_LOGITS": of_logits, "OF_NORM": of_norm}
            kernels.call("small_gradients", *known, of_gathered, of_gamma, of_beta, kernels.N, **flags)

        of_parameters: list[Tensor | None] = []
        if ctx.graph is None:
            small(of_logits=True, of_norm=True)
        else:
            small(of_logits=True, of_norm=False)
            of_gathered, of_parameters = _back_through(ctx.graph, of_gathered)
            small(of_logits=False, of_norm=True)
        of_weight, given = None, (grad_sum, z, lines, logits, of_gathered, gamma, beta, mean, inverse)
        if weight is None:
            kernels.call("branch_gradient", *given, of_gamma, of_beta, grad_z, kernels.N)
        else:
            (of_lines,) = kernels.empty("GLC")
            out_and_sizes = grad_z, of_lines, kernels.N, kernels.images_of_group
            kernels.call("branch_and_weight_gradient", *given, of_gamma, of_beta, *out_and_sizes)
            of_weight = of_lines.sum(0)
            of_weight = of_weight.view(z.shape[1], -1) if z.is_contiguous() else of_weight.view(-1, z.shape[1]).t()
            of_weight = of_weight.to(weight.dtype).reshape(weight.shape)
        of_channels = of_gamma.to(gamma.dtype), of_beta.to(beta.dtype)
        return grad_z, grad_sum, *of_channels, of_weight, None, None, *of_parameters


def _in_memory_order(weight: Tensor | None, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gather's weight ``[C, 1, H, W]`` as an image of ``z`` lies in memory, in its dtype, and its sums ``[C]``."""
    if weight is None:
        return None, None
    lines = weight.detach().flatten(1).to(z.dtype)  # as a convolution casts it under autocast
    sums = lines.sum(1, dtype=torch.promote_types(z.dtype, torch.float32))
    return (lines if z.is_contiguous() else lines.t()).contiguous(), sums


def _through(network: nn.Module, parameters: tuple[Tensor, ...], gathered: Tensor, z: Tensor) -> Graph:
    """The input, the parameters and the output of ``network`` in a graph of its own, which backward enters."""
    # In half precision without autocast the parameters are in half precision, too.
    dtype = gathered.dtype if torch.is_autocast_enabled(z.device.type) else z.dtype
    leaf = gathered.to(dtype)[:, :, None, None].detach().requires_grad_()
    with torch.enable_grad():
        logits = network(leaf)
    return leaf, parameters, logits


def _back_through(graph: Graph, of_logits: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the gathered values, ``[N, C]``, and of the parameters."""
    leaf, parameters, logits = graph
    wanted = [leaf, *(p for p in parameters if p.requires_grad)]
    # Retained, as the outer graph may be; it is small.
    found = iter(torch.autograd.grad(logits, wanted, of_logits.to(logits.dtype).view_as(logits), retain_graph=True))
    of_leaf = next(found)
    return of_leaf.flatten(1).contiguous(), [next(found) if p.requires_grad else None for p in parameters]


def constants(kernel: str, C: int, L: int, *, contiguous: bool, weighted: bool) -> dict[str, int]:
    """The sizes that a kernel is compiled for: strides, tiles, and the pieces a plane of L pixels is cut in.

    None depends on the batch, so that a batch of another size compiles nothing. A tile has 2048 values or fewer, 16 per
    thread. Where the gather's weight is read, two images share it.
    """
    pieces = -(-L // (1024 if contiguous else 512))
    if contiguous:
        BL = min(128, _power_of_two(L))
        BC = min((1024 if L % 8 else 2048) // BL, _power_of_two(C))  # single values take more registers
    else:
        BC = min(64, _power_of_two(C))
        BL = min(2048 // BC, _power_of_two(L))
    rows = -(-L // (pieces * BL)) * BL
    of_image = {"C": C, "L": L, "SC": L if contiguous else 1, "SL": 1 if contiguous else C, "S": pieces, "ROWS": rows}
    if kernel in ("normalise", "small_gradients"):
        return {**of_image, "BN": _IMAGES, "BC": min(8, _power_of_two(C))}
    images = 2 if weighted and kernel in ("sum_planes", "branch_and_weight_gradient") else 1
    return {**of_image, "BN": images, "BL": max(1, BL // images), "BC": BC}


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class _Kernels:
    """Calls kernels by name for maps like ``z``, with their grids and constants."""

    def __init__(self, z: Tensor, *, weighted: bool, on_batch: bool) -> None:
        from geexp.operators import triton_kernels  # not at import: it needs Triton

        self.module: Any = triton_kernels
        self.like = z
        self.kind = torch.promote_types(z.dtype, torch.float32)
        self.flags = {"WEIGHTED": weighted, "ON_BATCH": on_batch, "ACC": triton_kernels.accumulator(self.kind)}
        self.N, self.C, H, W = z.shape
        self.L = H * W
        own = self._constants("branch_and_weight_gradient")
        # The weight's gradient is summed within groups of images first, enough of them to occupy a GPU.
        programs = -(-self.C // own["BC"]) * -(-self.L // own["BL"])
        images = -(-self.N * programs // _PROGRAMS)
        self.images_of_group = -(-images // own["BN"]) * own["BN"]

    def _constants(self, kernel: str) -> dict[str, int]:
        contiguous, weighted = self.like.is_contiguous(), self.flags["WEIGHTED"]
        return constants(kernel, self.C, self.L, contiguous=contiguous, weighted=weighted)

    def empty(self, shapes: str) -> list[Tensor]:
        """Tensors for results, by letters: N, C, L, S pieces of a plane, G groups of images."""
        sizes = {"N": self.N, "C": self.C, "L": self.L, "S": self._constants("sum_planes")["S"]}
        sizes["G"] = -(-self.N // self.images_of_group)
        return [self.like.new_empty([sizes[letter] for letter in shape], dtype=self.kind) for shape in shapes.split()]

    def call(self, kernel: str, *arguments: Any, **flags: bool) -> None:
        function, sizes = getattr(self.module, kernel), self._constants(kernel)
        tiles = -(-self.C // sizes["BC"])
        grid: tuple[int, ...] = (tiles, sizes["S"], -(-self.N // sizes["BN"]))
        if kernel in ("normalise", "small_gradients"):
            grid = (tiles,)
        elif kernel == "branch_and_weight_gradient":
            grid = (tiles, -(-self.L // sizes["BL"]), -(-self.N // self.images_of_group))
        known = {**sizes, **self.flags, **flags}
        function[grid](*arguments, **{name: known[name] for name in function.arg_names if name in known}, num_warps=4)
