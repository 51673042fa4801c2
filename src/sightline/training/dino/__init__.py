"""``sightline train dino``: self-distillation of a vision transformer on the user's own pictures."""

from sightline.training.dino.settings import DinoSettings
from sightline.training.dino.task import DinoTask

__all__ = ["DinoSettings", "DinoTask"]
