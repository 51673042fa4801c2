"""``cameras.npz`` and ``geometry.npz``: the arrays of a scene, as every exporter reads them."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.errors import FileFormatError
from sightline.io.arrays import read_npz, write_npz
from sightline.types import Cameras, Lenses, Reconstruction, SparsePoints, Views

_CAMERA_SHAPES = {
    "w2c": ("V", 4, 4),
    "K": ("V", 3, 3),
    "from_original": ("V", 3, 3),
    "names": ("V",),
    "sizes": ("V", 2),
    "original_size": ("V", 2),
    "registered": ("V",),
    "test": ("V",),
    "height": (),
    "width": (),
    "metric": (),
}
_DENSE = ("depth", "confidence", "valid")
_LENS_SHAPES = {"lens_K": ("V", 3, 3), "lens_distortion": ("V", 8), "lens_fisheye": ("V",)}


def write_cameras(
    path: Path,
    views: Views,
    reconstruction: Reconstruction,
    *,
    original_size: Int64[Tensor, "V 2"],
    test: Bool[Tensor, " V"],
    estimated: Float[Tensor, "V 4 4"] | None = None,
) -> None:
    """Write one camera a view, at the size of ``views``; unregistered poses are NaN.

    Args:
        path: ``cameras.npz``.
        views: Carries ``cameras``, names and sizes.
        reconstruction: Tells registration, metric scale and the lenses of the stored pictures.
        original_size: Height and width of the stored pictures.
        test: True for held-out views.
        estimated: Poses as geometry found them, where those of ``views`` were refined since.
    """
    assert views.cameras is not None
    arrays = {
        "w2c": views.cameras.w2c.double(),
        "K": views.cameras.K.double(),
        "height": np.int64(views.cameras.height),
        "width": np.int64(views.cameras.width),
        "from_original": views.from_original.double(),
        "names": np.array(views.names, dtype=np.str_),
        "metric": np.bool_(reconstruction.metric),
        "sizes": views.sizes,
        "original_size": original_size,
        "registered": reconstruction.registered,
        "test": test,
    }
    if reconstruction.lenses is not None:
        arrays["lens_K"] = reconstruction.lenses.K.double()
        arrays["lens_distortion"] = reconstruction.lenses.distortion.double()
        arrays["lens_fisheye"] = reconstruction.lenses.fisheye
    if estimated is not None:
        arrays["w2c_estimated"] = estimated.double()
    write_npz(path, arrays)


class CameraFile:
    """What ``cameras.npz`` holds, checked.

    Attributes:
        cameras: float64, at model resolution; refined with the splats where that was asked for.
        estimated: Their poses as geometry found them, before any refinement with splats.
        names, from_original, sizes, original_size, registered, test, metric: As in the file.
        lenses: Of the stored pictures, or None.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the file.

        Raises:
            InputError: If it is missing.
            FileFormatError: If it is damaged or shapes contradict each other.
        """
        arrays = read_npz(path, max_bytes=1 << 30)
        _check(path, arrays, _CAMERA_SHAPES)
        self.names: tuple[str, ...] = tuple(str(name) for name in arrays["names"])
        self.cameras = Cameras(
            w2c=_floats(arrays["w2c"]),
            K=_floats(arrays["K"]),
            height=int(arrays["height"]),
            width=int(arrays["width"]),
        )
        self.estimated = self.cameras.w2c
        if "w2c_estimated" in arrays:
            _check(path, arrays, {"w2c": ("V", 4, 4), "w2c_estimated": ("V", 4, 4)})
            self.estimated = _floats(arrays["w2c_estimated"])
        self.from_original = _floats(arrays["from_original"])
        self.sizes = torch.from_numpy(arrays["sizes"]).long()
        self.original_size = torch.from_numpy(arrays["original_size"]).long()
        self.registered = torch.from_numpy(arrays["registered"]).bool()
        self.test = torch.from_numpy(arrays["test"]).bool()
        self.metric = bool(arrays["metric"])
        self.lenses: Lenses | None = None
        if "lens_K" in arrays:
            _check(path, arrays, _LENS_SHAPES)
            self.lenses = Lenses(
                K=_floats(arrays["lens_K"]),
                distortion=_floats(arrays["lens_distortion"]),
                fisheye=torch.from_numpy(arrays["lens_fisheye"]).bool(),
                sizes=self.original_size,
            )


def write_geometry(
    path: Path,
    views: Views,
    reconstruction: Reconstruction,
    *,
    sky: Bool[Tensor, "V H W"] | None = None,
) -> None:
    """Write the views' pictures and whatever geometry there is.

    ``views.images`` are uint8. Points and depth are in the scene's units, world axes; ``sky`` marks
    what has no surface.
    """
    assert views.images.dtype == torch.uint8
    arrays: dict[str, Tensor | np.ndarray] = {"images": views.images.movedim(1, -1).contiguous()}
    if views.masks is not None:
        arrays["valid"] = views.masks
    for name in ("depth", "confidence", "points"):
        value = getattr(reconstruction, name)
        if value is not None:
            arrays[name] = value.float()
    if reconstruction.valid is not None:
        arrays["geometry_valid"] = reconstruction.valid
    if sky is not None:
        arrays["sky"] = sky
    if reconstruction.sparse is not None:
        arrays["sparse_points"] = reconstruction.sparse.points.float()
        arrays["sparse_colors"] = reconstruction.sparse.colors
        arrays["sparse_tracks"] = reconstruction.sparse.tracks
        if reconstruction.sparse.errors is not None:
            arrays["sparse_errors"] = reconstruction.sparse.errors.float()
    write_npz(path, {k: np.asarray(v) for k, v in arrays.items()}, compress=False)


class GeometryFile:
    """What ``geometry.npz`` holds, checked against its ``cameras.npz``.

    Attributes:
        images: uint8 [V 3 H W].
        valid: [V H W] or None: where a pixel counts.
        depth, confidence, points: Dense maps or None.
        geometry_valid, sky: [V H W] or None: where depth holds, and what has no surface.
        sparse: Triangulated points or None.
    """

    def __init__(self, path: Path, cameras: CameraFile) -> None:
        """Read and check the file.

        Raises:
            InputError: If it is missing.
            FileFormatError: If it is damaged or does not fit the cameras.
        """
        arrays = read_npz(path)
        size = (len(cameras.names), cameras.cameras.height, cameras.cameras.width)
        shapes: dict[str, tuple[int | str, ...]] = {
            "images": (*size, 3),
            "valid": size,
            "geometry_valid": size,
            "sky": size,
            "depth": size,
            "confidence": size,
            "points": (*size, 3),
        }
        wanted = {k: v for k, v in shapes.items() if k == "images" or k in arrays}
        _check(path, arrays, wanted)
        self.images = torch.from_numpy(arrays["images"]).movedim(-1, 1)
        self.valid = _tensor(arrays, "valid")
        self.geometry_valid = _tensor(arrays, "geometry_valid")
        self.sky = _tensor(arrays, "sky")
        self.depth = _tensor(arrays, "depth")
        self.confidence = _tensor(arrays, "confidence")
        self.points = _tensor(arrays, "points")
        self.sparse: SparsePoints | None = None
        if "sparse_points" in arrays:
            _check(
                path,
                arrays,
                {
                    "sparse_points": ("N", 3),
                    "sparse_colors": ("N", 3),
                    "sparse_tracks": ("T", 2),
                    **({"sparse_errors": ("N",)} if "sparse_errors" in arrays else {}),
                },
            )
            tracks = arrays["sparse_tracks"]
            count = len(arrays["sparse_points"])
            if len(tracks) and not (
                tracks.min() >= 0 and tracks[:, 0].max() < count and tracks[:, 1].max() < size[0]
            ):
                raise FileFormatError(
                    f"{path.name}: sparse_tracks point outside the {count} points and "
                    f"{size[0]} views; make the run again"
                )
            self.sparse = SparsePoints(
                points=torch.from_numpy(arrays["sparse_points"]).float(),
                colors=torch.from_numpy(arrays["sparse_colors"]),
                tracks=torch.from_numpy(tracks).int(),
                errors=_tensor(arrays, "sparse_errors"),
            )

    @property
    def surface(self) -> Bool[Tensor, "V H W"] | None:
        """Where depth maps show something solid; None where nothing is known of that."""
        if self.sky is None or self.geometry_valid is None:
            return self.geometry_valid
        return self.geometry_valid & ~self.sky


def _floats(array: np.ndarray) -> Float[Tensor, "..."]:
    return torch.from_numpy(array).double()


def _tensor(arrays: dict[str, np.ndarray], name: str) -> Tensor | None:
    return torch.from_numpy(arrays[name]) if name in arrays else None


def _check(
    path: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int | str, ...]]
) -> None:
    """Raise unless every array is there with its shape; letters must agree with each other."""
    letters: dict[str, int] = {}
    for name, want in shapes.items():
        if name not in arrays:
            raise FileFormatError(
                f'{path.name}: expected an array "{name}", found only '
                f"{', '.join(sorted(arrays)) or 'nothing'}; make the run again"
            )
        got = arrays[name].shape
        good = len(got) == len(want)
        for have, axis in zip(got, want, strict=False):
            length = letters.setdefault(axis, have) if isinstance(axis, str) else axis
            good = good and have == length
        if not good:
            names = ", ".join(f"{a}={letters[a]}" if a in letters else str(a) for a in want)
            raise FileFormatError(
                f"{path.name}: {name} must have shape [{names}], got {list(got)}; make the run again"
            )


def write_reconstruction(path: Path, reconstruction: Reconstruction) -> None:
    """Write a reconstruction of the stored pictures, for the next stage of a run.

    Point maps are left out: depth and cameras give them.
    """
    arrays: dict[str, Tensor | np.ndarray] = {
        "w2c": reconstruction.cameras.w2c.double(),
        "K": reconstruction.cameras.K.double(),
        "height": np.array(reconstruction.cameras.height),
        "width": np.array(reconstruction.cameras.width),
        "registered": reconstruction.registered,
        "metric": np.array(reconstruction.metric),
        "rejected": np.array(reconstruction.rejected, dtype=np.str_).reshape(-1, 2),
    }
    if reconstruction.lenses is not None:
        arrays["lens_K"] = reconstruction.lenses.K.double()
        arrays["lens_distortion"] = reconstruction.lenses.distortion.double()
        arrays["lens_fisheye"] = reconstruction.lenses.fisheye
        arrays["lens_sizes"] = reconstruction.lenses.sizes
    if reconstruction.sparse is not None:
        arrays["sparse_points"] = reconstruction.sparse.points.double()
        arrays["sparse_colors"] = reconstruction.sparse.colors
        arrays["sparse_tracks"] = reconstruction.sparse.tracks
        if reconstruction.sparse.errors is not None:
            arrays["sparse_errors"] = reconstruction.sparse.errors.double()
    for name in _DENSE:
        value = getattr(reconstruction, name)
        if value is not None:
            arrays[name] = value
    dense = reconstruction.depth is not None
    write_npz(path, {k: np.asarray(v) for k, v in arrays.items()}, compress=not dense)


def read_reconstruction(path: Path) -> Reconstruction:
    """Read what ``write_reconstruction`` wrote.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged.
    """
    arrays = read_npz(path)
    shapes: dict[str, tuple[int | str, ...]] = {
        "w2c": ("V", 4, 4),
        "K": ("V", 3, 3),
        "height": (),
        "width": (),
        "registered": ("V",),
        "metric": (),
        "rejected": ("R", 2),
    }
    if "lens_K" in arrays:
        shapes |= {**_LENS_SHAPES, "lens_sizes": ("V", 2)}
    if "sparse_points" in arrays:
        shapes |= {
            "sparse_points": ("N", 3),
            "sparse_colors": ("N", 3),
            "sparse_tracks": ("T", 2),
        }
    shapes |= {name: ("V", "H", "W") for name in _DENSE if name in arrays}
    _check(path, arrays, shapes)
    lenses = sparse = None
    if "lens_K" in arrays:
        lenses = Lenses(
            K=_floats(arrays["lens_K"]),
            distortion=_floats(arrays["lens_distortion"]),
            fisheye=torch.from_numpy(arrays["lens_fisheye"]),
            sizes=torch.from_numpy(arrays["lens_sizes"]).long(),
        )
    if "sparse_points" in arrays:
        sparse = SparsePoints(
            points=_floats(arrays["sparse_points"]),
            colors=torch.from_numpy(arrays["sparse_colors"]),
            tracks=torch.from_numpy(arrays["sparse_tracks"]).int(),
            errors=_tensor(arrays, "sparse_errors"),
        )
    return Reconstruction(
        cameras=Cameras(
            w2c=_floats(arrays["w2c"]),
            K=_floats(arrays["K"]),
            height=int(arrays["height"]),
            width=int(arrays["width"]),
        ),
        registered=torch.from_numpy(arrays["registered"]),
        metric=bool(arrays["metric"]),
        sparse=sparse,
        lenses=lenses,
        rejected=tuple((str(name), str(reason)) for name, reason in arrays["rejected"]),
        **{name: _tensor(arrays, name) for name in _DENSE},
    )
