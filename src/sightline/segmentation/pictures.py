"""Pictures of results: contours, boxes and names; true objects beside found ones; contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from sightline.errors import OutputError
from sightline.io.atomic import atomic_write_bytes
from sightline.types import InstanceMasks

Pixels = UInt8[np.ndarray, "_ _ 3"]

BAR = 10
"""Pixels of white between the truth and the prediction."""


def class_colour(index: int) -> tuple[int, int, int]:
    """Return a colour that differs from its neighbours'; grey for unknown (-1)."""
    if index < 0:
        return (160, 160, 160)
    hue = np.uint8([[[int(index * 180 * 0.618034) % 180, 200, 255]]])  # type: ignore[arg-type]
    red, green, blue = cv2.cvtColor(np.asarray(hue, np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return int(red), int(green), int(blue)


def draw_instances(
    pixels: Pixels, found: InstanceMasks, names: Sequence[str], least_score: float = 0.0
) -> Pixels:
    """Return the picture with contours, boxes and ``name=score%``, surest on top."""
    out = pixels.copy()
    scale = max(0.35, max(pixels.shape[:2]) / 1600)
    for row in reversed(range(len(found.scores))):
        if float(found.scores[row]) < least_score:
            continue
        label = int(found.labels[row])
        colour = class_colour(label)
        mask = found.masks[row].cpu().numpy()
        out[mask] = (0.65 * out[mask] + 0.35 * np.array(colour)).astype(np.uint8)
        lines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(out, lines, -1, colour, 2)
        x0, y0, x1, y1 = (int(v) for v in found.boxes[row].tolist())
        cv2.rectangle(out, (x0, y0), (x1, y1), colour, 1)
        name = names[label] if label >= 0 else "unknown"
        text = f"{name}={100 * float(found.scores[row]):.0f}%"
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        top = max(y0, height + 4)
        cv2.rectangle(out, (x0, top - height - 4), (x0 + width + 2, top), colour, -1)
        place = (x0 + 1, top - 3)
        cv2.putText(out, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return out


def side_by_side(left: Pixels, right: Pixels) -> Pixels:
    """Return two pictures of one height with a white bar between them."""
    bar = np.full((left.shape[0], BAR, 3), 255, np.uint8)
    return np.concatenate((left, bar, right), 1)


def contact_sheet(pictures: Sequence[Pixels], width: int = 400, columns: int = 4) -> Pixels:
    """Return small copies in rows; at least one picture."""
    small = []
    for pixels in pictures:
        height = max(1, round(pixels.shape[0] * width / pixels.shape[1]))
        small.append(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
    rows = []
    for start in range(0, len(small), columns):
        row = small[start : start + columns]
        height = max(p.shape[0] for p in row)
        cells = [
            np.full((height, width, 3), 255, np.uint8) for _ in range(min(columns, len(small)))
        ]
        for cell, picture in zip(cells, row, strict=False):
            cell[: picture.shape[0]] = picture
        rows.append(np.concatenate(cells, 1))
    return np.concatenate(rows)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write RGB pixels.

    Raises:
        OutputError: The file cannot be written.
    """
    made, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    if not made:
        raise OutputError(f"cannot write {path}: the picture could not be encoded")
    atomic_write_bytes(path, data.tobytes())


def label_picture(found: InstanceMasks) -> UInt8[np.ndarray, "h w"]:
    """Return 0 for background and 1, 2, ... for instances by falling score, surest on top.

    With more than 255 instances the least sure ones are left out.
    """
    count = min(len(found.scores), 255)
    out = torch.zeros(found.masks.shape[1:], dtype=torch.uint8)
    for row in reversed(range(count)):
        out[found.masks[row].cpu()] = row + 1
    return out.numpy()
