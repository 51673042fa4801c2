"""Where Gaussians start: the targets of the warm start and the first values of what is free."""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial import KDTree
from torch import Tensor

from sightline.errors import InputError

SH_C0 = 0.28209479177387814
LOGIT_OF_TENTH = math.log(0.1 / 0.9)


def start_values(
    points: Float[Tensor, "N 3"],
    colors: UInt8[Tensor, "N 3"],
    spacing_of: Float[Tensor, "N 3"] | None = None,
) -> dict[str, Float[Tensor, "N k"]]:
    """Return the raw first values of every parameter (Kerbl et al. 2023).

    Args:
        points: World points; they become ``xyz``.
        colors: Of the pictures.
        spacing_of: Points whose spacing gives the scales, where not ``points`` (the clean ones,
            when ``points`` have noise).

    Raises:
        InputError: If there are fewer than four points.
    """
    count = len(points)
    if count < 4:
        raise InputError(f"a probe needs at least 4 points with known depth, got {count}")
    log_spacing = 0.5 * squared_spacing(points if spacing_of is None else spacing_of).log()
    device = points.device
    rotation = torch.zeros(count, 4, device=device)
    rotation[:, 0] = 1
    return {
        "xyz": points.float(),
        "scaling": log_spacing[:, None].expand(-1, 3).contiguous(),
        "rotation": rotation,
        "opacity": torch.full((count, 1), LOGIT_OF_TENTH, device=device),
        "f_dc": (colors.float() / 255 - 0.5) / SH_C0,
        "f_rest": torch.zeros(count, 45, device=device),
    }


def squared_spacing(points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """Return the mean squared distance to the three nearest other points, at least 1e-7."""
    array = points.detach().cpu().double().numpy()
    distances, _ = KDTree(array).query(array, 4)
    mean = np.square(distances[:, 1:]).mean(1)
    return torch.from_numpy(np.maximum(mean, 1e-7).astype(np.float32)).to(points.device)
