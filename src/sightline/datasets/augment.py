"""What changes from sample to sample in training: colours, sizes, numbers of views.

The numbers are those of the published recipes of VGGT and DUSt3R; all randomness comes from the
given generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError
from sightline.types import MultiView

Images = Float[Tensor, "S 3 H W"]
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order, then perhaps grey.

    A strength x draws a factor from 1 - x to 1 + x; that of hue turns by up to x of the circle.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    probability: float = 0.9
    joint: float = 0.3
    """How often all views of a sample change alike; otherwise each by itself."""
    grey: float = 0.05
    """How often colour is taken away."""

    def __call__(self, sample: MultiView, rng: np.random.Generator) -> MultiView:
        """Return the sample with other colours."""
        if rng.random() < self.joint:
            images = self._change(sample.images, rng)
        else:
            images = torch.cat([self._change(image[None], rng) for image in sample.images])
        return replace(sample, images=images)

    def _change(self, images: Images, rng: np.random.Generator) -> Images:
        if rng.random() < self.probability:
            steps: list[tuple[Callable[[Images, float], Images], float]] = [
                (_brighten, self._factor(self.brightness, rng)),
                (_stretch, self._factor(self.contrast, rng)),
                (_saturate, self._factor(self.saturation, rng)),
                (turn_hue, float(rng.uniform(-self.hue, self.hue))),
            ]
            for index in rng.permutation(len(steps)):
                change, amount = steps[index]
                images = change(images, amount).clamp(0, 1)
        if rng.random() < self.grey:
            images = _grey(images).expand_as(images)
        return images

    @staticmethod
    def _factor(strength: float, rng: np.random.Generator) -> float:
        return float(rng.uniform(max(1 - strength, 0), 1 + strength))


def _grey(images: Images) -> Float[Tensor, "S 1 H W"]:
    return (images * images.new_tensor(_GREY)[:, None, None]).sum(-3, keepdim=True)


def _brighten(images: Images, factor: float) -> Images:
    return images * factor


def _stretch(images: Images, factor: float) -> Images:
    middle = _grey(images).mean((-3, -2, -1), keepdim=True)
    return middle + (images - middle) * factor


def _saturate(images: Images, factor: float) -> Images:
    grey = _grey(images)
    return grey + (images - grey) * factor


def turn_hue(images: Images, turn: float) -> Images:
    """Turn the hue by a share of the circle; value and saturation of HSV stay."""
    high, low = images.amax(-3, keepdim=True), images.amin(-3, keepdim=True)
    span = (high - low).clamp_min(1e-12)
    red, green, blue = images.unbind(-3)
    top = high.squeeze(-3)
    width = span.squeeze(-3)
    hue = torch.where(
        top == red,
        (green - blue) / width,
        torch.where(top == green, 2 + (blue - red) / width, 4 + (red - green) / width),
    )
    hue = hue / 6 + turn
    # Each colour is a plateau of the hue circle, a third of the circle after the one before.
    offsets = images.new_tensor([0.0, 2 / 3, 1 / 3])[:, None, None]
    ramp = ((hue.unsqueeze(-3) + offsets) % 1.0 * 6 - 3).abs() - 1
    return low + (high - low) * ramp.clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShapes:
    """How many samples, views and pixels a step has: drawn anew for each, as VGGT is trained."""

    frames: tuple[int, int] = (2, 24)
    """Fewest and most views of a sample; each number is as likely."""
    images_per_step: int = 48
    """Samples of a step times views, at most."""
    width: int = 518
    aspect: tuple[float, float] = (0.33, 1.0)
    """Least and most height over width, in steps of a hundredth."""
    patch_size: int = 14
    """Heights are rounded down to a multiple of it."""

    def __post_init__(self) -> None:
        """Refuse what leaves no batch.

        Raises:
            InputError: If a range is empty, or the width is no multiple of the patch.
        """
        few, most = self.frames
        low, high = self.aspect
        if not (1 <= few <= most <= self.images_per_step):
            msg = (
                f"expected frames from 1 to images_per_step ({self.images_per_step}), got "
                f"{few} to {most}; change frames or images_per_step"
            )
            raise InputError(msg)
        if self.width % self.patch_size or not 0 < low <= high:
            side = max(round(self.width / self.patch_size), 1) * self.patch_size
            msg = (
                f"expected a width in whole patches of {self.patch_size} and an aspect above 0, "
                f"got width {self.width} and aspect {low} to {high}; the nearest width is {side}"
            )
            raise InputError(msg)
        if int(self.width * low) < self.patch_size:
            msg = (
                f"expected images at least one patch ({self.patch_size}) high, got width "
                f"{self.width} x aspect {low}; raise the aspect"
            )
            raise InputError(msg)

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return samples, views, height and width of a step."""
        views = int(rng.integers(self.frames[0], self.frames[1] + 1))
        aspect = round(float(rng.uniform(*self.aspect)), 2)
        height = int(self.width * aspect) // self.patch_size * self.patch_size
        samples = max(self.images_per_step // views, 1)
        return samples, views, max(height, self.patch_size), self.width


def draw_keep(rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.2)) -> float:
    """Return the share of the largest crop to keep: VGGT's augmentation of scale.

    Shares above one keep all, so that with the published range half of the samples are not cut.
    """
    return min(float(rng.uniform(*scale)), 1.0)
