"""Gather and excite operators: plain PyTorch modules that know nothing of Hydra or Lightning."""

from geexp.operators.excite import Excite, ExciteSubnetwork, excite
from geexp.operators.gather import (
    ConvGather,
    DepthwiseProduct,
    GlobalConvGather,
    PoolGather,
    check_extent,
)
from geexp.operators.gather_excite import VARIANTS, GatherExcite

__all__ = [
    "VARIANTS",
    "ConvGather",
    "DepthwiseProduct",
    "Excite",
    "ExciteSubnetwork",
    "GatherExcite",
    "GlobalConvGather",
    "PoolGather",
    "check_extent",
    "excite",
]
