"""Gather and excite operators: plain PyTorch modules, independent of Hydra and Lightning."""

from geexp.operators.excite import Excite, ExciteSubnetwork, excite
from geexp.operators.gather import (
    IMPLEMENTATIONS,
    ConvGather,
    DepthwiseProduct,
    GlobalConvGather,
    PoolGather,
    check_extent,
)
from geexp.operators.gather_excite import VARIANTS, GatherExcite
from geexp.operators.tail import average_excite_tail, gather_excite_tail, tail_failure, takes_kernels, takes_tail

__all__ = [
    "IMPLEMENTATIONS",
    "VARIANTS",
    "ConvGather",
    "DepthwiseProduct",
    "Excite",
    "ExciteSubnetwork",
    "GatherExcite",
    "GlobalConvGather",
    "PoolGather",
    "average_excite_tail",
    "check_extent",
    "excite",
    "gather_excite_tail",
    "tail_failure",
    "takes_kernels",
    "takes_tail",
]
