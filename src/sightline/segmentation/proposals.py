"""Class-agnostic masks without weights: a graph of superpixels, merged step by step.

Pixels become regions by Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), and
regions are merged, most alike neighbours first, as in selective search (Uijlings et al., IJCV
2013). Every region on the way is a proposal; it ranks by how much longer it stays unmerged than it
took to form, by how strong the edges around it are, and by how solid it is.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.segmentation import regions
from sightline.segmentation.overlaps import intersections, pack_masks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposals:
    """Masks that may be objects."""

    logits: Float[Tensor, "p h w"]
    """Positive inside; on a grid over the whole picture."""
    quality: Float[Tensor, " p"]
    """Expected IoU with an object, in [0, 1]."""


@runtime_checkable
class Proposer(Protocol):
    """Anything that finds class-agnostic masks."""

    def propose(self, image: Float[Tensor, "3 h w"]) -> Proposals:
        """Return masks of a picture in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphProposer:
    """Proposals from superpixels, at several scales.

    Attributes:
        side: Long side in pixels at which the picture is cut into regions.
        scales: Felzenszwalb's k: larger gives larger first regions.
        smallest: Least share of the picture of a proposal.
        largest: Most share of the picture of a proposal.
        most: Number of proposals at most.
        duplicate: IoU above which the lower ranked of two masks goes.
    """

    side: int = 320
    scales: tuple[float, ...] = (40.0, 120.0, 300.0)
    smallest: float = 0.0008
    largest: float = 0.7
    most: int = 400
    duplicate: float = 0.85

    def propose(self, image: Float[Tensor, "3 h w"]) -> Proposals:
        """Return masks of a picture in [0, 1]."""
        lab = lab_picture(image, self.side)
        height, width = lab.shape[:2]
        edges = _edge_strength(lab)
        masks, quality = [], []
        graph = pixel_graph(lab)
        for scale in self.scales:
            labels = superpixels(lab, scale, int(max(12, 0.0004 * height * width)), graph)
            found, score = _hierarchy(lab, edges, labels, self.smallest, self.largest)
            masks.append(found)
            quality.append(score)
        inside, scores = torch.cat(masks), torch.cat(quality)
        order = scores.argsort(descending=True, stable=True)[: 3 * self.most]
        inside, scores = inside[order], scores[order]
        keep = distinct(inside, self.duplicate)[: self.most]
        inside, scores = inside[keep], scores[keep]
        logits = inside.float() * 2 - 1
        return Proposals(logits=logits.to(image.device), quality=scores.to(image.device))


def lab_picture(image: Float[Tensor, "3 h w"], side: int) -> np.ndarray:
    """Return ``[h, w, 3]`` Lab float32 with a long side of at most ``side``, slightly blurred."""
    array = np.ascontiguousarray(image.clamp(0, 1).float().permute(1, 2, 0).cpu().numpy())
    height, width = array.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    array = cv2.resize(array, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(array, cv2.COLOR_RGB2LAB)
    return cv2.GaussianBlur(lab, (0, 0), 0.8)


Graph = tuple[np.ndarray, np.ndarray]


def pixel_graph(lab: np.ndarray) -> Graph:
    """Return pairs of neighbouring pixels ``[E, 2]`` (eight neighbours) and how they differ.

    Pairs come by rising difference.
    """
    height, width = lab.shape[:2]
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    pairs, weights = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        ys, xs = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
        yt, xt = slice(dy, height), slice(max(0, dx), width + min(0, dx))
        pairs.append(np.stack((index[ys, xs].ravel(), index[yt, xt].ravel()), 1))
        weights.append(np.linalg.norm(lab[ys, xs] - lab[yt, xt], axis=-1).ravel())
    edges, weight = np.concatenate(pairs), np.concatenate(weights)
    order = np.argsort(weight, kind="stable")
    return edges[order], weight[order]


def superpixels(
    lab: np.ndarray, scale: float, smallest: int = 20, graph: Graph | None = None
) -> np.ndarray:
    """Return region labels ``[h, w]`` from 0, by graph-based segmentation.

    Args:
        lab: Picture in Lab.
        scale: Larger prefers larger regions.
        smallest: Regions of fewer pixels are joined to a neighbour.
        graph: The picture's `pixel_graph`, where it is needed more than once.
    """
    height, width = lab.shape[:2]
    edges, weights = pixel_graph(lab) if graph is None else graph
    roots = regions.segment(edges, weights, height * width, float(scale), smallest)
    number = np.cumsum(np.bincount(roots, minlength=height * width) > 0) - 1
    return number[roots].reshape(height, width).astype(np.int32)


def _edge_strength(lab: np.ndarray) -> np.ndarray:
    dx = cv2.Sobel(lab, cv2.CV_32F, 1, 0) / 8
    dy = cv2.Sobel(lab, cv2.CV_32F, 0, 1) / 8
    return np.sqrt((dx**2 + dy**2).sum(-1))


def _hierarchy(
    lab: np.ndarray, edges: np.ndarray, labels: np.ndarray, smallest: float, largest: float
) -> tuple[Bool[Tensor, "p h w"], Float[Tensor, " p"]]:
    """Merge regions to one, and return those of a fitting size with their rank."""
    count = int(labels.max()) + 1
    histograms = _histograms(lab, labels, count)
    sizes = np.bincount(labels.ravel(), minlength=count).astype(np.float64)
    borders, strengths = _borders(labels, edges, count)
    parents, birth, death = regions.merge(histograms, sizes, borders, strengths, labels.size)
    total = len(parents)
    area = np.zeros(total)
    area[:count] = sizes
    for node in range(total):  # children come before their parent
        if parents[node] >= 0:
            area[parents[node]] += area[node]
    share = area / labels.size
    chosen = np.flatnonzero((share >= smallest) & (share <= largest))
    members = np.zeros((total, count), bool)
    members[np.arange(count), np.arange(count)] = True
    for node in range(total):
        if parents[node] >= 0:
            members[parents[node]] |= members[node]
    inside, solidity = _filled(members[chosen][:, labels])  # [P, h, w]
    contrast = _contrast(inside, torch.from_numpy(edges))
    persistence = torch.from_numpy(1 - birth[chosen] / np.maximum(death[chosen], 1e-9)).float()
    touch = _border_share(inside)
    score = (0.5 * contrast + 0.5 * persistence.clamp(0, 1)) * solidity * (1 - 0.5 * touch)
    fits = inside.flatten(1).sum(1) <= largest * labels.size
    return inside[fits], score[fits].clamp(0, 1)


def _filled(masks: np.ndarray) -> tuple[Bool[Tensor, "p h w"], Float[Tensor, " p"]]:
    """Return masks without holes, and how much of its convex hull each fills.

    Blurred outlines become thin rings of their own; filled, they are the object again.
    """
    out = np.zeros(masks.shape, np.uint8)
    solidity = np.zeros(len(masks), np.float32)
    for i, mask in enumerate(masks.astype(np.uint8)):
        lines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(out[i], lines, -1, 1, cv2.FILLED)
        hull = cv2.convexHull(np.concatenate(lines))
        spanned = cv2.fillConvexPoly(np.zeros_like(mask), hull, 1)
        solidity[i] = out[i].sum() / spanned.sum()
    return torch.from_numpy(out.astype(bool)), torch.from_numpy(solidity)


def _histograms(lab: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return normalised colour histograms ``[R, 3 * 16]`` of regions."""
    out = np.zeros((count, 48))
    for channel, (low, high) in enumerate(((0, 100), (-70, 70), (-70, 70))):
        bins = np.clip((lab[..., channel] - low) / (high - low) * 16, 0, 15).astype(np.int64)
        flat = labels.astype(np.int64) * 16 + bins
        part = np.bincount(flat.ravel(), minlength=count * 16).reshape(count, 16)
        out[:, channel * 16 : channel * 16 + 16] = part
    return out / out.sum(1, keepdims=True)


def _borders(labels: np.ndarray, edges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return border lengths ``[R, R]`` between regions, and the summed edge strength there."""
    lengths, strengths = np.zeros((count, count)), np.zeros((count, count))
    for a, b, ea, eb in (
        (labels[:, :-1], labels[:, 1:], edges[:, :-1], edges[:, 1:]),
        (labels[:-1], labels[1:], edges[:-1], edges[1:]),
    ):
        differ = a != b
        i, j, strength = a[differ], b[differ], np.maximum(ea[differ], eb[differ])
        np.add.at(lengths, (i, j), 1)
        np.add.at(lengths, (j, i), 1)
        np.add.at(strengths, (i, j), strength)
        np.add.at(strengths, (j, i), strength)
    return lengths, strengths


def _contrast(inside: Bool[Tensor, "p h w"], edges: Float[Tensor, "h w"]) -> Float[Tensor, " p"]:
    """Return boundary edge strength over boundary plus inner edge strength, in [0, 1]."""
    out = torch.zeros(len(inside))
    kernel = np.ones((3, 3), np.uint8)
    for i, mask in enumerate(inside.numpy().astype(np.uint8)):
        inner = cv2.erode(mask, kernel, borderValue=1)
        rim = (cv2.dilate(mask, kernel) - inner).astype(bool)
        strong = edges[torch.from_numpy(rim)].mean() if rim.any() else edges.new_zeros(())
        weak = edges[torch.from_numpy(inner.astype(bool))]
        weak = weak.mean() if len(weak) else edges.new_zeros(())
        out[i] = strong / (strong + weak + 0.5)
    return out


def _border_share(inside: Bool[Tensor, "p h w"]) -> Float[Tensor, " p"]:
    """Return how much of the picture's frame a mask covers, relative to its own extent."""
    frame = torch.cat((inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]), 1)
    extent = inside.any(1).sum(1) + inside.any(2).sum(1)
    return (frame.sum(1) / extent.clamp(min=1)).clamp(max=1)


def distinct(masks: Bool[Tensor, "p h w"], threshold: float) -> Int64[Tensor, " q"]:
    """Return rows that no earlier kept mask overlaps with an IoU above ``threshold``."""
    packed = pack_masks(masks)
    area = packed.areas().double()
    overlap = intersections(packed).double()
    iou = overlap / (area[:, None] + area[None] - overlap).clamp(min=1)
    kept: list[int] = []
    drop = np.zeros(len(masks), bool)
    near = (iou > threshold).numpy()
    for i in range(len(masks)):
        drop[i] = bool(near[i, kept].any()) if kept else False
        if not drop[i]:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)
