"""Remove lens distortion: the pinhole camera to aim for, and the picture through it.

A distorted picture becomes a pinhole picture of the same size without blank borders: same principal
point, same ratio of focal lengths, and the smallest zoom at which every pixel has a source. Removing
the distortion and shrinking happen together: each new pixel is the mean of enough bilinear samples
to cover it, so nothing is interpolated twice and nothing aliases.
"""

import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from sightline.errors import InputError
from sightline.io.intrinsics import split_lenses
from sightline.types import Lenses

_WIDEST = math.tan(math.radians(65))
"""Half the diagonal field of view of any new picture stays below 65 degrees: beyond, a pinhole
picture of a fisheye lens is mostly stretched border."""
_MAX_ZOOM = 8.0  # a lens model that leaves less than 1/64 of the picture is wrong
_STRIP_POINTS = 4_000_000  # sampling positions held at a time
_MAX_SAMPLES = 8  # across a new pixel
_REMAP_LIMIT = 2**15 - 2  # OpenCV's remap counts rows and columns in 15 bits


def distort(
    points: Float[np.ndarray, "*batch 2"], distortion: Float[np.ndarray, "8"], fisheye: bool
) -> Float[np.ndarray, "*batch 2"]:
    """Bend points at z = 1 as the lens does; OpenCV's rational and fisheye models.

    Args:
        points: x and y over z of the ray.
        distortion: ``k1 k2 p1 p2 k3 k4 k5 k6``, or ``k1 k2 k3 k4 0 0 0 0`` of a fisheye lens.
        fisheye: Which of the two.

    Returns:
        Points that the matrix K maps to pixels of the distorted picture.
    """
    x, y = points[..., 0], points[..., 1]
    r2 = x * x + y * y
    if fisheye:
        r = np.sqrt(r2)
        theta = np.arctan(r)
        bent = theta * _fisheye_factor(theta, distortion)
        scale = np.divide(bent, r, out=np.ones_like(r), where=r > 1e-12)
        return points * scale[..., None]
    p1, p2 = distortion[2], distortion[3]
    radial = _rational_factor(r2, distortion)
    cross = x * y
    return np.stack(
        [
            x * radial + 2 * p1 * cross + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * cross,
        ],
        -1,
    )


def new_intrinsics(
    K: Float[np.ndarray, "3 3"],
    distortion: Float[np.ndarray, "8"],
    fisheye: bool,
    height: int,
    width: int,
) -> Float[np.ndarray, "3 3"]:
    """Return K of the undistorted picture of the same size, without blank borders.

    Raises:
        InputError: If the lens is so distorted that no such picture exists.
    """
    if not distortion.any() and not fisheye:
        return K.astype(np.float64)
    along = np.linspace(0.0, 1.0, 65)
    zero, one = np.zeros_like(along), np.ones_like(along)
    sides = [(along, zero), (along, one), (zero, along), (one, along)]
    border = np.concatenate([np.stack(side, -1) for side in sides]) * (width, height)
    rays = (border - K[:2, 2]) / (K[0, 0], K[1, 1])
    limit = min(_radius_limit(distortion, fisheye), _WIDEST)
    slack = 1e-9 * max(width, height)

    def covered(zoom: float) -> bool:
        new = rays / zoom
        if np.hypot(new[:, 0], new[:, 1]).max() > limit:
            return False
        source = distort(new, distortion, fisheye) * (K[0, 0], K[1, 1]) + K[:2, 2]
        return bool(((source >= -slack) & (source <= (width + slack, height + slack))).all())

    high = next((z for z in np.geomspace(1.0, _MAX_ZOOM, 25) if covered(z)), None)
    if high is None:
        raise InputError(
            "the lens distortion is too strong to be removed from a picture of "
            f"{width} x {height} (K {K[0, 0]:.5g}, {K[1, 1]:.5g}, {K[0, 2]:.5g}, {K[1, 2]:.5g}; "
            f"distortion {np.array2string(distortion, precision=4)}); check the camera"
        )
    low = high / _MAX_ZOOM**2
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if covered(middle) else (middle, high)
    new_K = K.astype(np.float64)
    new_K[0, 0] *= high
    new_K[1, 1] *= high
    new_K[0, 1] = 0.0
    return new_K


def pinhole_intrinsics(lenses: Lenses) -> Float[Tensor, "V 3 3"]:
    """Return `new_intrinsics` of every view, at the size of its picture, in float64."""
    made: dict[tuple[object, ...], Float[np.ndarray, "3 3"]] = {}
    found = []
    for lens in split_lenses(lenses):
        numbers = (lens.K.tobytes(), lens.distortion.tobytes())
        key = (*numbers, lens.fisheye, lens.height, lens.width)
        if key not in made:
            made[key] = new_intrinsics(
                lens.K, lens.distortion, lens.fisheye, lens.height, lens.width
            )
        found.append(torch.from_numpy(made[key]))
    return torch.stack(found) if found else torch.zeros(0, 3, 3, dtype=torch.float64)


def undistort_image(
    pixels: UInt8[np.ndarray, "height width *channels"],
    K: Float[np.ndarray, "3 3"],
    distortion: Float[np.ndarray, "8"],
    fisheye: bool,
    new_K: Float[np.ndarray, "3 3"],
    *,
    size: tuple[int, int] | None = None,
) -> tuple[UInt8[np.ndarray, "new_height new_width *channels"], Bool[np.ndarray, "new_h new_w"]]:
    """Resample a picture through another camera at the same place, which has no distortion.

    Args:
        pixels: The distorted picture.
        K: Its intrinsics, corner convention.
        distortion: As for `distort`.
        fisheye: As for `distort`.
        new_K: Intrinsics of the new picture, at its own size.
        size: Height and width of the new picture; default: those of ``pixels``.

    Returns:
        The new picture, and where it has a source; elsewhere it repeats the source's edge.
    """
    height, width = pixels.shape[:2]
    new_height, new_width = size or (height, width)
    # Enough samples across a new pixel to touch every source pixel.
    shrink = max(K[0, 0] / new_K[0, 0], K[1, 1] / new_K[1, 1])
    samples = min(max(1, math.ceil(shrink - 1e-3)), _MAX_SAMPLES)
    interpolation = cv2.INTER_CUBIC if samples == 1 else cv2.INTER_LINEAR
    made = np.empty((new_height, new_width, *pixels.shape[2:]), np.uint8)
    valid = np.empty((new_height, new_width), bool)
    rows = max(1, _STRIP_POINTS // (new_width * samples * samples))
    limit = _radius_limit(distortion, fisheye)
    for top in range(0, new_height, rows):
        strip = slice(top, min(top + rows, new_height))
        count = strip.stop - strip.start
        dense = np.diag((samples, samples, 1.0)) @ new_K
        dense[1, 2] -= top * samples
        map_x, map_y = _source_positions(
            K, distortion, fisheye, dense, count * samples, new_width * samples
        )
        drawn = _remap(pixels, map_x, map_y, interpolation)
        if samples > 1:
            drawn = cv2.resize(drawn, (new_width, count), interpolation=cv2.INTER_AREA)
        made[strip] = drawn.reshape(made[strip].shape)
        centre = samples // 2  # the sample nearest to the pixel's middle stands for it
        x, y = (m[centre::samples, centre::samples] for m in (map_x, map_y))
        inside = (x >= -0.501) & (x <= width - 0.499) & (y >= -0.501) & (y <= height - 0.499)
        across = (np.arange(new_width) + 0.5 - new_K[0, 2]) / new_K[0, 0]
        down = (np.arange(strip.start, strip.stop) + 0.5 - new_K[1, 2]) / new_K[1, 1]
        valid[strip] = inside & (np.hypot(across[None], down[:, None]) <= limit)
    return made, valid


def _source_positions(
    K: Float[np.ndarray, "3 3"],
    distortion: Float[np.ndarray, "8"],
    fisheye: bool,
    new_K: Float[np.ndarray, "3 3"],
    height: int,
    width: int,
) -> tuple[Shaped[np.ndarray, "h w"], Shaped[np.ndarray, "h w"]]:
    """Return OpenCV's sampling maps; its pixel centres are whole numbers, ours are at a half."""
    centred, new_centred = K.astype(np.float64), new_K.astype(np.float64)
    centred[:2, 2] -= 0.5
    new_centred[:2, 2] -= 0.5
    size, eye = (width, height), np.eye(3)
    if fisheye:
        return cv2.fisheye.initUndistortRectifyMap(
            centred, distortion[:4], eye, new_centred, size, cv2.CV_32FC1
        )
    return cv2.initUndistortRectifyMap(centred, distortion, eye, new_centred, size, cv2.CV_32FC1)


def _remap(
    pixels: UInt8[np.ndarray, "h w *c"],
    map_x: Shaped[np.ndarray, "H W"],
    map_y: Shaped[np.ndarray, "H W"],
    interpolation: int,
) -> UInt8[np.ndarray, "H W *c"]:
    if max(*pixels.shape[:2], *map_x.shape) > _REMAP_LIMIT:
        raise InputError(
            f"pictures of more than {_REMAP_LIMIT} pixels a side cannot be undistorted, got "
            f"{pixels.shape[1]} x {pixels.shape[0]}; shrink them first"
        )
    return cv2.remap(pixels, map_x, map_y, interpolation, borderMode=cv2.BORDER_REPLICATE)


def _rational_factor(
    r2: Float[np.ndarray, "*batch"], distortion: Float[np.ndarray, "8"]
) -> Float[np.ndarray, "*batch"]:
    k1, k2, _, _, k3, k4, k5, k6 = distortion
    return (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))


def _fisheye_factor(
    theta: Float[np.ndarray, "*batch"], distortion: Float[np.ndarray, "8"]
) -> Float[np.ndarray, "*batch"]:
    k1, k2, k3, k4 = distortion[:4]
    t2 = theta * theta
    return 1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))


def _radius_limit(distortion: Float[np.ndarray, "8"], fisheye: bool) -> float:
    """Return the radius at z = 1 from which on the fitted polynomial folds back on itself."""
    theta = np.linspace(0.0, math.radians(85), 4096)
    r = np.tan(theta)
    if fisheye:
        bent = theta * _fisheye_factor(theta, distortion)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            bent = r * _rational_factor(r * r, distortion)
    rising = np.diff(bent) > 0
    return math.inf if rising.all() else float(r[np.argmin(rising)])
