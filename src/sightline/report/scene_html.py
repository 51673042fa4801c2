"""A scene as one web page that anybody can open: splats, points, cameras and photos, offline.

The viewer is our own (WebGL2, no library): splats are instanced quads with the rasteriser's
projection, view-dependent colour and, where the scene was fitted so, antialiasing; a worker sorts
them. Zwicker et al., "EWA volume splatting", 2001; Kerbl et al., arXiv:2308.04079.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sightline.errors import InputError, ShapeError
from sightline.io.atomic import atomic_write_text
from sightline.io.export import ExportOptions, SceneResult, confident
from sightline.report.colormap import TURBO
from sightline.report.figures import encode_jpegs, to_pixels
from sightline.report.framing import SceneFrame, frame_by_cameras, frame_by_points, posed_views
from sightline.report.markup import Html, data_uri, element
from sightline.report.numbers import format_count
from sightline.report.scene_data import (
    Packed,
    affordable_degree,
    choose_points,
    encode_table,
    pack_gaussians,
    pack_points,
)
from sightline.report.scene_marks import SceneMarks, mark_scene
from sightline.report.scene_panel import help_box, overlays, panel, side, status
from sightline.report.theme import brand, page, read_asset
from sightline.types import Cameras, Gaussians, PointCloud

_SCRIPTS = (
    "scene_math.js",
    "scene_sorter.js",
    "scene_shaders.js",
    "scene_draw.js",
    "scene_control.js",
    "scene_filter.js",
    "scene_tools.js",
    "scene.js",
)
_MOST_CAMERAS = 1000
_TURBO_STOPS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneExtras:
    """What the page shows beyond splats, points and cameras."""

    marks: SceneMarks = field(default_factory=SceneMarks)
    metric: bool = False
    """Lengths are metres."""
    splat_paint: Float[Tensor, "M 3"] | None = None
    """Other colours in [0, 1], such as those of features."""
    point_paint: Float[Tensor, "N 3"] | None = None
    other_points: PointCloud | None = None
    """A second set to choose from: the network's own point map."""
    photo_side: int = 224
    """Long side in pixels of the photos."""
    photos_budget: int = 1_500_000
    """Bytes that all photos take together."""


def write_scene_html(
    gaussians: Gaussians | None,
    points: PointCloud | None,
    cameras: Cameras | None,
    thumbnails: UInt8[Tensor, "V 3 h w"] | None,
    path: Path,
    *,
    title: str,
    names: tuple[str, ...] | None = None,
    test: tuple[int, ...] = (),
    max_splats: int = 500_000,
    max_points: int = 300_000,
    max_degree: int | None = None,
    extras: SceneExtras | None = None,
) -> Path:
    """Write a scene as a self-contained web page and return its path.

    Args:
        gaussians: Splats to show.
        points: Points to show; their confidence, if any, drives a slider.
        cameras: Where the photos were taken; those without a pose are left out. Without cameras
            the scene is shown with y down.
        thumbnails: One small picture a camera.
        path: The ``.html`` file; replaced when it exists.
        title: Shown on the page.
        names: File name of each camera's photo.
        test: Indices of held-out cameras, which get another colour.
        max_splats: Where there are more, the largest and most opaque are shown.
        max_points: Where there are more, they are thinned evenly.
        max_degree: Of view-dependent colour, 0 to 3; None takes the highest with which the splats
            stay below about 25 MB.
        extras: What filters go by, other colours, other points, the photos' size.

    Raises:
        InputError: If there is neither a splat nor a point to show.
        ShapeError: If names or thumbnails are not one a camera.
        OutputError: If the file cannot be written.
    """
    header, tables, buttons = _assemble(
        gaussians,
        points,
        cameras,
        thumbnails,
        names,
        frozenset(test),
        limits=(max_splats, max_points, max_degree),
        extras=extras or SceneExtras(),
    )
    header["title"] = title
    header["file"] = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip(".-")[:80] or "scene"
    body = _body(title, header, buttons)
    # Inside a script element only "</script" and "<!--" end or change the text.
    data = json.dumps(header, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    blocks = [element("script", Html(data), type="application/json", id="scene")]
    blocks += [
        element("script", Html(encode_table(table)), type="text/plain", id=f"table-{name}")
        for name, table in tables.items()
    ]
    script = '"use strict";{\n' + "\n".join(map(read_asset, _SCRIPTS)) + "\n}"
    text = page(
        title, *body, *blocks, styles=("scene.css",), script=script, policy="; worker-src blob:"
    )
    atomic_write_text(path, text)
    return path


def export_html(result: SceneResult, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``scene.html``, an exporter like those of `sightline.io.export`.

    ``options.min_confidence`` leaves the least certain points out; the page's own slider then
    ranges over the others.
    """
    path = folder / "scene.html"
    write_result_page(
        result, path, min_confidence=options.min_confidence, max_degree=options.sh_degree
    )
    return [path]


def write_result_page(
    result: SceneResult,
    path: Path,
    *,
    min_confidence: float = 0.0,
    max_degree: int | None = None,
    max_points: int = 300_000,
    sky: Bool[Tensor, "V H W"] | None = None,
    extras: SceneExtras | None = None,
) -> Path:
    """Write the page of a result with all that its filters go by, and return its path.

    Args:
        result: The scene.
        path: The ``.html`` file; replaced when it exists.
        min_confidence: Percentage of the least certain points to leave out.
        max_degree: Of view-dependent colour.
        max_points: Where there are more, they are thinned evenly.
        sky: What is sky in the views, where it is known.
        extras: Their marks are found out here.

    Raises:
        InputError: If there is nothing to show.
        OutputError: If the file cannot be written.
    """
    extras = extras or SceneExtras()
    points, rows = result.points, None
    if points is None and result.sparse is not None:
        colors = result.sparse.colors.float() / 255
        points = PointCloud(points=result.sparse.points, colors=colors)
    if points is not None:
        chosen = torch.ones(len(points.points), dtype=torch.bool)
        if points.confidence is not None:
            chosen = confident(points.confidence.nan_to_num(-torch.inf), min_confidence)
        numbers = chosen.nonzero()[:, 0]
        numbers = numbers[choose_points(points.map(lambda values: values[numbers]), max_points)]
        if result.depth is None and result.sparse is not None:
            rows = numbers if len(result.sparse.points) == len(points.points) else None
        points = points.map(lambda values: values[numbers])
        if extras.point_paint is not None:
            extras = replace(extras, point_paint=extras.point_paint[numbers])
    extras = replace(
        extras,
        marks=mark_scene(result, None if points is None else points.points, rows, sky),
        metric=result.metric,
    )
    cameras = result.cameras
    if len(cameras):
        w2c = cameras.w2c.clone()
        w2c[~result.registered] = torch.nan
        cameras = Cameras(w2c=w2c, K=cameras.K, height=cameras.height, width=cameras.width)
    return write_scene_html(
        result.gaussians,
        points,
        cameras if len(cameras) else None,
        result.images,
        path,
        title=result.title,
        names=result.names,
        test=result.test,
        max_points=max_points,
        max_degree=max_degree,
        extras=extras,
    )


def _assemble(
    gaussians: Gaussians | None,
    points: PointCloud | None,
    cameras: Cameras | None,
    thumbnails: UInt8[Tensor, "V 3 h w"] | None,
    names: tuple[str, ...] | None,
    held: frozenset[int],
    limits: tuple[int, int, int | None],
    extras: SceneExtras,
) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "_ _"]], Html | None]:
    kept = posed_views(cameras)
    shown = kept[:: max(1, -(-len(kept) // _MOST_CAMERAS))]
    header: dict[str, Any] = {
        "splats": None,
        "points": None,
        "other_points": None,
        "metric": extras.metric,
        "turbo": TURBO[np.linspace(0, 255, _TURBO_STOPS).round().astype(int)].ravel().tolist(),
    }
    tables: dict[str, UInt8[np.ndarray, "_ _"]] = {}

    def take(name: str, packed: Packed, prefix: str = "") -> None:
        if packed.header["count"]:
            header[name] = packed.header
            tables.update({prefix + key: rows for key, rows in packed.tables.items()})

    if gaussians is not None and len(gaussians):
        degree = limits[2]
        if degree is None:
            degree = affordable_degree(min(len(gaussians), limits[0]))
        packed = pack_gaussians(
            gaussians,
            max_splats=limits[0],
            max_degree=degree,
            sky=extras.marks.splat_sky,
            paint=extras.splat_paint,
        )
        take("splats", packed)
    if points is not None and len(points.points):
        seen = extras.marks.seen
        packed = pack_points(
            points,
            max_points=limits[1],
            seen=None if seen is None or not shown else seen[:, shown],
            sky=extras.marks.point_sky,
            paint=extras.point_paint,
        )
        take("points", packed)
    if extras.other_points is not None and header["points"]:
        take("other_points", pack_points(extras.other_points, max_points=limits[1]), "other_")
    header["painted"] = "splat_paint" in tables or "point_paint" in tables
    header["has_seen"] = "point_seen" in tables
    header["has_sky"] = "splat_sky" in tables or "point_sky" in tables
    header["bytes"] = {name: rows.shape[1] for name, rows in tables.items()}
    if not tables:
        raise InputError(
            "the scene has neither splats nor points with finite coordinates; reconstruct it "
            "first, or choose another run"
        )
    if cameras is not None:
        _check_counts(cameras, thumbnails, names)
    cloud = gaussians.means if header["splats"] and gaussians is not None else None
    if cloud is None and points is not None:
        cloud = points.points
    assert cloud is not None  # one of the two has rows, or we would have left
    if cameras is not None and kept:
        header |= _framing(frame_by_cameras(cameras.select(kept)))
        header["first"] = min(header["first"] * len(shown) // len(kept), len(shown) - 1)
        labels = names or tuple(f"view {i}" for i in range(len(cameras)))
        header["cameras"] = _describe(cameras, shown, labels, held)
        buttons = _add_thumbnails(header, shown, thumbnails, extras)
    else:
        header |= _framing(frame_by_points(cloud))
        header["cameras"], buttons = [], None
    return header, tables, buttons


def _check_counts(
    cameras: Cameras, thumbnails: UInt8[Tensor, "V 3 h w"] | None, names: tuple[str, ...] | None
) -> None:
    for what, value in (("thumbnails", thumbnails), ("names", names)):
        if value is not None and len(value) != len(cameras):
            raise ShapeError(
                f"{what} must be one a camera = {len(cameras)}, got {len(value)}; pass them in "
                "view order"
            )


def _framing(frame: SceneFrame) -> dict[str, Any]:
    return {
        "up": _rounded(frame.up),
        "focus": _rounded(frame.focus),
        "radius": frame.radius,
        "camera_size": frame.camera_size,
        "first": frame.first,
    }


def _describe(
    cameras: Cameras, shown: list[int], names: tuple[str, ...], held: frozenset[int]
) -> list[dict[str, Any]]:
    rows = []
    for index in shown:
        c2w, intrinsics = cameras.c2w[index], cameras.K[index]
        rows.append(
            {
                "name": names[index],
                "held": index in held,
                "eye": _rounded(c2w[:3, 3]),
                "right": _rounded(c2w[:3, 0]),
                "down": _rounded(c2w[:3, 1]),
                "forward": _rounded(c2w[:3, 2]),
                "fx": float(intrinsics[0, 0]),
                "fy": float(intrinsics[1, 1]),
                "cx": float(intrinsics[0, 2]),
                "cy": float(intrinsics[1, 2]),
                "width": cameras.width,
                "height": cameras.height,
            }
        )
    return rows


def _add_thumbnails(
    header: dict[str, Any],
    shown: list[int],
    thumbnails: UInt8[Tensor, "V 3 h w"] | None,
    extras: SceneExtras,
) -> Html:
    """Put the thumbnails into the header and return the strip of buttons below the picture."""
    header["thumbnails"] = thumbnails is not None
    if thumbnails is not None:
        pictures = [to_pixels(thumbnails[index]) for index in shown]
        files = encode_jpegs(
            pictures, long_side=extras.photo_side, budget=extras.photos_budget, quality=80
        )
        for row, file in zip(header["cameras"], files, strict=True):
            row["thumbnail"] = data_uri(file, "image/jpeg")
    buttons = []
    for row in header["cameras"]:
        label = f"{row['name']} (held out)" if row["held"] else row["name"]
        kinds = [k for k, on in (("held", row["held"]), ("text", thumbnails is None)) if on]
        content = row["name"] if thumbnails is None else element("img", alt="")
        buttons.append(
            element(
                "button",
                content,
                type="button",
                title=label,
                aria_label=label,
                class_=" ".join(kinds) or None,
            )
        )
    return element("nav", buttons, id="strip", class_="glass", aria_label="Cameras")


def _rounded(vector: Float[Tensor, " 3"]) -> list[float]:
    return [float(f"{value:.9g}") for value in vector.tolist()]


def _body(title: str, header: dict[str, Any], strip: Html | None) -> list[Html | None]:
    parts = []
    for key, what in (("splats", "splats"), ("points", "points")):
        if header[key]:
            count, total = header[key]["count"], header[key]["total"]
            parts.append(
                f"{format_count(count)} {what}"
                if count == total
                else f"{format_count(count)} of {format_count(total)} {what}"
            )
    if header["cameras"]:
        parts.append(f"{len(header['cameras'])} cameras")
    canvas = element("canvas", id="view", tabindex=0, aria_label=f"3D view of {title}")
    heading = element(
        "header",
        brand("scene"),
        element("h1", title),
        element("p", " \u00b7 ".join(parts)),
        class_="title glass",
    )
    return [canvas, heading, *side(), panel(header), *overlays(header), strip, help_box(), status()]
