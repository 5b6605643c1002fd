"""What lies between the gathered values and the gate's logits, in a graph of its own within the fused tail's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geexp.operators.gather import ConvGather, GlobalConvGather
from geexp.operators.gather_excite import GatherExcite

Graph = tuple[Tensor, Sequence[Tensor], Tensor]


def network_of(operator: GatherExcite) -> nn.Module | None:
    """What maps the gathered values, ``[N, C, h, w]``, to the gate's logits; None for the identity.

    For a parametrised gather these are the values after its first, depth-wise convolution.
    """
    gather, transform = operator.gather, operator.excite.transform
    steps = list(gather.children())[1:] if isinstance(gather, ConvGather | GlobalConvGather) else []
    if not isinstance(transform, nn.Identity):
        steps.append(transform)
    return nn.Sequential(*steps) if steps else None


def through(network: nn.Module, parameters: tuple[Tensor, ...], gathered: Tensor, z: Tensor) -> Graph:
    """The input, the parameters and the output of ``network`` in a graph of its own, which backward enters."""
    # In half precision without autocast the parameters are in half precision, too.
    dtype = gathered.dtype if torch.is_autocast_enabled(z.device.type) else z.dtype
    leaf = gathered.to(dtype).detach().requires_grad_()
    with torch.enable_grad():
        logits = network(leaf)
    return leaf, parameters, logits


def back_through(graph: Graph, of_logits: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the gathered values and of the parameters."""
    leaf, parameters, logits = graph
    wanted = [leaf, *(p for p in parameters if p.requires_grad)]
    # Retained, as the outer graph may be; it is small.
    found = iter(torch.autograd.grad(logits, wanted, of_logits.to(logits.dtype).view_as(logits), retain_graph=True))
    of_leaf = next(found)
    return of_leaf, [next(found) if p.requires_grad else None for p in parameters]
