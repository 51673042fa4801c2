"""One scene, ready to be probed: chosen views, their pictures at two sizes, known cameras."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.datasets.base import scene_from_given
from sightline.datasets.synthetic import KINDS, SyntheticTruth, make_scene
from sightline.errors import InputError, UnknownNameError
from sightline.io.given import GivenPoints, GivenScene, read_given
from sightline.io.inputs import discover, unique_names
from sightline.io.sums import sha256
from sightline.io.views import load_views
from sightline.probing.frames import (
    Frame,
    make_frame,
    nearest_map,
    stack_pictures,
    target_picture,
    working_picture,
)
from sightline.probing.layouts import (
    ANNOTATIONS,
    TRANSFORMS,
    is_co3d,
    is_scannetpp,
    read_co3d,
    read_scannetpp,
)
from sightline.probing.protocols import Protocol
from sightline.probing.splits import Split, choose_split, split_by_folder, stem_of
from sightline.types import Cameras, PointCloud, TensorStruct, Views

KINDS_OF_SCENES = ("photos", "colmap", "transforms", "dtu", "scannetpp", "co3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSource:
    """Where a scene comes from.

    Attributes:
        id: Unique in a grid, such as ``LLFF/fortress``.
        path: A folder of photos, a COLMAP workspace, a ``transforms.json`` or its folder, a scan of
            DTU, a ``dslr`` folder of ScanNet++ or a sequence of CO3D; empty for a synthetic scene.
        synthetic: Arguments of `make_scene`.
        kind: How the path is read; None finds out. ``dtu`` is never found out.
        hash: Of the scene in its source, for the split file (DL3DV).
        train: Names (without endings) of the training views; empty: by `choose_split`.
        test: Names of the test views.
        score: False leaves test views out (inference only).
        noise: Standard deviation of Gaussian noise on the points, in units of the scene (DTU).
        geometry: Name of a geometry method; None is the grid's.
    """

    id: str
    path: str = ""
    synthetic: Mapping[str, Any] | None = None
    kind: str | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    score: bool = True
    noise: float = 0.0
    geometry: str | None = None
    hash: str = ""

    @property
    def dataset(self) -> str:
        """The data set's name: what comes before the slash."""
        return self.id.rpartition("/")[0] or "scenes"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeScene(TensorStruct):
    """Training views first, test views behind them."""

    id: str
    names: tuple[str, ...]
    num_train: int
    frame: Frame
    working: UInt8[Tensor, "V 3 h w"]
    targets: UInt8[Tensor, "V 3 H W"]
    cameras: Cameras | None = None
    """Known ones, at the size of ``working``, float64."""
    depth: Float[Tensor, "V h w"] | None = None
    """Measured z-depth in the units of the cameras; 0 where unknown."""
    normals: Float[Tensor, "V h w 3"] | None = None
    """True surface normals in each camera, where they are known."""
    cloud: PointCloud | None = None
    """Known points that training views see."""
    files: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.names)

    @property
    def num_test(self) -> int:
        """How many views are scored."""
        return len(self) - self.num_train


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Original:
    """Chosen views as they are on disk."""

    names: tuple[str, ...]
    images: UInt8[Tensor, "V 3 H W"]
    cameras: Cameras | None = None
    depth: Float[Tensor, "V H W"] | None = None
    normals: Float[Tensor, "V H W 3"] | None = None
    cloud: PointCloud | None = None
    files: tuple[Path, ...] | None = None
    center: tuple[float, float] | None = None
    """Where working pictures are cut about; None: the middle."""


def load_scene(source: SceneSource, protocol: Protocol) -> ProbeScene:
    """Read a scene's chosen views.

    Raises:
        InputError: If it is missing, or its pictures are of unlike sizes.
        FileFormatError: If a file is damaged.
    """
    split, original = _read(source, protocol)
    images = original.images.permute(0, 2, 3, 1).contiguous().numpy()
    frame = make_frame((images.shape[1], images.shape[2]), protocol, original.center)
    cameras = original.cameras
    if cameras is not None:
        move = frame.working_from_original()
        cameras = Cameras(
            w2c=cameras.w2c.double(),
            K=move @ cameras.K.double(),
            height=frame.working[0],
            width=frame.working[1],
        )
    return ProbeScene(
        id=source.id,
        names=original.names,
        num_train=len(split.train),
        frame=frame,
        working=stack_pictures([working_picture(image, frame) for image in images]),
        targets=stack_pictures([target_picture(image, frame) for image in images]),
        cameras=cameras,
        depth=_maps(original.depth, frame),
        normals=_maps(original.normals, frame),
        cloud=original.cloud,
        files=original.files,
    )


def list_views(source: SceneSource) -> list[str]:
    """Return the names of all views of a source, without endings, in natural order."""
    if source.synthetic is not None:
        return [f"view_{i:03d}" for i in range(int(source.synthetic.get("num_views", 24)))]
    return [stem_of(name) for name, _ in _listed(source)]


def split_of(source: SceneSource, protocol: Protocol) -> Split:
    """Return the views that a protocol uses of a source.

    Raises:
        InputError: If a view of the given split is not there.
    """
    names = list_views(source)
    if source.train:
        missing = sorted({*source.train, *source.test} - set(names))
        if missing:
            raise InputError(
                f"{source.id}: the split names {len(missing)} views that are not in "
                f"{source.path or 'the scene'} ({', '.join(missing[:3])}); put them in place or "
                "fix the split"
            )
        return Split(source.train, source.test if source.score else (), source.hash)
    shown = split_by_folder(Path(source.path), names) if source.path else None
    if shown is not None:
        return shown if source.score else Split(shown.train, ())
    return choose_split(names, protocol.train_views, protocol.test_views if source.score else 0)


def fingerprint(source: SceneSource, protocol: Protocol) -> str:
    """Return a digest of everything that `load_scene` would read; changes with any file's bytes."""
    parts: list[str] = [repr(sorted((source.synthetic or {}).items())), str(source.kind)]
    split = split_of(source, protocol)
    if source.synthetic is None:
        chosen = {*split.train, *split.test}
        files = [file for name, file in _listed(source) if stem_of(name) in chosen]
        files += _side_files(source)
        parts += [f"{file.name} {sha256(file)}" for file in files]
    parts += [repr(split), repr(source.noise)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _side_files(source: SceneSource) -> list[Path]:
    """Return the files with cameras, depth and masks."""
    path = Path(source.path)
    kind, given = _given(source)
    files: list[Path] = []
    if kind == "dtu":
        files = [*path.glob("cams/*"), *path.glob("depths/*"), *path.glob("binary_masks/*")]
    elif kind == "co3d":
        files = [path.parent / ANNOTATIONS, *path.glob("depths/*"), *path.glob("depth_masks/*")]
    elif kind == "scannetpp":
        files = [path / TRANSFORMS]
    elif kind == "transforms":
        files = [path / "transforms.json" if path.is_dir() else path]
    elif kind == "colmap":
        files = [p for p in path.rglob("*") if p.suffix in (".bin", ".txt") and p.is_file()]
    for view in given.views if given else ():
        files += [file for file in (view.mask, view.depth) if file is not None]
    return sorted(files)


def _given(source: SceneSource) -> tuple[str, GivenScene | None]:
    path = Path(source.path)
    if not path.exists():
        raise InputError(f"{source.id}: there is no {path}; check the path in the configuration")
    kind = source.kind
    if kind is None and path.is_dir():
        kind = "scannetpp" if is_scannetpp(path) else "co3d" if is_co3d(path) else None
    kind = kind or discover([path])[0].kind
    if kind == "scannetpp":
        return kind, read_scannetpp(path)
    if kind in ("colmap", "transforms"):
        file = path / "transforms.json" if kind == "transforms" and path.is_dir() else path
        return kind, read_given(kind, file)
    if kind not in ("photos", "dtu", "co3d"):
        raise UnknownNameError("kind of scene", kind, KINDS_OF_SCENES)
    return kind, None


def _listed(source: SceneSource) -> list[tuple[str, Path]]:
    """Return (name, file) of all views, in natural order."""
    kind, given = _given(source)
    if given is not None:
        return [(view.name, view.file) for view in given.views]
    folder = Path(source.path)
    if kind in ("dtu", "co3d") or (folder / "images").is_dir():
        folder = folder / "images"
    (found,) = discover([folder], kind="photos")
    return list(
        zip(unique_names(found.files, [f.suffix for f in found.files]), found.files, strict=True)
    )


def _read(source: SceneSource, protocol: Protocol) -> tuple[Split, _Original]:
    split = split_of(source, protocol)
    wanted = [*split.train, *split.test]
    if source.synthetic is not None:
        return split, _synthetic(source.synthetic, wanted)
    kind, given = _given(source)
    if kind == "dtu":
        from sightline.probing.dtu import read_dtu

        return split, _Original(**read_dtu(Path(source.path), wanted))
    if kind == "co3d":
        return split, _Original(**read_co3d(Path(source.path), wanted))
    if given is not None:
        return split, _from_given(given, wanted, source.id)
    by_stem = {stem_of(name): (name, file) for name, file in _listed(source)}
    names, files = zip(*(by_stem[stem] for stem in wanted), strict=True)
    views = _of_one_size(load_views(files, names), source.id)
    return split, _Original(names=tuple(names), images=_bytes(views.images), files=tuple(files))


def _from_given(given: GivenScene, wanted: Sequence[str], name: str) -> _Original:
    order = {stem_of(Path(view.name).name): i for i, view in enumerate(given.views)}
    index = [order[stem] for stem in wanted]
    chosen = replace(given, views=tuple(given.views[i] for i in index), points=None)
    scene = scene_from_given(chosen, name)
    views = _of_one_size(scene.views, name)
    truth = scene.ground_truth
    return _Original(
        names=views.names,
        images=_bytes(views.images),
        cameras=views.cameras,
        depth=None if truth is None else truth.depth,
        cloud=None if given.points is None else _seen(given.points, set(index)),
        files=views.files,
    )


def _seen(points: GivenPoints, views: set[int]) -> PointCloud | None:
    """Return the points that some of the views see."""
    rows = np.unique(points.tracks[np.isin(points.tracks[:, 1], list(views)), 0])
    if len(rows) < 3:
        return None
    return PointCloud(
        points=torch.from_numpy(points.points[rows]).float(),
        colors=torch.from_numpy(points.colors[rows]).float() / 255,
    )


def _synthetic(arguments: Mapping[str, Any], wanted: Sequence[str]) -> _Original:
    known = {"num_views", "height", "width", "seed", "kind", "supersampling"}
    for key in arguments:
        if key not in known:
            raise UnknownNameError("option of synthetic scenes", key, known)
    if arguments.get("kind", "tabletop") not in KINDS:
        raise UnknownNameError("synthetic scene", str(arguments["kind"]), KINDS)
    scene = make_scene(**dict(arguments), num_points=500, test_every=0)
    order = {Path(name).stem: i for i, name in enumerate(scene.views.names)}
    index = [order[stem] for stem in wanted]
    truth = scene.ground_truth
    assert truth is not None
    assert truth.depth is not None
    assert isinstance(truth.raw, SyntheticTruth)
    return _Original(
        names=tuple(scene.views.names[i] for i in index),
        images=_bytes(scene.views.images[index]),
        cameras=truth.cameras.select(index),
        depth=truth.depth[index],
        normals=truth.raw.normals[index],
    )


def _of_one_size(views: Views, name: str) -> Views:
    if len({tuple(size) for size in views.sizes.tolist()}) > 1:
        raise InputError(
            f"{name}: all views of a probed scene must have one size, got "
            f"{sorted({tuple(s) for s in views.sizes.tolist()})} (height, width); crop the photos"
        )
    return views


def _bytes(images: Tensor) -> UInt8[Tensor, "V 3 H W"]:
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


def _maps(values: Tensor | None, frame: Frame) -> Tensor | None:
    if values is None:
        return None
    return torch.from_numpy(np.stack([nearest_map(v.numpy(), frame) for v in values]))


def describe(source: SceneSource) -> dict[str, Any]:
    """Return plain values for JSON."""
    return asdict(source)
