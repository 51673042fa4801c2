"""How near the Gaussians' centres come to the true surface: DTU's accuracy, completion, distance."""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import align_umeyama, transform_points
from sightline.io.atomic import atomic_write_text

SHAPE = ("accuracy", "completion", "distance")
"""Less is better in all of them."""
_FILE_NAMES = {
    "accuracy": "Accuracy",
    "accuracy_median": "Acc_med",
    "completion": "Completion",
    "completion_median": "Comp_med",
    "distance": "Distance",
    "distance_median": "Dist_med",
}


def aligned_centers(
    centers: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Move centres onto the true points of the same pixels by one similarity (Umeyama 1991)."""
    found = align_umeyama(centers.double(), truth.double())
    return transform_points(centers.double(), found)


def point_errors(
    centers: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """Return the three distances of every point, after `aligned_centers`.

    ``accuracy`` is from a centre to the nearest true point, ``completion`` from a true point to
    the nearest centre, ``distance`` from a centre to the true point of its own pixel.
    """
    moved = aligned_centers(centers, truth).cpu().numpy()
    true = truth.double().cpu().numpy()
    return {
        "accuracy": KDTree(true).query(moved)[0],
        "completion": KDTree(moved).query(true)[0],
        "distance": np.linalg.norm(moved - true, axis=-1),
    }


def shape_errors(
    centers: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"], unit: float = 1.0
) -> dict[str, float]:
    """Return means and medians of `point_errors`, in thousandths of the source's unit.

    Args:
        centers: Of the Gaussians, one a pixel.
        truth: The points of the same pixels.
        unit: Length of the source's unit in theirs; a metre gives millimetres.

    Returns:
        NaN for centres without extent, which no similarity moves onto a surface.
    """
    result = {}
    try:
        found = point_errors(centers, truth)
    except InputError:
        return dict.fromkeys(_FILE_NAMES, float("nan"))
    for name, values in found.items():
        # The lower of the two middle values, as torch's median.
        middle = np.sort(values)[(len(values) - 1) // 2]
        result[name] = 1000 * float(values.mean()) / unit
        result[f"{name}_median"] = 1000 * float(middle) / unit
    return result


def write_metrics_3d(path: Path, errors: dict[str, float], iterations: int) -> None:
    """Write ``3d_metrics.json`` as the authors do: in the source's unit, under their names."""
    values = {_FILE_NAMES[name]: value / 1000 for name, value in errors.items()}
    data = {f"ours_{iterations}": {"threshold_0.0": values}}
    atomic_write_text(path, json.dumps(data, indent=1) + "\n")


def error_colors(errors: Float[Tensor, " N"], farthest: float) -> Float[Tensor, "N 3"]:
    """Return the authors' colours of errors: their piecewise linear jet from 0 to ``farthest``."""
    share = (errors / farthest).clamp(0, 1)
    tops = torch.tensor([3.0, 2.0, 1.0])
    return (1.5 - (4 * share[:, None] - tops).abs()).clamp(0, 1)
