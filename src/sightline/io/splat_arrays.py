"""Splats as plain checked arrays: the common ground of the 3DGS PLY, ``.splat`` and ``.spz``."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.errors import InputError
from sightline.io.reading import bad_file
from sightline.types import Gaussians

log = logging.getLogger(__name__)

COEFFICIENTS = (1, 4, 9, 16, 25)
"""Spherical-harmonic coefficients a colour channel, by degree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplatArrays:
    """Activated values of ``Gaussians`` in float32: unit ``wxyz`` quats, scales above 0."""

    means: Float[np.ndarray, "N 3"]
    quats: Float[np.ndarray, "N 4"]
    scales: Float[np.ndarray, "N 3"]
    opacities: Float[np.ndarray, " N"]
    sh: Float[np.ndarray, "N K 3"]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values, float32 where they are floats, without gradient, on the CPU."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def splat_arrays(gaussians: Gaussians, sh_degree: int | None = None) -> SplatArrays:
    """Return a record's arrays ready to be written.

    Args:
        gaussians: Splats on any device.
        sh_degree: Highest degree to keep; None keeps all.

    Raises:
        InputError: If there are no splats, a value is not finite, a scale is not positive or a quaternion is zero.
    """
    if len(gaussians) == 0:
        raise InputError("there are no splats to write; make some first or choose other views")
    degree = gaussians.sh_degree if sh_degree is None else min(sh_degree, gaussians.sh_degree)
    if degree < gaussians.sh_degree:
        log.warning("colours cut from degree %d to degree %d", gaussians.sh_degree, degree)
    arrays = {
        name: to_numpy(getattr(gaussians, name))
        for name in ("means", "quats", "scales", "opacities", "sh")
    }
    arrays["sh"] = arrays["sh"][:, : COEFFICIENTS[degree]]
    fault = _fault(**arrays)
    if fault:
        raise InputError(f"splats must have {fault[0]}, got {fault[1]}; drop such splats first")
    arrays["quats"] = _unit(arrays["quats"])
    return SplatArrays(**arrays)


def gaussians_from_arrays(path: Path, *, antialiased: bool, **arrays: np.ndarray) -> Gaussians:
    """Return the record of what a file held.

    Args:
        path: The file, for the error text.
        antialiased: As the file says.
        arrays: The float fields of ``SplatArrays``; quats need not be unit.

    Raises:
        FileFormatError: If a value is not finite, a scale is negative or a quaternion is zero.
    """
    scales = arrays["scales"]  # a scale that underflowed is as flat as float32 can say
    arrays["scales"] = np.where(scales == 0, np.finfo(np.float32).tiny, scales)
    fault = _fault(**arrays)
    if fault:
        raise bad_file(path, *fault)
    arrays["quats"] = _unit(arrays["quats"])
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return Gaussians(**tensors, antialiased=antialiased)


def to_bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round to the nearest of 0 to 255; what lies outside is clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _unit(quats: np.ndarray) -> np.ndarray:
    quats = quats / np.abs(quats).max(1, initial=0, keepdims=True)  # squares cannot overflow
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)


def _fault(
    means: np.ndarray,
    quats: np.ndarray,
    scales: np.ndarray,
    opacities: np.ndarray,
    sh: np.ndarray,
) -> tuple[str, str] | None:
    """Return what was expected and what came, for the first splat that cannot be drawn."""
    for name, array in (
        ("positions", means),
        ("rotations", quats),
        ("scales", scales),
        ("opacities", opacities),
        ("colours", sh),
    ):
        if not np.isfinite(array).all():
            rows = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            return f"finite {name}", f"NaN or infinity in splat {int(rows.argmax())}"
    if len(scales) and scales.min() <= 0:
        return "scales above 0", f"{scales.min():g}"
    usable = np.abs(quats).max(1, initial=0) > 1e-12
    if not usable.all():
        return "rotations of length 1", f"length 0 in splat {int(usable.argmin())}"
    if len(opacities) and (opacities.min() < 0 or opacities.max() > 1):
        return "opacities in 0 to 1", f"{opacities.min():g} to {opacities.max():g}"
    return None
