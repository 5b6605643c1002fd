"""Pictures of the report: the sizes and formats of all pictures."""

from geexp.analysis.drawing import canvas, save

__all__ = ["canvas", "save"]
