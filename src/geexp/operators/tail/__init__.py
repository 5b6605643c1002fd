"""The end of a residual block as one operator: relu(shortcut + GE(BN(branch))). It changes speed and memory only.

``compiled`` is for a CPU. ``kernels`` is for a GPU, with ``global_extent`` and ``finite_extent``; ``choices`` measures
whether it is faster there.
"""

from geexp.operators.tail.compiled import average_excite_tail, tail_failure, takes_tail
from geexp.operators.tail.kernels import gather_excite_tail, takes_kernels

__all__ = ["average_excite_tail", "gather_excite_tail", "tail_failure", "takes_kernels", "takes_tail"]
