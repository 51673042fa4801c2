"""Known cameras as input: COLMAP workspaces, ``transforms.json`` and manifests as one record."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from sightline.errors import FileFormatError, InputError
from sightline.io.colmap import find_colmap, read_colmap
from sightline.io.images import read_image, read_samples
from sightline.io.inputs import natural_key
from sightline.io.intrinsics import Lens, lens_from_colmap, lens_from_json
from sightline.io.manifest import Record, read_manifest
from sightline.io.ply import read_point_ply
from sightline.io.transforms import read_transforms

MAX_DEPTH_POINTS = 100_000
"""Most points that are made from depth maps together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenView:
    """One picture and what came with it."""

    file: Path
    name: str
    """As the giver calls it."""
    lens: Lens | None = None
    w2c: Float64[np.ndarray, "4 4"] | None = None
    mask: Path | None = None
    depth: Path | None = None
    depth_scale: float = 0.001
    """World units a step of the depth picture."""
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenPoints:
    """Points in the given world."""

    points: Float64[np.ndarray, "N 3"]
    colors: UInt8[np.ndarray, "N 3"]
    tracks: Int64[np.ndarray, "T 2"]
    """Rows of (point, view)."""
    errors: Float64[np.ndarray, " N"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenScene:
    """Pictures with known cameras, in natural order of their names."""

    views: tuple[GivenView, ...]
    points: GivenPoints | None = None
    notes: tuple[str, ...] = ()


def read_given(kind: str, path: Path, *, keep_going: bool = False) -> GivenScene:
    """Read a source of kind ``colmap``, ``transforms`` or ``manifest``.

    Args:
        kind: As `inputs.discover` found it.
        path: The workspace, or the JSON file.
        keep_going: Leave out views whose pictures are missing, instead of stopping.

    Raises:
        InputError: If there is no model, or pictures that it names are missing.
        FileFormatError: If a file is damaged.
    """
    reader = {"colmap": _colmap, "transforms": given_from_transforms, "manifest": _manifest}[kind]
    scene = reader(path)
    missing = [view.name for view in scene.views if not view.file.is_file()]
    if missing and (not keep_going or len(missing) == len(scene.views)):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{path} names {len(missing)} of {len(scene.views)} pictures that are not there "
            f"({shown}); put them in place, or skip them with --keep-going"
        )
    if missing:
        note = f"left out {len(missing)} views of {path.name} without pictures"
        scene = _select(scene, [view.file.is_file() for view in scene.views])
        scene = replace(scene, notes=(*scene.notes, note))
    return scene


def depth_points(
    views: Sequence[GivenView], files: Sequence[Path], limit: int = MAX_DEPTH_POINTS
) -> GivenPoints | None:
    """Lift depth maps of posed pinhole views to coloured points on regular pixel grids.

    Args:
        views: Only those with a pose, a lens without distortion and a depth map count.
        files: The upright pictures, for colours.
        limit: Most points of all views together.

    Returns:
        Points, each with a track of its own view, or None without any depth map.
    """
    usable = [
        (i, v, v.lens, v.w2c, v.depth)
        for i, v in enumerate(views)
        if v.depth is not None
        and v.w2c is not None
        and v.lens is not None
        and not v.lens.distortion.any()
        and not v.lens.fisheye
    ]
    if not usable:
        return None
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index, view, lens, w2c, file in usable:
        depth = read_samples(file).samples[..., 0].astype(np.float64) * view.depth_scale
        height, width = depth.shape
        stride = max(1, int(np.ceil(np.sqrt(depth.size * len(usable) / limit))))
        rows, columns = (
            grid.ravel()
            for grid in np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
        )
        z = depth[rows, columns]
        seen = np.isfinite(z) & (z > 0)
        rows, columns, z = rows[seen], columns[seen], z[seen]
        pixels = read_image(files[index]).pixels
        # Depth maps may be smaller than their pictures; K belongs to the picture.
        u = (columns + 0.5) * (lens.width / width)
        v = (rows + 0.5) * (lens.height / height)
        x = (u - lens.K[0, 2]) / lens.K[0, 0]
        y = (v - lens.K[1, 2]) / lens.K[1, 1]
        camera = np.stack([x * z, y * z, z], -1)
        world = (camera - w2c[:3, 3]) @ w2c[:3, :3]
        row = np.minimum((v * pixels.shape[0] / lens.height).astype(int), pixels.shape[0] - 1)
        column = np.minimum((u * pixels.shape[1] / lens.width).astype(int), pixels.shape[1] - 1)
        parts.append((world, pixels[row, column], np.full(len(z), index)))
    owner = np.concatenate([p[2] for p in parts])
    return GivenPoints(
        points=np.concatenate([p[0] for p in parts]),
        colors=np.concatenate([p[1] for p in parts]),
        tracks=np.stack([np.arange(len(owner)), owner], -1),
    )


def _select(scene: GivenScene, keep: Sequence[bool]) -> GivenScene:
    points = scene.points
    if points is not None:
        new_index = np.where(keep, np.cumsum(keep) - 1, -1)
        tracks = points.tracks.copy()
        tracks[:, 1] = new_index[tracks[:, 1]]
        points = replace(points, tracks=tracks[tracks[:, 1] >= 0])
    views = tuple(view for view, kept in zip(scene.views, keep, strict=True) if kept)
    return replace(scene, views=views, points=points)


def _colmap(path: Path) -> GivenScene:
    place = find_colmap(path)
    model = read_colmap(path)
    if not model.images:
        raise InputError(f"the COLMAP model in {path} has no registered image; reconstruct again")
    images = sorted(model.images.values(), key=lambda image: natural_key(image.name))
    folder = _picture_folder(path, place or path, [image.name for image in images])
    views = tuple(
        GivenView(
            file=folder / image.name,
            name=image.name,
            lens=lens_from_colmap(model.cameras[image.camera_id]),
            w2c=image.w2c,
            group=f"camera {image.camera_id}",
        )
        for image in images
    )
    view_of = {image.id: i for i, image in enumerate(images)}
    rows = model.points.tracks
    tracks = np.array(
        [(point, view_of[image]) for point, image in rows[:, :2].tolist()], np.int64
    ).reshape(-1, 2)
    points = GivenPoints(
        points=model.points.points,
        colors=model.points.colors,
        tracks=np.unique(tracks, axis=0),
        errors=model.points.errors,
    )
    return GivenScene(views=views, points=points if len(points.points) else None)


def _picture_folder(path: Path, place: Path, names: Sequence[str]) -> Path:
    """Return the folder that holds most of a model's pictures."""
    ancestors = (place, *place.parents[:2])
    places = [folder / "images" for folder in (path, *ancestors)] + [path, *ancestors]
    return max(dict.fromkeys(places), key=lambda folder: sum((folder / n).is_file() for n in names))


def given_from_transforms(path: Path, folder: Path | None = None) -> GivenScene:
    """Read a ``transforms.json``, whose names are relative to its own folder or another one.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged.
    """
    given = read_transforms(path)
    folder = path.parent if folder is None else folder
    w2c = given.w2c.double().numpy()
    lenses = given.lenses
    notes = []
    if given.depth_files is not None and given.depth_scale is None:
        notes.append(f"{path.name} states no depth_unit_scale_factor; took depth as millimetres")
    splits = {"train": given.train_files, "val": given.val_files, "test": given.test_files}
    views = [
        GivenView(
            file=folder / name,
            name=name,
            lens=Lens(
                K=lenses.K[i].double().numpy(),
                distortion=lenses.distortion[i].double().numpy(),
                fisheye=bool(lenses.fisheye[i]),
                height=int(lenses.sizes[i, 0]),
                width=int(lenses.sizes[i, 1]),
            ),
            w2c=w2c[i],
            mask=folder / given.mask_files[i] if given.mask_files else None,
            depth=folder / given.depth_files[i] if given.depth_files else None,
            depth_scale=given.depth_scale if given.depth_scale is not None else 0.001,
            split=next((split for split, files in splits.items() if files and name in files), None),
        )
        for i, name in enumerate(given.files)
    ]
    points = None
    if given.ply_file is not None and (folder / given.ply_file).is_file():
        cloud = read_point_ply(folder / given.ply_file)
        points = GivenPoints(
            points=cloud.points.double().numpy(),
            colors=(cloud.colors.double().numpy() * 255).round().clip(0, 255).astype(np.uint8),
            tracks=np.zeros((0, 2), np.int64),
        )
    views.sort(key=lambda view: natural_key(view.name))
    return GivenScene(views=tuple(views), points=points, notes=tuple(notes))


def _manifest(path: Path) -> GivenScene:
    records, notes = read_manifest(path)
    views = tuple(given_view(path, record) for record in records if record.modality != "depth")
    if not views:
        raise FileFormatError(f"{path.name}: expected pictures, got depth maps only")
    return GivenScene(views=views, notes=notes)


def given_view(path: Path, record: Record) -> GivenView:
    """Return what a manifest's record says about a view; a guessed camera says nothing."""
    folder, camera, depth = path.parent, record.camera, record.depth
    known = camera is not None and camera.get("source") in ("colmap", "given")
    return GivenView(
        file=folder / record.file,
        name=record.file,
        lens=lens_from_json(path, camera, record.height, record.width)
        if camera is not None and known
        else None,
        w2c=None if record.pose is None else _world_to_camera(path, record),
        mask=None if record.mask is None else folder / record.mask,
        depth=None if depth is None else folder / depth["file"],
        depth_scale=0.001 if depth is None else depth["scale"],
        group=record.group,
        split=record.split,
    )


def _world_to_camera(path: Path, record: Record) -> Float64[np.ndarray, "4 4"]:
    c2w = np.array(record.pose, np.float64)
    rotation = c2w[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
        raise FileFormatError(
            f"{path.name}: expected a rotation in the pose of {record.id}, got another matrix; "
            "correct it"
        )
    w2c = np.eye(4)
    w2c[:3, :3] = rotation.T
    w2c[:3, 3] = -rotation.T @ c2w[:3, 3]
    return w2c
