"""Exporters: pure functions from one immutable result to files of other tools' formats.

Only registered views are written. ``EXPORTERS`` maps the names of the command line to functions
``(result, folder, options) -> paths``; each writes its own names below the folder, so that several
may share one.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.pointmap import depth_to_normals
from sightline.io.atomic import atomic_folder
from sightline.io.colmap import write_colmap
from sightline.io.depth import (
    DepthView,
    choose_depth_scale,
    write_depth_npz,
    write_depth_png,
    write_depth_preview,
    write_depth_scale,
    write_normals_png,
)
from sightline.io.export_colmap import colmap_model, confident
from sightline.io.export_pictures import picture_names, write_pictures
from sightline.io.glb import write_glb
from sightline.io.ply import write_gaussian_ply, write_point_ply
from sightline.io.scene_result import ExportOptions, SceneResult, SourceViews, source_views
from sightline.io.splat import write_splat
from sightline.io.spz import write_spz
from sightline.io.transforms import Transforms, write_transforms
from sightline.types import Cameras, Gaussians, Lenses, PointCloud

__all__ = ["EXPORTERS", "ExportOptions", "Exporter", "SceneResult", "SourceViews", "source_views"]

log = logging.getLogger(__name__)

Exporter = Callable[[SceneResult, Path, ExportOptions], list[Path]]


def export_ply(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``scene.ply``: the points with their colours."""
    path = folder / "scene.ply"
    write_point_ply(path, _points(result, options, "ply"))
    return [path]


def export_gaussian_ply(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``gaussians.ply``: splats as 3D Gaussian Splatting stores them."""
    path = folder / "gaussians.ply"
    write_gaussian_ply(path, _splats(result, "gs-ply"), sh_degree=options.sh_degree)
    return [path]


def export_splat(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``scene.splat``."""
    del options
    path = folder / "scene.splat"
    write_splat(path, _splats(result, "splat"))
    return [path]


def export_spz(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``scene.spz``."""
    path = folder / "scene.spz"
    splats = _splats(result, "spz")
    write_spz(path, splats, version=options.spz_version, sh_degree=options.sh_degree)
    return [path]


def export_glb(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``scene.glb``: points and cameras."""
    path = folder / "scene.glb"
    points = _points(result, options, "glb")
    if not bool(result.registered.any()):
        write_glb(path, points)
        return [path]
    views = source_views(result)
    height, width = views.sizes[0].tolist()
    cameras = Cameras(w2c=views.w2c, K=views.K, height=height, width=width)
    write_glb(path, points, cameras, views.names, sizes=views.sizes)
    return [path]


def export_colmap(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``sparse/0`` and, where the pictures are known, ``images/`` that match its cameras."""
    views = source_views(result)
    names = picture_names(result, views)
    model = colmap_model(result, replace(views, names=names), options.min_confidence)
    pictures = _pictures(result, views, names, folder)
    with atomic_folder(folder / "sparse" / "0") as tmp:
        write_colmap(tmp, model)
    return [folder / "sparse" / "0", *pictures]


def export_transforms(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``transforms.json``, its ``images/``, and ``scene.ply`` if there are points."""
    views = source_views(result)
    names = picture_names(result, views)
    points: list[Path] = []
    if result.points is not None or result.sparse is not None:
        points = export_ply(result, folder, options)
    pictures = _pictures(result, views, names, folder)
    splits = _splits(result, views, names)
    transforms = Transforms(
        files=tuple(f"images/{name}" for name in names),
        w2c=views.w2c,
        lenses=Lenses(
            K=views.K,
            distortion=torch.zeros(len(names), 8, dtype=torch.float64),
            fisheye=torch.zeros(len(names), dtype=torch.bool),
            sizes=views.sizes,
        ),
        ply_file=points[0].name if points else None,
        train_files=splits[0] if splits else None,
        val_files=splits[1] if splits else None,
        test_files=splits[1] if splits else None,  # readers want all three lists or none
    )
    path = folder / "transforms.json"
    write_transforms(path, transforms)
    return [path, *pictures, *points]


def export_depth(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``depth/``: for each view a 16-bit PNG, an ``.npz``, a preview and normals.

    Padding is cut off. One ``scale.json`` serves all pictures.
    """
    views = source_views(result)
    if result.depth is None:
        raise InputError(
            "there are no depth maps to export as depth; make them with a learned --geometry, or "
            "with: sightline reconstruct --splats optimize"
        )
    shown = list(views.indices)
    depth = result.depth[shown].float().cpu()
    known = torch.isfinite(depth) & (depth > 0)
    confidence = None
    if result.confidence is not None:
        confidence = result.confidence[shown].float().cpu()
        certain = torch.zeros_like(known)
        certain[known] = confident(confidence[known], options.min_confidence)
        known = certain
    elif options.min_confidence > 0:
        log.warning(_NO_CONFIDENCE, "depths")
    depth = torch.where(known, depth, 0.0)
    scale = options.depth_scale or choose_depth_scale(depth, metric=result.metric)
    cameras = result.cameras.select(shown).map(lambda values: values.double().cpu())
    stems = _stems(views.names)
    with atomic_folder(folder / "depth") as tmp:
        write_depth_scale(tmp, scale, metric=result.metric)
        for i, stem in enumerate(stems):
            rows, columns = _content(result, shown[i])
            view = depth[i, :rows, :columns]
            sure = None if confidence is None else confidence[i, :rows, :columns]
            write_depth_png(tmp / f"{stem}.png", view, scale)
            write_depth_preview(tmp / "preview" / f"{stem}.png", view)
            normals = depth_to_normals(depth[i : i + 1].double(), cameras.select([i]))[0].float()
            write_normals_png(tmp / "normals" / f"{stem}.png", normals[:rows, :columns])
            record = DepthView(depth=view, K=cameras.K[i], w2c=cameras.w2c[i], confidence=sure)
            write_depth_npz(tmp / f"{stem}.npz", record)
    return [folder / "depth"]


EXPORTERS: dict[str, Exporter] = {
    "ply": export_ply,
    "gs-ply": export_gaussian_ply,
    "splat": export_splat,
    "spz": export_spz,
    "glb": export_glb,
    "colmap": export_colmap,
    "transforms": export_transforms,
    "depth": export_depth,
}
_NO_CONFIDENCE = "these %s carry no confidence, so --min-confidence leaves none out"


def _pictures(
    result: SceneResult, views: SourceViews, names: tuple[str, ...], folder: Path
) -> list[Path]:
    if result.files is None:
        log.warning("the full-size pictures are not known, so only the cameras were written")
        return []
    write_pictures(result, views, names, folder / "images")
    return [folder / "images"]


def _splits(
    result: SceneResult, views: SourceViews, names: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the training and the held-out pictures, if any are held out."""
    held = [view in result.test for view in views.indices]
    if not any(held):
        return None
    rest = tuple(f"images/{name}" for name, out in zip(names, held, strict=True) if not out)
    return rest, tuple(f"images/{name}" for name, out in zip(names, held, strict=True) if out)


def _content(result: SceneResult, index: int) -> tuple[int, int]:
    """Return the rows and columns of a model picture that are not padding."""
    height, width = result.original_sizes[index].tolist()
    corner = result.from_original[index].double() @ torch.tensor([width, height, 1.0]).double()
    columns, rows = (corner[:2] / corner[2]).round().long().tolist()
    cameras = result.cameras
    return max(1, min(rows, cameras.height)), max(1, min(columns, cameras.width))


def _stems(names: tuple[str, ...]) -> list[str]:
    """Drop the suffixes where that keeps all names apart."""
    stems = [name.rpartition(".")[0] or name for name in names]
    return stems if len(set(stems)) == len(stems) else list(names)


def _splats(result: SceneResult, name: str) -> Gaussians:
    if result.gaussians is None or len(result.gaussians) == 0:
        raise InputError(
            f"there are no splats to export as {name}; make them with: sightline reconstruct "
            "--splats optimize"
        )
    return result.gaussians


def _points(result: SceneResult, options: ExportOptions, name: str) -> PointCloud:
    """Return the finite points that are certain enough, dense ones first."""
    cloud = result.points
    if cloud is None and result.sparse is not None:
        colors = result.sparse.colors.float() / 255
        cloud = PointCloud(points=result.sparse.points, colors=colors)
    if cloud is None:
        raise InputError(
            f"there are no points to export as {name}; make them with: sightline reconstruct "
            "--geometry colmap"
        )
    keep = torch.isfinite(cloud.points).all(1)
    if cloud.confidence is not None:
        keep &= torch.isfinite(cloud.confidence)
        cloud = _select(cloud, keep)
        assert cloud.confidence is not None
        return _select(cloud, confident(cloud.confidence, options.min_confidence))
    if options.min_confidence > 0:
        log.warning(_NO_CONFIDENCE, "points")
    return _select(cloud, keep)


def _select(cloud: PointCloud, keep: Bool[Tensor, " N"]) -> PointCloud:
    return cloud if bool(keep.all()) else cloud.map(lambda values: values[keep])
