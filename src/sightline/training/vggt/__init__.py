"""Train VGGT or VGGT-Omega on views with cameras and depth: ``sightline train vggt``."""

from sightline.training.vggt.settings import VggtSettings
from sightline.training.vggt.task import VggtTask

__all__ = ["VggtSettings", "VggtTask"]
