"""Marks to masks without weights: boxes, points and scribbles, completed by graph cuts."""

import logging
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sightline.io.masks import resize_mask
from sightline.segmentation.proposals import lab_picture, superpixels
from sightline.segmentation.references import Reference

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCutMasker:
    """Masks by GrabCut (Rother et al. 2004) from what a mark says for sure.

    Attributes:
        side: Long side in pixels of the picture that is cut.
        iterations: Of GrabCut.
    """

    side: int = 512
    iterations: int = 4

    def mask(self, reference: Reference) -> Bool[Tensor, "h w"]:
        """Return the mask of a marked object; the mark itself where no cut can be found."""
        image = reference.image
        assert isinstance(image, Tensor)
        height, width = image.shape[1:]
        scale = min(1.0, self.side / max(height, width))
        size = max(2, round(height * scale)), max(2, round(width * scale))
        pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        small = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
        seeds, sure = self._seeds(reference, image, size, (height, width))
        cut = self._cut(small[..., ::-1].copy(), seeds)
        if cut is None or not cut.any():
            log.warning("reference %s: no outline found, its mark is used", reference.name)
            cut = sure
        return torch.from_numpy(resize_mask(cut, height, width))

    def _seeds(
        self,
        reference: Reference,
        image: Tensor,
        size: tuple[int, int],
        full: tuple[int, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return GrabCut's labels, and the mask to use when nothing is found."""
        height, width = size
        sx, sy = width / full[1], height / full[0]
        seeds = np.full(size, cv2.GC_PR_BGD, np.uint8)
        sure = np.zeros(size, bool)
        if reference.box is not None:
            x, y, w, h = reference.box
            x0, y0 = int(np.clip(x * sx, 0, width - 1)), int(np.clip(y * sy, 0, height - 1))
            x1 = int(np.clip(np.ceil((x + w) * sx), x0 + 1, width))
            y1 = int(np.clip(np.ceil((y + h) * sy), y0 + 1, height))
            seeds[:] = cv2.GC_BGD
            seeds[y0:y1, x0:x1] = cv2.GC_PR_FGD
            sure[y0:y1, x0:x1] = True
        inside, outside = _strokes(reference, size, (sx, sy))
        if inside.any():
            labels = superpixels(lab_picture(image, max(size)), 60.0)
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            touched = np.isin(labels, np.unique(labels[inside]))
            touched &= seeds != cv2.GC_BGD
            seeds[touched] = cv2.GC_PR_FGD
            sure = touched | inside
        seeds[outside] = cv2.GC_BGD
        seeds[inside] = cv2.GC_FGD
        if not (seeds == cv2.GC_BGD).any():  # GrabCut needs some background: the frame
            frame = np.ones(size, bool)
            frame[1:-1, 1:-1] = False
            seeds[frame & (seeds != cv2.GC_FGD)] = cv2.GC_BGD
        return seeds, sure & ~outside

    def _cut(self, pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray | None:
        ahead = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
        if not ahead.any() or ahead.all():
            return None
        cv2.setRNGSeed(0)  # its mixture models start from random centres
        models = np.zeros((1, 65)), np.zeros((1, 65))
        mode = cv2.GC_INIT_WITH_MASK  # which looks at no rectangle
        try:
            cv2.grabCut(pixels, seeds, (0, 0, 1, 1), *models, self.iterations, mode)
        except cv2.error:
            return None
        return (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)


def _strokes(
    reference: Reference, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what points and scribbles mark as object and as background."""
    out = np.zeros((2, *size), np.uint8)
    radius = max(1, max(size) // 150)
    if reference.points is not None:
        count = len(reference.points)
        flags = [True] * count if reference.inside is None else reference.inside.tolist()
        for (x, y), flag in zip(reference.points.tolist(), flags, strict=True):
            at = (int(x * scale[0]), int(y * scale[1]))
            cv2.circle(out[0 if flag else 1], at, radius, 1, -1)
    for row, painted in enumerate((reference.scribble, reference.scribble_outside)):
        if painted is not None:
            places = painted.nonzero().cpu().numpy() * (scale[1], scale[0])  # thin strokes survive
            rows, columns = places.astype(np.int64).T
            out[row, rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1)] = 1
    return out[0].astype(bool), out[1].astype(bool)
