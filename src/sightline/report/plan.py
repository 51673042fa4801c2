"""The cameras and points of a scene seen from above, drawn as SVG.

Colours come from the page's stylesheet: ``cam`` for training views, ``cam held`` for held-out
ones, ``cloud`` for the points.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.geometry.trajectory import mean_up
from sightline.report.charts import nice_ticks
from sightline.report.markup import Html, element
from sightline.report.numbers import format_tick
from sightline.types import Cameras

_WIDTH = 560
_MARGIN = 20
_LOWEST, _HIGHEST = 220.0, 440.0  # of the drawing, so that a corridor and a tower both read well
_MOST_POINTS = 4000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CameraPlan:
    """What the picture from above shows."""

    cameras: Cameras
    names: tuple[str, ...]
    registered: Bool[Tensor, " V"]
    test: tuple[int, ...] = ()
    """Indices of held-out views."""
    points: Float[Tensor, "N 3"] | None = None
    metric: bool = False
    """True when scene units are metres."""


def camera_plan(plan: CameraPlan) -> Html | None:
    """Draw the registered cameras from above, held-out ones in another colour, points faint.

    Up is the cameras' mean up; the drawing is turned so that the cameras spread sideways. Hovering
    over a camera names its picture. Returns None when no camera is registered.
    """
    chosen = [int(i) for i in plan.registered.nonzero()[:, 0]]
    if not chosen:
        return None
    cameras = plan.cameras.select(chosen).to("cpu")
    c2w = cameras.c2w.double().numpy()
    axes = _page_axes(mean_up(cameras).double().numpy(), c2w[:, :3, 3])
    centers = c2w[:, :3, 3] @ axes.T  # [V, 2], page right and page up
    looks = c2w[:, :3, 2] @ axes.T
    points = np.empty((0, 2))
    if plan.points is not None and len(plan.points):
        step = max(1, len(plan.points) // _MOST_POINTS)
        points = plan.points[::step].detach().cpu().double().numpy() @ axes.T
        points = points[np.isfinite(points).all(axis=1)]

    low, high = _frame(centers, points)
    scale = float((_WIDTH - 2 * _MARGIN) / (high[0] - low[0]))
    scale = min(scale, float((_HIGHEST - 2 * _MARGIN) / (high[1] - low[1])))
    height = max(_LOWEST, float(high[1] - low[1]) * scale + 2 * _MARGIN)
    middle = (low + high) / 2

    def to_page(at: np.ndarray) -> np.ndarray:
        return (at - middle) * scale * [1, -1] + [_WIDTH / 2, height / 2]

    size = float(np.clip(130 / math.sqrt(len(chosen)), 6, 17))
    held = set(plan.test)
    glyphs = [
        _glyph(at, look, size, plan.names[view], held=view in held)
        for view, at, look in zip(chosen, to_page(centers), looks * [1, -1], strict=True)
    ]
    page = to_page(points)
    page = page[((page > 0) & (page < [_WIDTH, height])).all(axis=1)]
    cloud = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in page)
    # Held-out cameras last, so that they are never covered.
    glyphs = [g for v, g in zip(chosen, glyphs, strict=True) if v not in held] + [
        g for v, g in zip(chosen, glyphs, strict=True) if v in held
    ]
    return element(
        "svg",
        element("path", d=cloud, class_="cloud") if cloud else None,
        glyphs,
        _scale_bar((_WIDTH - 2 * _MARGIN) / scale, scale, height, plan.metric),
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        role="img",
        aria_label="Cameras seen from above",
    )


def _page_axes(
    up: Float[np.ndarray, " 3"], centers: Float[np.ndarray, "V 3"]
) -> Float[np.ndarray, "2 3"]:
    """Return the world directions of page right and page up, seen from above."""
    up = up / np.linalg.norm(up)
    flat = centers - centers.mean(axis=0)
    flat = flat - np.outer(flat @ up, up)
    right = np.linalg.svd(flat, full_matrices=True)[2][0]
    right = right - up * (right @ up)
    if np.linalg.norm(right) < 0.5:  # one camera, or all above each other: any direction will do
        right = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    right = right / np.linalg.norm(right)
    # The sign of a singular vector is arbitrary; the largest entry decides.
    right = right * np.sign(right[np.abs(right).argmax()])
    return np.stack([right, np.cross(up, right)])


def _frame(
    centers: Float[np.ndarray, "V 2"], points: Float[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Return the corners of what is drawn: every camera, and most points where they are near."""
    low, high = centers.min(axis=0), centers.max(axis=0)
    if len(points):
        reach = max(float(np.linalg.norm(high - low)), 1e-9)
        near = ((points > low - 1.5 * reach) & (points < high + 1.5 * reach)).all(axis=1)
        if not near.any():
            near[:] = len(centers) == 1  # nothing to compare with: trust the points
        if near.any():
            low = np.minimum(low, np.quantile(points[near], 0.03, axis=0))
            high = np.maximum(high, np.quantile(points[near], 0.97, axis=0))
    extent = max(float((high - low).max()), 1e-6)
    grow = np.maximum(0.08 * extent, (0.3 * extent - (high - low)) / 2)
    return low - grow, high + grow


def _glyph(
    at: Float[np.ndarray, " 2"],
    look: Float[np.ndarray, " 2"],
    size: float,
    name: str,
    *,
    held: bool,
) -> Html:
    kind = "cam held" if held else "cam"
    title = element("title", f"{name} (held out)" if held else name)
    length = float(np.linalg.norm(look))
    if length < 0.2:  # looking straight down or up
        return element(
            "circle", title, cx=f"{at[0]:.1f}", cy=f"{at[1]:.1f}", r=f"{size / 3:.1f}", class_=kind
        )
    forward = look / length
    side = np.array([-forward[1], forward[0]])
    far = at + forward * size
    corners = [at, far + side * 0.55 * size, far - side * 0.55 * size]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return element("polygon", title, points=outline, class_=kind)


def _scale_bar(span: float, scale: float, height: float, metric: bool) -> Html:
    length = nice_ticks(0.0, span, 6)[1]
    x, y = 16.0, height - 16.0
    unit = "m" if metric else "unit" if length == 1 else "units"
    return element(
        "g",
        element("path", d=f"M{x} {y - 4:.1f}v4h{length * scale:.1f}v-4", class_="rule"),
        element(
            "text",
            f"{format_tick(length)} {unit}",
            x=x + length * scale + 8,
            y=f"{y:.1f}",
            class_="tick start",
        ),
    )
