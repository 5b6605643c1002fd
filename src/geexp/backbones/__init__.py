"""Backbones with one slot per residual block for Gather-Excite; the contract for a user's own is in ``anatomy``."""

from geexp.backbones.anatomy import block_outputs, blocks, stages
from geexp.backbones.build import add_gather_excite, build_model
from geexp.backbones.timm_models import register_timm_models

__all__ = ["add_gather_excite", "block_outputs", "blocks", "build_model", "register_timm_models", "stages"]
