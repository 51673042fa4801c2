"""Lenses one by one: from the command line, from files, fitted to the picture at hand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from sightline.errors import FileFormatError, InputError
from sightline.io import colmap_binary, colmap_text
from sightline.io.colmap import ColmapCamera, camera_from_lens, lens_from_camera
from sightline.io.colmap_model import CAMERA_MODELS
from sightline.io.manifest import is_number
from sightline.io.reading import read_json, read_whole
from sightline.types import Lenses

_SAME_SHAPE = 0.01
_LONGEST = 4096
"""Characters of a path."""
"""Largest difference of aspect ratios at which K is scaled to a resized picture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lens:
    """One row of ``Lenses``; the size is 0 x 0 when the giver did not state it."""

    K: Float64[np.ndarray, "3 3"]
    distortion: Float64[np.ndarray, "8"]
    fisheye: bool = False
    height: int = 0
    width: int = 0

    def to_json(self, source: str) -> dict[str, Any]:
        """Return the manifest's ``camera`` object."""
        camera = camera_from_lens(
            0,
            self.K,
            self.distortion,
            fisheye=self.fisheye,
            width=self.width,
            height=self.height,
        )
        return {"model": camera.model, "params": list(camera.params), "source": source}


def pinhole_lens(focal: float, height: int, width: int) -> Lens:
    """Return a lens without distortion whose axis meets the middle of the picture."""
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Lens(K=K, distortion=np.zeros(8), height=height, width=width)


def lens_from_colmap(camera: ColmapCamera) -> Lens:
    """Return a COLMAP camera as a lens; raises InputError for models that OpenCV lacks."""
    K, distortion, fisheye = lens_from_camera(camera)
    return Lens(
        K=K, distortion=distortion, fisheye=fisheye, height=camera.height, width=camera.width
    )


def lens_from_json(path: Path, camera: Mapping[str, Any], height: int, width: int) -> Lens:
    """Return a manifest's ``camera`` object as a lens of a picture of the given size.

    Raises:
        FileFormatError: If the model is unknown or the parameters do not fit it.
    """
    model, params = camera.get("model"), camera.get("params")
    if not isinstance(model, str) or model not in CAMERA_MODELS:
        raise FileFormatError(f"{path.name}: no camera model {str(model)[:40]!r}; see COLMAP's")
    good = isinstance(params, list) and len(params) == CAMERA_MODELS[model]
    if not good or not all(is_number(p) for p in params or ()):
        raise FileFormatError(
            f"{path.name}: expected {CAMERA_MODELS[model]} finite numbers for a {model} camera, "
            f"got {str(params)[:60]}"
        )
    return lens_from_colmap(
        ColmapCamera(
            id=0,
            model=model,
            width=width,
            height=height,
            params=tuple(float(p) for p in params or ()),
        )
    )


def stack_lenses(lenses: Sequence[Lens]) -> Lenses:
    """Return the record that crosses package boundaries, in float64."""
    return Lenses(
        K=torch.from_numpy(np.stack([lens.K for lens in lenses])),
        distortion=torch.from_numpy(np.stack([lens.distortion for lens in lenses])),
        fisheye=torch.tensor([lens.fisheye for lens in lenses]),
        sizes=torch.tensor([(lens.height, lens.width) for lens in lenses]),
    )


def split_lenses(lenses: Lenses) -> list[Lens]:
    """Undo `stack_lenses`."""
    rows = zip(
        lenses.K.double().cpu().numpy(),
        lenses.distortion.double().cpu().numpy(),
        lenses.fisheye.tolist(),
        lenses.sizes.tolist(),
        strict=True,
    )
    return [
        Lens(K=K, distortion=distortion, fisheye=fisheye, height=size[0], width=size[1])
        for K, distortion, fisheye, size in rows
    ]


def fit_lens(lens: Lens, height: int, width: int) -> Lens | None:
    """Return the lens for a picture that may have been resized since, or None if it cannot be."""
    if not lens.height or not lens.width:
        return Lens(
            K=lens.K, distortion=lens.distortion, fisheye=lens.fisheye, height=height, width=width
        )
    across, down = width / lens.width, height / lens.height
    if abs(across / down - 1) > _SAME_SHAPE:
        return None
    K = np.diag((across, down, 1.0)) @ lens.K
    return Lens(K=K, distortion=lens.distortion, fisheye=lens.fisheye, height=height, width=width)


def parse_intrinsics(text: str) -> tuple[Lens, ...]:
    """Read ``--intrinsics``: ``fx,fy,cx,cy`` in pixels, or a file.

    Files: COLMAP's ``cameras.txt`` or ``cameras.bin``; JSON with ``fl_x, fl_y, cx, cy`` (or ``fx,
    fy``), optionally ``k1 k2 p1 p2 k3 k4``, ``w`` and ``h``, as ``transforms.json`` has them; or
    JSON with ``model``, ``params``, ``width`` and ``height`` in COLMAP's terms.

    Returns:
        One lens, or one for each camera of a COLMAP file.

    Raises:
        InputError: If the text is neither four numbers nor an existing file, or a lens is unusual.
        FileFormatError: If the file has another form.

    >>> (lens,) = parse_intrinsics("500,510,320,240")
    >>> lens.K.diagonal().tolist()
    [500.0, 510.0, 1.0]
    """
    path = _path_of(text)
    if re.fullmatch(r"[-+\d.eE,\s]+", text) and not (path is not None and _is_there(path)):
        try:
            fx, fy, cx, cy = (float(part) for part in text.split(","))
        except ValueError as error:
            raise InputError(
                f"--intrinsics expects fx,fy,cx,cy or a file, got {text[:80]!r}; give four numbers"
            ) from error
        return (_checked("--intrinsics", _lens(fx, fy, cx, cy)),)
    if path is None or not _is_there(path):
        raise InputError(
            f"--intrinsics expects fx,fy,cx,cy or a file, but there is no file "
            f"{' '.join(text[:200].split())}; check the path"
        )
    if path.suffix.lower() in (".txt", ".bin"):
        codec = colmap_binary if path.suffix.lower() == ".bin" else colmap_text
        cameras = codec.read_cameras(path, read_whole(path))
        if not cameras:
            raise FileFormatError(f"{path.name}: expected COLMAP cameras, got none")
        return tuple(_checked(path.name, lens_from_colmap(camera)) for camera in cameras)
    return (_checked(path.name, _lens_from_file(path)),)


def _path_of(text: str) -> Path | None:
    if len(text) >= _LONGEST or not text.isprintable():
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # somebody whom this machine does not know
        return None


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def choose_lens(lenses: Sequence[Lens], height: int, width: int, name: str) -> Lens:
    """Return the lens that belongs to a picture of this size.

    Raises:
        InputError: If none or several different ones do.
    """
    pairs = [(lens, fit_lens(lens, height, width)) for lens in lenses]
    fitting = [(lens, fit) for lens, fit in pairs if fit is not None]
    same = ((height, width), (0, 0))
    exact = [fit for lens, fit in fitting if (lens.height, lens.width) in same]
    chosen = exact or [fit for _, fit in fitting]
    if not chosen:
        sizes = ", ".join(f"{lens.width} x {lens.height}" for lens in lenses[:5])
        raise InputError(
            f"--intrinsics is for pictures of {sizes}, but {name} has {width} x {height} pixels; "
            "give intrinsics of these pictures"
        )
    first = chosen[0]
    if any(
        not np.array_equal(first.K, lens.K) or not np.array_equal(first.distortion, lens.distortion)
        for lens in chosen[1:]
    ):
        raise InputError(
            f"--intrinsics has {len(chosen)} cameras for pictures of {width} x {height}; give a "
            "file with one, or the whole COLMAP model as input"
        )
    return first


def _lens_from_file(path: Path) -> Lens:
    data = read_json(path)
    if isinstance(data, dict) and isinstance(data.get("camera"), dict):
        data = data | data["camera"]
    if isinstance(data, dict) and "model" in data and "params" in data:
        width, height = (
            _size(data, long, short) for long, short in (("width", "w"), ("height", "h"))
        )
        return lens_from_json(path, data, height, width)
    if not isinstance(data, dict):
        data = {}
    fx = data.get("fl_x", data.get("fx"))
    fy = data.get("fl_y", data.get("fy", fx))
    numbers = (fx, fy, data.get("cx"), data.get("cy"))
    if not all(is_number(v) for v in numbers):
        raise FileFormatError(
            f"{path.name}: expected intrinsics (fl_x, fl_y, cx, cy or model, params), got other "
            "JSON"
        )
    fisheye = "FISHEYE" in str(data.get("camera_model", "")).upper()
    order = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3", "k4")
    given = [data.get(name, 0.0) for name in order]
    if not all(is_number(v) for v in given):
        raise FileFormatError(f"{path.name}: expected finite distortion, got {str(given)[:60]}")
    distortion = np.zeros(8)
    distortion[: len(given)] = given
    return _lens(
        *(float(v) for v in numbers),  # type: ignore[arg-type]
        distortion=distortion,
        fisheye=fisheye,
        height=_size(data, "height", "h"),
        width=_size(data, "width", "w"),
    )


def _size(data: Mapping[str, Any], long: str, short: str) -> int:
    value = data.get(short, data.get(long, 0))
    return int(value) if is_number(value) and 0 < value < 10**7 else 0


def _lens(
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    *,
    distortion: Float64[np.ndarray, "8"] | None = None,
    fisheye: bool = False,
    height: int = 0,
    width: int = 0,
) -> Lens:
    return Lens(
        K=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]),
        distortion=np.zeros(8) if distortion is None else distortion,
        fisheye=fisheye,
        height=height,
        width=width,
    )


def _checked(name: str, lens: Lens) -> Lens:
    finite = np.isfinite(lens.K).all() and np.isfinite(lens.distortion).all()
    if not finite or min(lens.K[0, 0], lens.K[1, 1]) <= 0:
        raise InputError(
            f"{name}: expected positive focal lengths in pixels, got {lens.K[0, 0]:g} and "
            f"{lens.K[1, 1]:g}"
        )
    return lens
