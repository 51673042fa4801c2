"""A scene as one web page that anybody can open: splats, points, cameras and photos, offline.

The viewer is our own (WebGL2, no library): splats are instanced quads with the rasteriser's
projection, view-dependent colour and, where the scene was fitted so, antialiasing; a worker sorts
them. Zwicker et al., "EWA volume splatting", 2001; Kerbl et al., arXiv:2308.04079.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.errors import InputError, ShapeError
from sightline.io.atomic import atomic_write_text
from sightline.io.export import ExportOptions, SceneResult, confident
from sightline.report.figures import encode_jpegs, to_pixels
from sightline.report.framing import SceneFrame, frame_by_cameras, frame_by_points, posed_views
from sightline.report.markup import Html, data_uri, element
from sightline.report.numbers import format_count
from sightline.report.scene_data import (
    affordable_degree,
    encode_table,
    pack_gaussians,
    pack_points,
)
from sightline.report.theme import brand, page, read_asset
from sightline.types import Cameras, Gaussians, PointCloud

_SCRIPTS = ("scene_math.js", "scene_sorter.js", "scene_draw.js", "scene_control.js", "scene.js")
_THUMB_SIDE = 224
_THUMBS_BUDGET = 1_500_000
_MOST_CAMERAS = 1000

_KEYS = (
    ("Drag", "turn around what you look at"),
    ("Right drag, two fingers", "shift"),
    ("Wheel, pinch", "nearer, farther"),
    ("Double click", "look at that spot and turn around it"),
    ("Click on a camera", "stand where the photo was taken"),
    ("[  ]", "previous, next camera"),
    ("W A S D  Q E", "fly; with Shift faster"),
    ("Arrow keys", "turn"),
    ("1  2  3  4", "splats, points, cameras, photos"),
    ("R", "back to the first view"),
    ("P", "save the picture"),
    ("M  H", "controls, this help"),
)


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
    points = result.points
    if points is None and result.sparse is not None:
        colors = result.sparse.colors.float() / 255
        points = PointCloud(points=result.sparse.points, colors=colors)
    if points is not None and points.confidence is not None:
        certain = confident(points.confidence.nan_to_num(-torch.inf), options.min_confidence)
        points = points.map(lambda values: values[certain])
    cameras = result.cameras
    if len(cameras):
        w2c = cameras.w2c.clone()
        w2c[~result.registered] = torch.nan
        cameras = Cameras(w2c=w2c, K=cameras.K, height=cameras.height, width=cameras.width)
    path = write_scene_html(
        result.gaussians,
        points,
        cameras if len(cameras) else None,
        result.images,
        folder / "scene.html",
        title=result.title,
        names=result.names,
        test=result.test,
        max_degree=options.sh_degree,
    )
    return [path]


def _assemble(
    gaussians: Gaussians | None,
    points: PointCloud | None,
    cameras: Cameras | None,
    thumbnails: UInt8[Tensor, "V 3 h w"] | None,
    names: tuple[str, ...] | None,
    held: frozenset[int],
    limits: tuple[int, int, int | None],
) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "_ _"]], Html | None]:
    header: dict[str, Any] = {"splats": None, "points": None}
    tables: dict[str, UInt8[np.ndarray, "_ _"]] = {}
    if gaussians is not None and len(gaussians):
        degree = limits[2]
        if degree is None:
            degree = affordable_degree(min(len(gaussians), limits[0]))
        packed = pack_gaussians(gaussians, max_splats=limits[0], max_degree=degree)
        if packed.header["count"]:
            header["splats"], tables = packed.header, packed.tables
    if points is not None and len(points.points):
        packed = pack_points(points, max_points=limits[1])
        if packed.header["count"]:
            header["points"] = packed.header
            tables = tables | packed.tables
    if not tables:
        raise InputError(
            "the scene has neither splats nor points with finite coordinates; reconstruct it "
            "first, or choose another run"
        )
    if cameras is not None:
        _check_counts(cameras, thumbnails, names)
    kept = posed_views(cameras)
    cloud = gaussians.means if header["splats"] and gaussians is not None else None
    if cloud is None and points is not None:
        cloud = points.points
    assert cloud is not None  # one of the two has rows, or we would have left
    if cameras is not None and kept:
        header |= _framing(frame_by_cameras(cameras.select(kept)))
        step = -(-len(kept) // _MOST_CAMERAS)
        shown = kept[::step]
        header["first"] = min(header["first"] // step, len(shown) - 1)
        labels = names or tuple(f"view {i}" for i in range(len(cameras)))
        header["cameras"] = _describe(cameras, shown, labels, held)
        buttons = _add_thumbnails(header, shown, thumbnails)
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
    header: dict[str, Any], shown: list[int], thumbnails: UInt8[Tensor, "V 3 h w"] | None
) -> Html:
    """Put the thumbnails into the header and return the strip of buttons below the picture."""
    header["thumbnails"] = thumbnails is not None
    if thumbnails is not None:
        pictures = [to_pixels(thumbnails[index]) for index in shown]
        files = encode_jpegs(pictures, long_side=_THUMB_SIDE, budget=_THUMBS_BUDGET, quality=80)
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
    corner = element(
        "div",
        element("button", "?", type="button", id="question", aria_label="Help", title="Help (H)"),
        element(
            "button",
            "\u2630",
            type="button",
            id="menu",
            aria_label="Controls",
            title="Controls (M)",
        ),
        class_="corner",
    )
    where = element("div", id="where", class_="glass", hidden=True)
    status = element("div", "Loading\u2026", id="status", class_="glass", role="status")
    return [canvas, heading, corner, _panel(header), where, strip, _help(), status]


def _panel(header: dict[str, Any]) -> Html:
    def box(key: str, name: str, what: str) -> Html:
        return element(
            "label",
            element("input", type="checkbox", id=f"show-{name}"),
            element("span", what),
            element("kbd", key),
        )

    def slider(name: str, what: str, low: int, high: int, value: int, step: float) -> Html:
        return element(
            "label",
            element("div", element("span", what), element("output", id=f"{name}-value")),
            element("input", type="range", id=name, min=low, max=high, value=value, step=step),
            class_="slider",
        )

    points, cameras = header["points"], header["cameras"]
    swatches = [
        element("button", type="button", data_color=color, aria_label=name, title=name)
        for color, name in (("#000000", "Black"), ("#7f8487", "Grey"), ("#ffffff", "White"))
    ]
    return element(
        "aside",
        box("1", "splats", "Splats") if header["splats"] else None,
        box("2", "points", "Points") if points else None,
        box("3", "cameras", "Cameras") if cameras else None,
        box("4", "photos", "Photos on cameras") if cameras and header["thumbnails"] else None,
        element("hr"),
        slider("point-size", "Point size", 1, 12, 2, 0.5) if points else None,
        slider("confidence", "Hide least confident", 0, 99, 25, 1.0)
        if points and points["shown"]
        else None,
        slider("camera-size", "Camera size", -3, 3, 0, 0.1) if cameras else None,
        element(
            "div",
            element("span", "Background"),
            swatches,
            element("input", type="color", id="background", aria_label="Another background"),
            class_="swatches",
        ),
        element(
            "div",
            element("button", "Reset view", type="button", id="reset"),
            element("button", "Save picture", type="button", id="picture"),
            class_="row",
        ),
        id="panel",
        class_="glass",
        hidden=True,
    )


def _help() -> Html:
    rows = [element("tr", element("td", key), element("td", what)) for key, what in _KEYS]
    return element(
        "div",
        element("h2", "Getting around"),
        element("table", element("tbody", rows)),
        id="help",
        class_="glass",
        hidden=True,
    )
