"""The content of a COLMAP model as records, and its lenses as ours."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from sightline.errors import InputError
from sightline.types import Lenses

CAMERA_MODELS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
    "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12,
    "FOV": 5,
    "SIMPLE_RADIAL_FISHEYE": 4,
    "RADIAL_FISHEYE": 5,
    "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
    "SIMPLE_DIVISION": 4,
    "DIVISION": 5,
    "SIMPLE_FISHEYE": 3,
    "FISHEYE": 4,
    "EUCM": 6,
    "EQUIRECTANGULAR": 2,
}
"""Number of parameters of each camera model; the position is COLMAP's model id."""

_ONE_FOCAL = {
    "SIMPLE_PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "SIMPLE_FISHEYE",
}
_AS_OPENCV = _ONE_FOCAL | {"PINHOLE", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "FISHEYE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapCamera:
    """Intrinsics; pixels with the corner convention, parameters in COLMAP's order."""

    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColmapImage:
    """One registered picture."""

    id: int
    name: str
    """Relative to the folder of pictures."""
    camera_id: int
    quat: Float64[np.ndarray, "4"]
    """Camera-from-world rotation, ``wxyz``, unit."""
    translation: Float64[np.ndarray, "3"]
    """Camera-from-world."""
    pixels: Float64[np.ndarray, "P 2"]
    """Image points."""
    point_ids: Int64[np.ndarray, " P"]
    """The 3D point that each image point saw, -1 for none."""

    @property
    def w2c(self) -> Float64[np.ndarray, "4 4"]:
        """The pose as a matrix."""
        w, x, y, z = self.quat / np.linalg.norm(self.quat)
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, 3] = self.translation
        return matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColmapPoints:
    """Triangulated points."""

    ids: Int64[np.ndarray, " N"]
    points: Float64[np.ndarray, "N 3"]
    colors: UInt8[np.ndarray, "N 3"]
    errors: Float64[np.ndarray, " N"]
    """Mean reprojection error in pixels, -1 when unknown."""
    tracks: Int64[np.ndarray, "T 3"]
    """Rows of (row of the point, image id, index among that image's points), sorted by point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColmapModel:
    """A sparse model; dictionaries go from id to record."""

    cameras: dict[int, ColmapCamera]
    images: dict[int, ColmapImage]
    points: ColmapPoints


def lens_from_camera(
    camera: ColmapCamera,
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "8"], bool]:
    """Return a camera's matrix, OpenCV distortion as in ``Lenses``, and whether it is a fisheye.

    Raises:
        InputError: If OpenCV has no such lens model.
    """
    if camera.model not in _AS_OPENCV:
        raise InputError(
            f"lenses of model {camera.model} cannot be used here, only "
            f"{', '.join(m for m in CAMERA_MODELS if m in _AS_OPENCV)}; undistort the pictures "
            "with: colmap image_undistorter"
        )
    values = list(camera.params)
    if camera.model in _ONE_FOCAL:
        values.insert(0, values[0])
    fx, fy, cx, cy, *rest = values
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    distortion = np.zeros(8)
    distortion[: len(rest)] = rest
    return matrix, distortion, "FISHEYE" in camera.model


def camera_from_lens(
    id: int,
    K: Float64[np.ndarray, "3 3"],
    distortion: Float64[np.ndarray, "8"],
    *,
    fisheye: bool,
    width: int,
    height: int,
) -> ColmapCamera:
    """Return the plainest COLMAP camera that equals an OpenCV lens: the inverse of the above."""
    if fisheye:
        model, count = "OPENCV_FISHEYE", 4
    elif not distortion.any():
        model, count = "PINHOLE", 0
    else:
        model, count = ("FULL_OPENCV", 8) if distortion[4:].any() else ("OPENCV", 4)
    params = (K[0, 0], K[1, 1], K[0, 2], K[1, 2], *distortion[:count])
    return ColmapCamera(
        id=id, model=model, width=width, height=height, params=tuple(float(p) for p in params)
    )


def model_views(
    model: ColmapModel,
) -> tuple[tuple[str, ...], Float[Tensor, "V 4 4"], Lenses]:
    """Return names, ``w2c`` (float64) and lenses of a model's images, sorted by name.

    Raises:
        InputError: If a camera has a lens that OpenCV does not know.
    """
    images = sorted(model.images.values(), key=lambda image: image.name)
    cameras = [model.cameras[image.camera_id] for image in images]
    lenses = [lens_from_camera(camera) for camera in cameras]
    return (
        tuple(image.name for image in images),
        torch.from_numpy(np.array([image.w2c for image in images]).reshape(-1, 4, 4)),
        Lenses(
            K=torch.from_numpy(np.array([K for K, _, _ in lenses]).reshape(-1, 3, 3)),
            distortion=torch.from_numpy(np.array([d for _, d, _ in lenses]).reshape(-1, 8)),
            fisheye=_bools([fisheye for _, _, fisheye in lenses]),
            sizes=torch.tensor([(c.height, c.width) for c in cameras]).reshape(-1, 2).long(),
        ),
    )


def _bools(values: list[bool]) -> Bool[Tensor, " n"]:
    return torch.tensor(values, dtype=torch.bool)
