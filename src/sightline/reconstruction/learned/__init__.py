"""Learned geometry: networks that see cameras and depth in pictures, behind one interface."""

from sightline.reconstruction.learned.vggt import VggtEstimator, VggtOmegaEstimator

__all__ = ["VggtEstimator", "VggtOmegaEstimator"]
