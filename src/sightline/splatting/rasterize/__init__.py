"""Differentiable Gaussian rasterisation with gsplat's call."""

from sightline.splatting.rasterize.api import RENDER_MODES, rasterization

__all__ = ["RENDER_MODES", "rasterization"]
