"""Any pictures with poses and depth as training data, read one by one as they are drawn.

Taken are a ``transforms.json`` or manifest whose frames name depth maps; a COLMAP model with
``depth/STEM.png`` beside it (16 bits, with ``scale.json`` as `sightline export` writes it) or with
COLMAP's own ``stereo/depth_maps``; and the run folder of `sightline reconstruct`, whose cameras and
depth are estimates: **pseudo ground truth**, and marked as such.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray

from sightline.datasets.augment import draw_keep
from sightline.datasets.framing import PosedPicture, frame_picture, sample_of
from sightline.errors import InputError
from sightline.io.depth import read_depth_png, read_depth_scale
from sightline.io.given import GivenScene, GivenView, read_given
from sightline.io.images import read_image, read_samples
from sightline.io.inputs import discover, natural_key
from sightline.io.reading import bad_file, read_whole
from sightline.io.scene_arrays import CameraFile, GeometryFile
from sightline.run import is_run
from sightline.types import MultiView

_REACH = 16
"""How many of the nearest views others are drawn from, at least."""
_TURN = 30.0
"""Degrees between views that count like one median distance between cameras."""
_HELD_OUT = 10
"""One scene of this many is for validation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosedScene:
    """The views of a scene that have a pose and depth."""

    name: str
    views: tuple[str, ...]
    read: Callable[[int], PosedPicture]
    near: Int64[ndarray, "N M"]
    """For every view the others, nearest first."""
    metric: bool
    pseudo: bool
    """Whether cameras and depth are estimates of `sightline reconstruct`."""

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.views)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosedScenes:
    """Samples of neighbouring views."""

    scenes: tuple[PosedScene, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    """See `draw_keep`."""
    num_context: int = 0
    """See `MultiView`."""

    def draw(self, rng: np.random.Generator, num_views: int, height: int, width: int) -> MultiView:
        """Draw one view anywhere, and others among its neighbours.

        Raises:
            InputError: If no scene has as many views, or a file is missing.
            FileFormatError: If a file is damaged.
        """
        usable = [scene for scene in self.scenes if len(scene) >= num_views]
        if not usable:
            most = max(map(len, self.scenes))
            msg = (
                f"expected a scene of at least {num_views} views, got {most} at most; ask for fewer"
            )
            raise InputError(msg)
        scene = usable[int(rng.integers(len(usable)))]
        first = int(rng.integers(len(scene)))
        others = scene.near[first, : max(_REACH, 2 * num_views)]
        chosen = [first, *map(int, rng.permutation(others)[: num_views - 1])]
        keep = draw_keep(rng, self.scale)
        pictures = [frame_picture(scene.read(i), height, width, keep) for i in chosen]
        return sample_of(pictures, scene.name, metric=scene.metric, num_context=self.num_context)


def open_posed(root: Path) -> tuple[PosedScene, ...]:
    """Open one scene, or a folder that holds one folder a scene.

    Raises:
        InputError: If a scene lacks poses or depth; the text says how to make them.
        FileFormatError: If a file is damaged.
    """
    if not root.exists():
        raise InputError(f"there is no {root}; give a folder of scenes with poses and depth")
    if is_run(root):
        return (_open_run(root),)
    kind = discover([root])[0].kind
    if kind in _GIVEN:
        return (_open_given(kind, root),)
    folders = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    inner = [p for p in sorted(folders, key=lambda p: natural_key(p.name)) if _is_scene(p)]
    if not inner:
        raise _no_truth(root, "pictures without poses")
    return tuple(scene for folder in inner for scene in open_posed(folder))


_GIVEN = ("transforms", "colmap", "manifest")


def _is_scene(folder: Path) -> bool:
    if is_run(folder):
        return True
    try:
        return discover([folder])[0].kind in _GIVEN
    except InputError:
        return False


def _no_truth(path: Path, got: str) -> InputError:
    return InputError(
        f"{path}: expected scenes with poses and depth, got {got}; make both with: sightline "
        f"reconstruct {path} --geometry vggt --splats none -o RUN, and train on RUN"
    )


# -- given scenes -----------------------------------------------------------------------------


def _open_given(kind: str, path: Path) -> PosedScene:
    file = path
    if kind != "colmap" and path.is_dir():
        file = discover([path])[0].path
    given = read_given(kind, file)
    readers = _depth_readers(path if path.is_dir() else path.parent, given)
    usable = [
        i
        for i, (view, reader) in enumerate(zip(given.views, readers, strict=True))
        if reader is not None and _is_pinhole(view)
    ]
    if len(usable) < 2:
        posed = sum(view.w2c is not None for view in given.views)
        raise _no_truth(
            path,
            f"{len(usable)} views with depth and a lens without distortion, {posed} with poses",
        )
    views = [given.views[i] for i in usable]
    poses = np.stack([view.w2c for view in views if view.w2c is not None])

    def read(index: int) -> PosedPicture:
        reader = readers[usable[index]]
        assert reader is not None
        return _read_view(views[index], reader)

    return PosedScene(
        name=path.stem if path.is_file() else path.name,
        views=tuple(view.name for view in views),
        read=read,
        near=nearest_views(poses),
        metric=False,
        pseudo=False,
    )


def _is_pinhole(view: GivenView) -> bool:
    lens = view.lens
    return (
        view.w2c is not None and lens is not None and not lens.fisheye and not lens.distortion.any()
    )


def _depth_readers(
    folder: Path, given: GivenScene
) -> list[Callable[[], Float32[ndarray, "h w"]] | None]:
    """Return how each view's depth is read; None where it has none."""
    scale = 0.001
    if (folder / "depth" / "scale.json").is_file():
        scale, _ = read_depth_scale(folder / "depth")
    found: list[Callable[[], ndarray] | None] = []
    for view in given.views:
        beside = folder / "depth" / f"{Path(view.name).stem}.png"
        dense = folder / "stereo" / "depth_maps" / f"{view.name}.geometric.bin"
        if view.depth is not None:
            found.append(partial(_scaled_depth, view.depth, view.depth_scale))
        elif beside.is_file():
            found.append(lambda file=beside: read_depth_png(file, scale).numpy())
        elif dense.is_file():
            found.append(partial(read_colmap_map, dense))
        else:
            found.append(None)
    return found


def _scaled_depth(path: Path, scale: float) -> Float32[ndarray, "h w"]:
    values = read_samples(path).samples[..., 0].astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


def read_colmap_map(path: Path) -> Float32[ndarray, "h w"]:
    """Read a depth map of COLMAP's multi-view stereo: ``width&height&1&`` and float32 numbers.

    Raises:
        FileFormatError: If it is none.
    """
    content = read_whole(path)
    parts = content[:64].split(b"&", 3)
    wanted = "COLMAP's depth map: width&height&1& and 32-bit numbers"
    if len(parts) != 4 or not all(p.isdigit() for p in parts[:3]):
        raise bad_file(path, wanted, "another beginning")
    width, height, channels = (int(p) for p in parts[:3])
    start = sum(len(p) + 1 for p in parts[:3])
    if channels != 1 or len(content) - start != 4 * width * height:
        raise bad_file(path, wanted, f"{len(content) - start} bytes for {width} x {height}")
    values = np.frombuffer(content, "<f4", offset=start).reshape(height, width).astype(np.float32)
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


def _read_view(view: GivenView, reader: Callable[[], ndarray]) -> PosedPicture:
    lens, w2c = view.lens, view.w2c
    assert lens is not None
    assert w2c is not None
    image = read_image(view.file).pixels
    rows, columns = image.shape[:2]
    K = lens.K.copy()
    if lens.width and lens.height:
        K[0] *= columns / lens.width
        K[1] *= rows / lens.height
    return PosedPicture(
        name=view.name, image=image, depth=nearest_resize(reader(), rows, columns), w2c=w2c, K=K
    )


def nearest_resize(
    values: Float32[ndarray, "h w"], height: int, width: int
) -> Float32[ndarray, "height width"]:
    """Resize depth to the nearest pixel: between two surfaces there is nothing in the middle."""
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.intp)
    return values[rows[:, None], columns]


# -- runs -------------------------------------------------------------------------------------


def _open_run(path: Path) -> PosedScene:
    cameras = CameraFile(path / "cameras.npz")
    if _run_arrays(path)[1] is None:
        raise InputError(
            f"{path}: expected a run with dense depth, got one without; run sightline reconstruct "
            "with --geometry vggt or another learned one"
        )
    usable = np.flatnonzero(cameras.registered.numpy())
    if len(usable) < 2:
        raise InputError(f"{path}: expected 2 registered views or more, got {len(usable)}")
    w2c, K = cameras.cameras.w2c.numpy(), cameras.cameras.K.numpy()
    sizes = cameras.sizes.numpy()

    def read(index: int) -> PosedPicture:
        images, depth = _run_arrays(path)
        assert depth is not None
        view = int(usable[index])
        rows, columns = sizes[view]
        return PosedPicture(
            name=cameras.names[view],
            image=images[view, :rows, :columns],
            depth=depth[view, :rows, :columns],
            w2c=w2c[view],
            K=K[view],
        )

    return PosedScene(
        name=path.name,
        views=tuple(cameras.names[i] for i in usable),
        read=read,
        near=nearest_views(w2c[usable]),
        metric=cameras.metric,
        pseudo=True,
    )


@lru_cache(maxsize=4)  # the arrays of a run are large; draws of one run come together
def _run_arrays(
    path: Path,
) -> tuple[UInt8[ndarray, "V H W 3"], Float32[ndarray, "V H W"] | None]:
    geometry = GeometryFile(path / "geometry.npz", CameraFile(path / "cameras.npz"))
    images = np.ascontiguousarray(geometry.images.movedim(1, -1).numpy())
    if geometry.depth is None:
        return images, None
    depth = geometry.depth.float().numpy()
    good = np.isfinite(depth) & (depth > 0)
    for mask in (geometry.valid, geometry.surface):
        if mask is not None:
            good &= mask.numpy()
    return images, np.where(good, depth, np.float32(0))


def nearest_views(w2c: Float64[ndarray, "N 4 4"]) -> Int64[ndarray, "N M"]:
    """Return for every view the others, by distance and turn of their cameras."""
    rotation = w2c[:, :3, :3]
    centers = -np.einsum("nji,nj->ni", rotation, w2c[:, :3, 3])
    apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    cosine = np.clip(np.einsum("ni,mi->nm", rotation[:, 2], rotation[:, 2]), -1, 1)
    others = apart[~np.eye(len(w2c), dtype=bool)]
    unit = max(float(np.median(others)), 1e-12)
    cost = apart / unit + np.degrees(np.arccos(cosine)) / _TURN
    np.fill_diagonal(cost, -1.0)
    return np.argsort(cost, axis=1, kind="stable")[:, 1:]


def is_pseudo(scenes: Sequence[PosedScene]) -> bool:
    """Return whether any scene's truth is an estimate."""
    return any(scene.pseudo for scene in scenes)


def split_scenes(
    scenes: Sequence[PosedScene],
) -> tuple[tuple[PosedScene, ...], tuple[PosedScene, ...]]:
    """Return the scenes for training and those for validation: every tenth, or the last of fewer.

    A single scene is for training, and none for validation.
    """
    apart = set(range(_HELD_OUT - 1, len(scenes), _HELD_OUT)) or {len(scenes) - 1}
    if len(scenes) < 2:
        apart = set()
    train = tuple(scene for i, scene in enumerate(scenes) if i not in apart)
    return train, tuple(scenes[i] for i in sorted(apart))
