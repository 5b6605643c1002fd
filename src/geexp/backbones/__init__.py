"""Backbones with one slot per residual block where Gather-Excite goes."""

from geexp.backbones.anatomy import block_outputs, blocks, stages
from geexp.backbones.build import build_model
from geexp.backbones.placement import add_gather_excite
from geexp.backbones.timm_models import register_timm_models

__all__ = ["add_gather_excite", "block_outputs", "blocks", "build_model", "register_timm_models", "stages"]
