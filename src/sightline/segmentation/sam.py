"""SAM 2 as proposer and as masker: prompt grids, automatic masks, boxes and strokes."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.errors import InputError
from sightline.models.sam2 import SAM2, ImageFeatures
from sightline.segmentation.crops import square_target
from sightline.segmentation.matching import grid_points
from sightline.segmentation.overlaps import suppress_boxes
from sightline.segmentation.pooling import mask_boxes, resize_logits
from sightline.segmentation.proposals import Proposals
from sightline.segmentation.references import Reference

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _normalise(square: Float[Tensor, "3 s s2"], model: SAM2) -> Float[Tensor, "1 3 s s2"]:
    weight = model.no_mem_embed
    square = square.to(weight)
    mean, std = (square.new_tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    return ((square - mean) / std)[None]


def encode_predictor(image: Float[Tensor, "3 h w"], model: SAM2) -> ImageFeatures:
    """Encode a picture as SAM 2's image predictor does: stretched, bilinear, antialiased."""
    side = model.image_size
    square = functional.interpolate(
        image[None].float(), (side, side), mode="bilinear", antialias=True
    )
    return model.encode(_normalise(square[0], model))


@dataclass(frozen=True, slots=True, kw_only=True)
class PointProposer:
    """The default model's proposals: the best of three masks for each point of a grid.

    Attributes:
        model: SAM 2.
        points_per_side: Of the grid.
        point_batch: Prompts decoded at a time; the last batch may be smaller.
        iou_thr: Masks of at most this predicted IoU go.
    """

    model: SAM2
    points_per_side: int = 32
    point_batch: int = 256
    iou_thr: float = 0.4

    @torch.inference_mode()
    def propose(self, image: Float[Tensor, "3 h w"]) -> Proposals:
        """Return masks of a picture in [0, 1]; no mask memory is added to its embedding."""
        model = self.model
        features = model.encode(_normalise(square_target(image, model.image_size), model))
        points = grid_points(self.points_per_side, model.image_size).to(features.embedding)
        kept, quality = [], []
        for chunk in points.split(self.point_batch):
            labels = torch.ones(len(chunk), 1, dtype=torch.int32, device=chunk.device)
            masks = model(features, chunk[:, None], labels, add_no_mem_embed=False)
            best, index = masks.ious[:, 1:].max(1)
            logits = masks.logits[torch.arange(len(chunk), device=chunk.device), index + 1]
            good = best > self.iou_thr
            kept.append(logits[good].float())
            quality.append(best[good].float())
        return Proposals(
            logits=torch.cat(kept).clone().to(image.device),
            quality=torch.cat(quality).clone().to(image.device),
        )


class _Crop(NamedTuple):
    box: tuple[int, int, int, int]
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticMasks:
    """SAM 2's automatic mask generator; options carry its published names and defaults."""

    model: SAM2
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    multimask_output: bool = True
    use_m2m: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not offered."""
        if self.use_m2m:
            raise InputError("use_m2m (a second decoder pass) is not offered; set it to false")
        if self.points_per_side < 1 or self.points_per_batch < 1 or self.crop_n_layers < 0:
            raise InputError("points_per_side and points_per_batch must be 1 or more; raise them")

    @torch.inference_mode()
    def propose(self, image: Float[Tensor, "3 h w"]) -> Proposals:
        """Return masks of a picture in [0, 1], as logits on the decoder's grid of the picture."""
        height, width = image.shape[1:]
        logits, boxes, quality, layers = [], [], [], []
        for crop in self._crops(height, width):
            part = self._crop_masks(image, crop)
            for rows, value in zip((logits, boxes, quality), part, strict=True):
                rows.append(value)
            layers.append(torch.full((len(part[0]),), crop.layer))
        all_logits, all_boxes = torch.cat(logits), torch.cat(boxes)
        all_quality, layer = torch.cat(quality), torch.cat(layers)
        if self.crop_n_layers:
            # Smaller crops see more detail, so their masks win over those of larger ones.
            keep = _suppress(all_boxes, layer.float(), self.crop_nms_thresh)
            all_logits, all_quality = all_logits[keep], all_quality[keep]
        return Proposals(
            logits=all_logits.clone().to(image.device), quality=all_quality.clone().to(image.device)
        )

    def _crops(self, height: int, width: int) -> list[_Crop]:
        found = [_Crop((0, 0, width, height), 0)]
        short = min(height, width)
        for layer in range(1, self.crop_n_layers + 1):
            count = 2**layer
            overlap = int(self.crop_overlap_ratio * short * 2 / count)

            def length(full: int, overlap: int = overlap, count: int = count) -> int:
                return -(-(overlap * (count - 1) + full) // count)

            w, h = length(width), length(height)
            for column in range(count):
                for row in range(count):
                    x, y = (w - overlap) * column, (h - overlap) * row
                    box = (x, y, min(x + w, width), min(y + h, height))
                    found.append(_Crop(box, layer))
        return found

    def _crop_masks(
        self, image: Float[Tensor, "3 h w"], crop: _Crop
    ) -> tuple[Float[Tensor, "p a a2"], Float[Tensor, "p 4"], Float[Tensor, " p"]]:
        x0, y0, x1, y1 = crop.box
        size = (y1 - y0, x1 - x0)
        full = tuple(image.shape[1:])
        features = encode_predictor(image[:, y0:y1, x0:x1], self.model)
        side = max(1, self.points_per_side // self.crop_n_points_downscale_factor**crop.layer)
        at = (torch.arange(side) + 0.5) / side * self.model.image_size
        y, x = torch.meshgrid(at, at, indexing="ij")
        points = torch.stack((x, y), -1).flatten(0, 1).to(features.embedding)
        logits, boxes, quality = [], [], []
        for chunk in points.split(self.points_per_batch):
            for kept in self._batch(features, chunk, size, crop.box, full):
                logits.append(kept[0])
                boxes.append(kept[1])
                quality.append(kept[2])
        joined = torch.cat(logits), torch.cat(boxes), torch.cat(quality)
        keep = _suppress(joined[1], joined[2], self.box_nms_thresh)
        lines, boxes, quality = (value[keep] for value in joined)
        if self.min_mask_region_area > 0 and len(lines):
            lines = _without_specks(lines, size, self.min_mask_region_area)
            boxes = mask_boxes(resize_logits(lines, *size)) + boxes.new_tensor([x0, y0, x0, y0])
            keep = _suppress(boxes, quality, max(self.box_nms_thresh, self.crop_nms_thresh))
            lines, boxes, quality = lines[keep], boxes[keep], quality[keep]
        if crop.layer:
            lines = _paste(lines, crop.box, (full[0], full[1]))
        return lines, boxes, quality

    def _batch(
        self,
        features: ImageFeatures,
        points: Float[Tensor, "b 2"],
        size: tuple[int, int],
        crop: tuple[int, int, int, int],
        full: tuple[int, ...],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        labels = torch.ones(len(points), 1, dtype=torch.int32, device=points.device)
        masks = self.model(features, points[:, None], labels)
        if not self.multimask_output:
            masks = self.model.sam_mask_decoder.single_mask(masks)
            logits, ious = masks.logits.flatten(0, 1), masks.ious.flatten()
        else:
            logits, ious = masks.logits[:, 1:].flatten(0, 1), masks.ious[:, 1:].flatten()
        good = ious > self.pred_iou_thresh
        logits, ious = logits[good].float() - self.mask_threshold, ious[good].float()
        offset = self.stability_score_offset
        out = []
        for part, iou in zip(logits.split(16), ious.split(16), strict=True):
            big = functional.interpolate(part[:, None], size, mode="bilinear")[:, 0]
            inner = (big > offset).flatten(1).sum(1)
            outer = (big > -offset).flatten(1).sum(1)
            steady = (inner / outer.clamp(min=1) >= self.stability_score_thresh) & (outer > 0)
            boxes = mask_boxes(big > 0)
            boxes = boxes + boxes.new_tensor([crop[0], crop[1], crop[0], crop[1]])
            steady &= ~_touches_cut(boxes, crop, full) & (big > 0).flatten(1).any(1)
            out.append((part[steady], boxes[steady], iou[steady]))
        side = self.model.image_size // 4
        nothing = (logits.new_zeros(0, side, side), logits.new_zeros(0, 4), logits.new_zeros(0))
        return out or [nothing]


def _touches_cut(
    boxes: Float[Tensor, "p 4"], crop: tuple[int, int, int, int], full: tuple[int, ...]
) -> Bool[Tensor, " p"]:
    """Say which boxes end at an edge of the crop that is no edge of the picture (20 pixels)."""
    edge = boxes.new_tensor(crop)
    frame = boxes.new_tensor([0, 0, full[1], full[0]])
    near = (boxes - edge).abs() <= 20
    return (near & ~((boxes - frame).abs() <= 20)).any(1)


def _suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    return suppress_boxes(
        boxes, scores.float(), torch.zeros(len(boxes), dtype=torch.int64), threshold
    )


def _paste(
    logits: Float[Tensor, "p a a2"], crop: tuple[int, int, int, int], full: tuple[int, int]
) -> Float[Tensor, "p a a2"]:
    """Move the logits of a crop to the whole picture's grid of the same size; -10 around them."""
    side = logits.shape[-1]
    x0, x1 = round(crop[0] / full[1] * side), round(crop[2] / full[1] * side)
    y0, y1 = round(crop[1] / full[0] * side), round(crop[3] / full[0] * side)
    out = torch.full_like(logits, -10.0)
    size = (max(y1 - y0, 1), max(x1 - x0, 1))
    if len(logits):
        small = functional.interpolate(logits[:, None], size, mode="bilinear", antialias=True)
        out[:, y0 : y0 + size[0], x0 : x0 + size[1]] = small[:, 0]
    return out


def _without_specks(
    logits: Float[Tensor, "p a a2"], size: tuple[int, int], least: int
) -> Float[Tensor, "p a a2"]:
    """Fill holes and drop islands of fewer than ``least`` pixels of the picture."""
    side = logits.shape[-1]
    limit = least * side * side / (size[0] * size[1])
    out = logits.clone()
    for row in out:
        for value, sign in ((True, 1.0), (False, -1.0)):  # holes first, then islands
            inside = (row > 0).cpu().numpy()
            count, labels, stats, _ = cv2.connectedComponentsWithStats(
                (inside != value).astype(np.uint8), connectivity=8
            )
            small = np.flatnonzero(stats[1:count, cv2.CC_STAT_AREA] < limit) + 1
            if len(small) == count - 1 and not value and len(small):
                small = np.delete(small, np.argmax(stats[small, cv2.CC_STAT_AREA]))
            specks = torch.from_numpy(np.isin(labels, small)).to(row.device)
            row[specks] = sign
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class SamMasker:
    """Marks to masks by SAM 2's prompts."""

    model: SAM2
    scribble_points: int = 12
    """Points taken from a scribble."""

    @torch.inference_mode()
    def mask(self, reference: Reference) -> Bool[Tensor, "h w"]:
        """Return the mask that the network expects to be best."""
        image = reference.image
        assert isinstance(image, Tensor)
        height, width = image.shape[1:]
        features = encode_predictor(image, self.model)
        points, labels = self._prompt(reference, height, width)
        points = points.to(features.embedding)[None]
        codes = torch.tensor([labels], dtype=torch.int32, device=points.device)
        masks = self.model(features, points, codes)
        if len(labels) == 1:  # one point is ambiguous: the best of three
            best = int(masks.ious[0, 1:].argmax()) + 1
            logits = masks.logits[:, best]
        else:
            logits = self.model.sam_mask_decoder.single_mask(masks).logits[:, 0]
        return resize_logits(logits.float(), height, width)[0].cpu().clone()

    def _prompt(
        self, reference: Reference, height: int, width: int
    ) -> tuple[Float[Tensor, "n 2"], list[int]]:
        points, labels = [], []
        if reference.box is not None:
            x, y, w, h = reference.box
            points += [(x, y), (x + w, y + h)]
            labels += [2, 3]
        if reference.points is not None:
            points += [tuple(p) for p in reference.points.tolist()]
            count = len(reference.points)
            flags = [True] * count if reference.inside is None else reference.inside.tolist()
            labels += [int(f) for f in flags]
        for painted, label in ((reference.scribble, 1), (reference.scribble_outside, 0)):
            if painted is None:
                continue
            places = painted.nonzero().flip(1).float() + 0.5
            spread = torch.linspace(0, len(places) - 1, min(len(places), self.scribble_points))
            points += [tuple(p) for p in places[spread.long()].tolist()]
            labels += [label] * len(spread)
        scale = torch.tensor([self.model.image_size / width, self.model.image_size / height])
        return torch.tensor(points) * scale, labels
