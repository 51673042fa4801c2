"""Procedural scenes with exact ground truth, for demos, tests and measurements.

The pictures are cast from closed-form shapes with baked light, so that cameras, depth, normals and
object masks are exact to rounding. Nothing is read from disk and every number follows from the
seed.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from PIL import Image
from torch import Tensor

from sightline.datasets.raycast import textures as tx
from sightline.datasets.raycast.light import (
    Albedo,
    Lamp,
    Stage,
    Surface,
    bake,
    colors_at,
    exact_maps,
    picture,
    sees,
)
from sightline.datasets.raycast.shapes import Shape, box, cylinder, ellipsoid, room, torus
from sightline.errors import InputError, UnknownNameError
from sightline.geometry.camera import intrinsics_matrix, project_points
from sightline.geometry.pose import invert_se3, look_at
from sightline.geometry.rotation import so3_exp
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_folder, atomic_path
from sightline.io.masks import write_mask
from sightline.io.ply import write_point_ply
from sightline.io.transforms import Transforms, write_transforms
from sightline.types import (
    Cameras,
    Lenses,
    PointCloud,
    Reconstruction,
    Scene,
    SparsePoints,
    TensorStruct,
    Views,
)

_FIELD_OF_VIEW = math.radians(58)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyntheticTruth(TensorStruct):
    """What a ``Reconstruction`` has no field for; found in its ``raw``."""

    normals: Float[Tensor, "V H W 3"]
    """Unit, in each camera's OpenCV axes, towards the camera."""
    labels: Int64[Tensor, "V H W"]
    """Index into ``objects``."""
    objects: tuple[str, ...]
    """Names; the first is the room. Things of one kind share a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What is in front of the cameras, and how it is lit."""

    surfaces: tuple[Surface, ...]
    lamps: tuple[Lamp, ...]
    target: tuple[float, float, float]
    """What the cameras look at."""
    bounces: int
    samples: int
    ambient: float = 0.0


def _surface(
    name: str,
    shape: Shape,
    albedo: Albedo,
    at: tuple[float, float, float],
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    gloss: float = 0.0,
    detail: float = 1.0,
) -> Surface:
    """Place a shape; ``turn`` is about x, then y, then z, in degrees."""
    angles = torch.deg2rad(torch.tensor(turn, dtype=torch.float64))
    about = so3_exp(torch.diag(angles)).numpy()
    rotation = about[2] @ about[1] @ about[0]
    return Surface(
        name=name,
        shape=shape,
        albedo=albedo,
        position=at,
        rotation=rotation,
        gloss=gloss,
        detail=detail,
    )


def _room(size: float, low: float, high: float) -> Surface:
    """Return a room with a plank floor, papered walls and a plain ceiling."""
    middle = (low + high) / 2
    walls = tx.papered_wall("35606b", "7fa99b", "e8dcc4", 0.55)
    floor = tx.planks(("8a5a33", "9c6b3f", "7a4d2b", "a9784a"), 0.16, 1.3)
    ceiling = tx.plaster("f3efe6")

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        paint = (walls, walls, walls, walls, floor, ceiling)[face]
        return paint(face, uv, points + np.array([0.0, 0.0, middle]))

    shape = room(size, size, (high - low) / 2)
    return _surface("room", shape, albedo, (0.0, 0.0, middle), detail=0.35)


def _tabletop() -> _Setting:
    """Return a still life on a round table; metres, z up, the table's top at z = 0."""
    wood = tx.rings(("c68b52", "6f3f1c"))
    weave = tx.rug(("7b2d26", "d9b26f", "23395b", "c8553d", "f0e2c4"), 1.25)
    sugar = ("fff7e6", "3fa7d6", "fac05e", "59cd90", "ee6352", "7d5ba6")
    dye = ("d1495b", "edae49", "00798c", "66a182", "f6f0e0", "2e4057")
    cube = box(0.075, 0.075, 0.075)
    surfaces = (
        _room(2.9, -0.74, 1.9),
        _surface("rug", cylinder(1.25, 0.008), weave, (0.0, 0.0, -0.732), detail=0.5),
        _surface("table", cylinder(0.78, 0.025), wood, (0.0, 0.0, -0.025), gloss=0.12),
        _surface("table", cylinder(0.07, 0.33), wood, (0.0, 0.0, -0.38), detail=0.5),
        _surface(
            "doughnut",
            torus(0.17, 0.075),
            tx.glazed_ring("c98544", "e8789a", sugar),
            (0.23, -0.26, 0.08),
            (4.0, 0.0, 20.0),
            gloss=0.5,
        ),
        _surface(
            "globe", ellipsoid(0.17, 0.17, 0.17), tx.globe(), (-0.26, 0.22, 0.17), (23.0, 0.0, 0.0),
            gloss=0.35,
        ),
        _surface(
            "egg", ellipsoid(0.085, 0.085, 0.115), tx.striped_egg(dye), (-0.33, -0.3, 0.113),
            (8.0, -6.0, 0.0), gloss=0.3,
        ),
        _surface(
            "block", cube, tx.toy_block("dfb77b", "b3202a", 0), (0.36, 0.22, 0.075),
            (0.0, 0.0, 24.0), gloss=0.08,
        ),
        _surface(
            "block", cube, tx.toy_block("e3c08a", "1d6a96", 2), (0.2, 0.33, 0.075),
            (0.0, 0.0, -18.0), gloss=0.08,
        ),
        _surface(
            "block", cube, tx.toy_block("dcb482", "2f7d4a", 4), (0.275, 0.27, 0.225),
            (0.0, 0.0, 52.0), gloss=0.08,
        ),
        _surface(
            "book", box(0.17, 0.12, 0.022), tx.book("1f4e5f", "f2d398"), (-0.05, -0.08, 0.022),
            (0.0, 0.0, -32.0),
        ),
        _surface(
            "book", box(0.15, 0.11, 0.018), tx.book("a63d40", "f8ecd2"), (-0.045, -0.085, 0.062),
            (0.0, 0.0, -12.0),
        ),
        _surface(
            "marble", ellipsoid(0.062, 0.062, 0.062), tx.marble("e9e4da", "54506a", 0.1),
            (-0.05, -0.08, 0.142), gloss=0.6,
        ),
        _surface(
            "marble", ellipsoid(0.05, 0.05, 0.05), tx.marble("2f6f73", "f0e7d0", 0.05),
            (0.52, -0.02, 0.05), gloss=0.6,
        ),
        _surface(
            "tin", cylinder(0.07, 0.1), tx.label_tin("b8bcc2", "c1442e", "f4b942"),
            (-0.02, 0.52, 0.1), (0.0, 0.0, 35.0), gloss=0.25,
        ),
    )  # fmt: skip
    ceiling_panel = Lamp(
        corner=(-1.3, 0.3, 1.85),
        across=(0.0, 1.0, 0.0),
        along=(1.2, 0.0, 0.0),
        power=(40.0, 35.5, 29.0),
    )
    window = Lamp(
        corner=(2.85, -1.2, 0.6),
        across=(0.0, 0.0, 1.0),
        along=(0.0, 2.2, 0.0),
        power=(3.0, 3.7, 4.7),
    )
    return _Setting(
        surfaces=surfaces,
        lamps=(ceiling_panel, window),
        target=(0.0, 0.0, 0.02),
        bounces=2,
        samples=32,
    )


def _simple() -> _Setting:
    """Return a ball and a block on the floor of a room: quick to bake, for tests."""
    surfaces = (
        _room(2.9, 0.0, 2.4),
        _surface("ball", ellipsoid(0.35, 0.35, 0.35), tx.globe(), (-0.35, 0.1, 0.35)),
        _surface(
            "block",
            box(0.25, 0.25, 0.25),
            tx.toy_block("dfb77b", "b3202a", 0),
            (0.4, -0.1, 0.25),
            (0.0, 0.0, 30.0),
        ),
    )
    panel = Lamp(
        corner=(-0.8, -0.6, 2.35),
        across=(0.0, 1.2, 0.0),
        along=(1.2, 0.0, 0.0),
        power=(9.0, 8.6, 8.0),
    )
    return _Setting(
        surfaces=surfaces,
        lamps=(panel,),
        target=(0.0, 0.0, 0.3),
        bounces=0,
        samples=8,
        ambient=0.35,
    )


KINDS: dict[str, Callable[[], _Setting]] = {"tabletop": _tabletop, "simple": _simple}
"""Scenes by name."""


def _cameras(
    num_views: int,
    height: int,
    width: int,
    target: tuple[float, float, float],
    generator: torch.Generator,
) -> Cameras:
    """Return cameras on an uneven ring about the scene, as a walking person would take them."""
    jitter = torch.rand(num_views, 5, generator=generator, dtype=torch.float64) - 0.5
    turn = 2 * math.pi * (torch.arange(num_views) + 0.5 * jitter[:, 0]) / num_views
    radius = 1.42 + 0.3 * jitter[:, 1]
    level = 0.72 + 0.16 * torch.sin(3 * turn) + 0.2 * jitter[:, 2]
    eyes = torch.stack([radius * turn.cos(), radius * turn.sin(), level], -1)
    spot = torch.tensor(target).double() + 0.12 * torch.nn.functional.pad(jitter[:, 3:], (0, 1))
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    focal = torch.full_like(turn, max(width, height) / (2 * math.tan(_FIELD_OF_VIEW / 2)))
    K = intrinsics_matrix(
        focal, focal, torch.full_like(turn, width / 2), torch.full_like(turn, height / 2)
    )
    return Cameras(w2c=invert_se3(look_at(eyes, spot, up)), K=K, height=height, width=width)


def _surface_points(
    stage: Stage,
    cameras: Cameras,
    points: Float[Tensor, "M 3"],
    surfaces: Int64[Tensor, " M"],
) -> SparsePoints:
    """Colour surface points and find every view that really sees them."""
    tracks = []
    size = torch.tensor([cameras.width, cameras.height])
    pixels, depth = project_points(points, cameras)
    for v, center in enumerate(cameras.centers):
        inside = ((pixels[v] > 0) & (pixels[v] < size)).all(-1) & (depth[v] > 0)
        rows = inside.nonzero()[:, 0]
        rows = rows[torch.from_numpy(sees(stage, center.numpy(), points[rows].numpy()))]
        tracks.append(torch.stack([rows, torch.full_like(rows, v)], -1))
    colors = torch.from_numpy(colors_at(stage, surfaces.numpy(), points.numpy()))
    return SparsePoints(
        points=points.float(),
        colors=(colors * 255).round().to(torch.uint8),
        tracks=torch.cat(tracks).to(torch.int32),
        errors=torch.zeros(len(points)),
    )


def make_scene(
    num_views: int = 24,
    height: int = 240,
    width: int = 320,
    seed: int = 0,
    kind: str = "tabletop",
    *,
    supersampling: int = 2,
    num_points: int = 8000,
    test_every: int = 8,
    threads: int = 2,
) -> Scene:
    """Make a scene with pictures, cameras and exact ground truth.

    The world has z up, metres for units, and its origin on the table (``tabletop``) or the floor
    (``simple``). Views go once around it, so that every 8th lies between two others.

    Args:
        num_views: Pictures.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        seed: Of cameras, light samples and points; the objects stay.
        kind: ``tabletop`` (a still life with soft light, the demo) or ``simple`` (a ball and a
            block, quick, for tests).
        supersampling: Rays a pixel, along each side.
        num_points: Surface points drawn for ``ground_truth.sparse``; fewer if there are fewer
            pixels.
        test_every: Views 0, n, 2n, ... are held out; 0 holds out none.
        threads: Used at once; the result does not depend on it.

    Returns:
        A scene whose ``ground_truth`` has cameras, depth, points and sparse points, and
        ``SyntheticTruth`` (normals, object labels) in ``raw``.

    Raises:
        UnknownNameError: If there is no such kind.
        InputError: If a size is not positive.
    """
    if kind not in KINDS:
        raise UnknownNameError("synthetic scene", kind, KINDS)
    if min(num_views, height, width, supersampling, num_points) < 1:
        msg = (
            "a synthetic scene needs at least 1 view, pixel, ray and point, got "
            f"{num_views} views of {height} x {width}, {supersampling} rays a side and "
            f"{num_points} points; use positive numbers"
        )
        raise InputError(msg)
    generator = torch.Generator().manual_seed(seed)
    setting = KINDS[kind]()
    cameras = _cameras(num_views, height, width, setting.target, generator)
    stage = bake(
        setting.surfaces,
        setting.lamps,
        # As large as a pixel sees the nearest things, a metre away.
        texel=max(1.0 / float(cameras.K[0, 0, 0]), 0.002),
        ambient=setting.ambient,
        bounces=setting.bounces,
        samples=setting.samples,
        seed=seed,
        threads=threads,
    )
    c2w, K = cameras.c2w.numpy(), cameras.K.numpy()

    def look(v: int) -> tuple[ndarray, ...]:
        image = picture(stage, c2w[v], K[v], height, width, supersampling, setting.lamps[0])
        return image, *exact_maps(stage, c2w[v], K[v], height, width)

    with ThreadPoolExecutor(threads) as pool:
        looks = zip(*pool.map(look, range(num_views)), strict=True)
    images, depth, points, normals, index = (torch.from_numpy(np.stack(x)) for x in looks)
    chosen = torch.randperm(index.numel(), generator=generator)[:num_points]
    sparse = _surface_points(
        stage, cameras, points.reshape(-1, 3)[chosen], index.reshape(-1)[chosen]
    )
    names = [s.name for s in setting.surfaces]
    objects = tuple(dict.fromkeys(names))
    labels = torch.tensor([objects.index(n) for n in names])[index]
    single = cameras.map(lambda t: t.float())
    truth = Reconstruction(
        cameras=single,
        registered=torch.ones(num_views, dtype=torch.bool),
        metric=True,
        depth=depth.float(),
        points=points.float(),
        valid=torch.ones_like(labels, dtype=torch.bool),
        sparse=sparse,
        raw=SyntheticTruth(normals=normals.float(), labels=labels, objects=objects),
    )
    views = Views(
        images=images.movedim(-1, 1).contiguous(),
        names=tuple(f"view_{v:03d}.png" for v in range(num_views)),
        from_original=torch.eye(3).expand(num_views, 3, 3).clone(),
        sizes=torch.tensor([[height, width]]).expand(num_views, 2).clone(),
        cameras=single,
    )
    test = tuple(range(0, num_views, test_every)) if test_every else ()
    return Scene(id=f"synthetic-{kind}-{seed}", views=views, test=test, ground_truth=truth)


def write_scene(scene: Scene, folder: Path) -> Path:
    """Write a synthetic scene as a data set that this and other programs read.

    The folder gets ``images/``, ``transforms.json`` (cameras and the held-out names),
    ``points.ply`` (the sparse points), ``objects/OBJECT/`` (one mask a picture and object) and
    ``truth.npz`` (``depth [V H W]`` in metres, ``normals [V H W 3]``, ``labels``, ``objects``).

    Args:
        scene: From ``make_scene``.
        folder: Made when missing; it appears with everything in it.

    Returns:
        The ``transforms.json``.

    Raises:
        InputError: If the folder already holds something.
        OutputError: If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} already holds something; choose a new folder or remove it"
        raise InputError(msg)
    truth = scene.ground_truth
    if truth is None or truth.sparse is None or not isinstance(truth.raw, SyntheticTruth):
        msg = f"scene {scene.id} is not a synthetic one; make it with make_scene"
        raise InputError(msg)
    names = scene.views.names
    files = tuple(f"images/{name}" for name in names)
    pixels = (scene.views.images * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    with atomic_folder(folder) as tmp:
        for name, image in zip(names, pixels, strict=True):
            with atomic_path(tmp / "images" / name) as path:
                Image.fromarray(image).save(path)
        for label, thing in enumerate(truth.raw.objects):
            for name, labels in zip(names, truth.raw.labels, strict=True):
                write_mask(tmp / "objects" / thing / name, (labels == label).numpy())
        arrays = {
            "depth": truth.depth,
            "normals": truth.raw.normals.half(),
            "labels": truth.raw.labels.to(torch.uint8),
            "objects": truth.raw.objects,
        }
        write_npz(tmp / "truth.npz", {name: np.asarray(a) for name, a in arrays.items()})
        cloud = PointCloud(
            points=truth.sparse.points, colors=truth.sparse.colors.to(torch.float32) / 255
        )
        write_point_ply(tmp / "points.ply", cloud)
        cameras = truth.cameras
        lenses = Lenses(
            K=cameras.K.double(),
            distortion=torch.zeros(len(names), 8, dtype=torch.float64),
            fisheye=torch.zeros(len(names), dtype=torch.bool),
            sizes=scene.views.sizes,
        )
        held_out = set(scene.test)
        transforms = Transforms(
            files=files,
            w2c=cameras.w2c.double(),
            lenses=lenses,
            ply_file="points.ply",
            train_files=tuple(f for i, f in enumerate(files) if i not in held_out),
            test_files=tuple(files[i] for i in scene.test),
        )
        write_transforms(tmp / "transforms.json", transforms)
    return folder / "transforms.json"
