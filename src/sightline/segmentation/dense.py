"""Segmentation without a mask model: features are compared cell by cell, outlines come from colour.

For every class the similarity of each cell to the class is set against that of everything else the
bank knows: other classes and what lay around the references. The difference is averaged inside
superpixels, which brings it to the picture's outlines.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from sightline.segmentation.memory import MemoryBank
from sightline.segmentation.proposals import Proposals, lab_picture, superpixels


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMatcher:
    """Maps of classes, and connected parts of them as proposals.

    Attributes:
        side: Long side in pixels at which outlines are found.
        scale: Of the superpixels.
        smallest: Least share of the picture of a proposal.
        levels: Cuts through each map, as shares of its largest value; parts that touch at a low
            one come apart at a higher one.
    """

    side: int = 320
    scale: float = 40.0
    smallest: float = 0.0008
    levels: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)

    def margins(
        self, image: Float[Tensor, "3 h w"], features: Float[Tensor, "c a b"], bank: MemoryBank
    ) -> Float[Tensor, "k u v"]:
        """Return how much more each place looks like a class than like anything else known."""
        unit = normalize(features, dim=0)
        prototypes = bank.prototypes().to(unit)
        context = bank.shots.context
        context = normalize(context[context.norm(dim=1) > 0], dim=-1).to(unit)
        known = torch.cat((prototypes, context)) if len(context) else prototypes
        cosines = torch.einsum("nc,cab->nab", known, unit)
        rows = []
        for k in range(len(prototypes)):
            others = torch.cat((cosines[:k], cosines[k + 1 :]))
            rival = others.amax(0) if len(others) else cosines[k].mean()
            rows.append(cosines[k] - rival)
        return self._refine(image, torch.stack(rows))

    def propose(
        self, image: Float[Tensor, "3 h w"], features: Float[Tensor, "c a b"], bank: MemoryBank
    ) -> Proposals:
        """Return connected places of positive margin, strongest first."""
        maps = self.margins(image, features, bank)
        area = maps.shape[1] * maps.shape[2]
        logits, quality = [], []
        for values in maps.cpu().numpy():
            top = float(values.max())
            for level in self.levels if top > 0 else ():
                ahead = (values > level * top).astype(np.uint8)
                count, labels, stats, _ = cv2.connectedComponentsWithStats(ahead, connectivity=4)
                for part in range(1, count):
                    if stats[part, cv2.CC_STAT_AREA] < self.smallest * area:
                        continue
                    inside = labels == part
                    logits.append(torch.from_numpy(np.where(inside, 1.0, -1.0)).float())
                    quality.append(float(values[inside].mean()) / 2)
        if not logits:
            empty = torch.zeros(0, *maps.shape[1:], device=image.device)
            return Proposals(logits=empty, quality=empty.new_zeros(0))
        return Proposals(
            logits=torch.stack(logits).to(image.device),
            quality=torch.tensor(quality, device=image.device).clamp(0, 1),
        )

    def semantic(
        self, image: Float[Tensor, "3 h w"], features: Float[Tensor, "c a b"], bank: MemoryBank
    ) -> Int64[Tensor, "h w"]:
        """Return the class of every pixel; -1 where no class stands out."""
        maps = self.margins(image, features, bank)
        full = interpolate(maps[None], image.shape[1:], mode="bilinear")[0]
        best, label = full.max(0)
        return torch.where(best > 0, label, -1)

    def _refine(
        self, image: Float[Tensor, "3 h w"], maps: Float[Tensor, "k a b"]
    ) -> Float[Tensor, "k u v"]:
        """Average the maps inside superpixels of the picture."""
        lab = lab_picture(image, self.side)
        labels = torch.from_numpy(superpixels(lab, self.scale).astype(np.int64)).flatten()
        full = interpolate(maps[None].cpu(), lab.shape[:2], mode="bilinear")[0].flatten(1)
        count = int(labels.max()) + 1
        size = torch.bincount(labels, minlength=count).to(full.dtype)
        sums = full.new_zeros(len(full), count).index_add_(1, labels, full)
        return (sums / size)[:, labels].unflatten(1, lab.shape[:2]).to(maps.device)
