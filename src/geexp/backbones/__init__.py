"""Backbones with a Gather-Excite slot in each residual block; ``anatomy`` documents the interface for custom ones."""

from geexp.backbones.anatomy import block_outputs, blocks, stages
from geexp.backbones.build import add_gather_excite, build_model
from geexp.backbones.timm_models import register_timm_models

__all__ = ["add_gather_excite", "block_outputs", "blocks", "build_model", "register_timm_models", "stages"]
