"""Draw docs/images/axes.svg: camera axes of OpenCV and OpenGL, and where pixels are.

The cameras are projected by sightline's own geometry. Run it from anywhere; no arguments.
"""

from pathlib import Path

import torch

from sightline.geometry.camera import intrinsics_matrix, project_points
from sightline.geometry.pose import invert_se3, look_at
from sightline.types import Cameras

OUTPUT = Path(__file__).parent / "images" / "axes.svg"
WIDTH, HEIGHT, PANEL = 960, 330, 320
COLORS = {"x": "#e5484d", "y": "#30a46c", "z": "#3e7bfa"}
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #57606a; }
  .title { font-size: 17px; font-weight: 600; fill: #24292f; }
  .small { font-size: 13px; }
  .line { stroke: #8b949e; stroke-width: 1.5; fill: none; stroke-linejoin: round; }
  .plane { fill: #8b949e; fill-opacity: 0.13; stroke: #8b949e; stroke-width: 1.5; }
  .first { fill: #3e7bfa; fill-opacity: 0.18; }
  .axis { stroke-width: 3.5; stroke-linecap: round; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9da7b3; }
    .title { fill: #e6edf3; }
  }
"""


def viewer() -> Cameras:
    """Return the camera that looks at the drawn cameras, in a panel of the picture."""
    eye, target = torch.tensor([3.1, -1.9, -2.3]), torch.tensor([0.1, 0.05, 0.5])
    K = intrinsics_matrix(*torch.tensor([[410.0], [410.0], [PANEL / 2], [HEIGHT / 2 + 12]]))
    w2c = invert_se3(look_at(eye, target, torch.tensor([0.0, -1.0, 0.0])))[None]
    return Cameras(w2c=w2c, K=K, height=HEIGHT, width=PANEL)


def place(points: list[list[float]], left: int) -> list[tuple[float, float]]:
    """Project points of the drawn camera's axes (OpenCV) into the picture."""
    pixels, _ = project_points(torch.tensor(points), viewer())
    return [(left + float(x), float(y)) for x, y in pixels[0]]


def path(points: list[tuple[float, float]], style: str, *, closed: bool = False) -> str:
    """Return a polyline."""
    text = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{style}" d="M {text}{" Z" if closed else ""}"/>'


def camera(left: int, title: str, users: str, signs: tuple[int, int, int], words: str) -> list[str]:
    """Draw a camera with its axes; ``signs`` turn OpenCV's axes into the ones to draw."""
    w, h, z = 0.72, 0.54, 1.15
    corners = place([[-w, -h, z], [w, -h, z], [w, h, z], [-w, h, z]], left)
    center = place([[0.0, 0.0, 0.0]], left)[0]
    rows = [path([center, corner], "line") for corner in corners]
    rows.append(path(corners, "plane", closed=True))
    # The mark above the picture says where its upper side is.
    rows.append(path(place([[-0.2, -h, z], [0.0, -h - 0.2, z], [0.2, -h, z]], left), "line"))
    for i, name in enumerate("xyz"):
        tip = [0.0, 0.0, 0.0]
        tip[i] = 0.95 * signs[i]
        beyond = [1.22 * v for v in tip]
        end, label = place([tip, beyond], left)
        color = COLORS[name]
        rows.append(
            f'<line class="axis" stroke="{color}" marker-end="url(#{name})" x1="{center[0]:.1f}" '
            f'y1="{center[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        )
        rows.append(
            f'<text x="{label[0]:.1f}" y="{label[1] + 5:.1f}" text-anchor="middle" '
            f'style="fill: {color}; font-weight: 600">{name}</text>'
        )
    middle = left + PANEL // 2
    rows.append(f'<text class="title" x="{middle}" y="28" text-anchor="middle">{title}</text>')
    rows.append(f'<text class="small" x="{middle}" y="48" text-anchor="middle">{words}</text>')
    rows.append(f'<text class="small" x="{middle}" y="316" text-anchor="middle">{users}</text>')
    return rows


def pixels(left: int) -> list[str]:
    """Draw the corner of a picture with its pixel centres."""
    x0, y0, side = left + 62, 92, 48
    rows = [
        f'<rect class="plane first" x="{x0}" y="{y0}" width="{side}" height="{side}"/>',
        *(path([(x0 + i * side, y0), (x0 + i * side, y0 + 190)], "line") for i in range(5)),
        *(path([(x0, y0 + i * side), (x0 + 235, y0 + i * side)], "line") for i in range(4)),
    ]
    for i in range(4):
        for j in range(3):
            x, y = x0 + (i + 0.5) * side, y0 + (j + 0.5) * side
            rows.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.6" fill="#8b949e"/>')
    rows += [
        f'<circle cx="{x0}" cy="{y0}" r="4.5" fill="{COLORS["x"]}"/>',
        f'<text x="{x0 - 8}" y="{y0 - 9}" text-anchor="middle">(0, 0)</text>',
        f'<circle cx="{x0 + side / 2:.0f}" cy="{y0 + side / 2:.0f}" r="4.5" fill="{COLORS["z"]}"/>',
        (
            f'<text class="small" x="{x0 + side / 2:.0f}" y="{y0 + side / 2 + 18:.0f}" '
            'text-anchor="middle">0.5, 0.5</text>'
        ),
        f'<text x="{x0 + 4 * side + 22}" y="{y0 - 9}" style="fill: {COLORS["x"]}">x</text>',
        (
            f'<line class="axis" stroke="{COLORS["x"]}" marker-end="url(#x)" x1="{x0 + 3 * side}" '
            f'y1="{y0 - 14}" x2="{x0 + 4 * side + 6}" y2="{y0 - 14}"/>'
        ),
        (
            f'<line class="axis" stroke="{COLORS["y"]}" marker-end="url(#y)" x1="{x0 - 14}" '
            f'y1="{y0 + 2 * side}" x2="{x0 - 14}" y2="{y0 + 3 * side + 6}"/>'
        ),
        (
            f'<text x="{x0 - 14}" y="{y0 + 3 * side + 34}" text-anchor="middle" '
            f'style="fill: {COLORS["y"]}">y</text>'
        ),
    ]
    middle = left + PANEL // 2
    rows.append(f'<text class="title" x="{middle}" y="28" text-anchor="middle">Pixels</text>')
    rows.append(
        f'<text class="small" x="{middle}" y="48" text-anchor="middle">'
        "origin at the corner, centres at half a pixel</text>"
    )
    rows.append(
        f'<text class="small" x="{middle}" y="316" text-anchor="middle">'
        "resize by s: K becomes diag(s, s, 1) K</text>"
    )
    return rows


def main() -> None:
    """Write the picture."""
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="4" markerHeight="4" '
        f'orient="auto"><path d="M 0 0.5 L 8 4 L 0 7.5 Z" fill="{color}"/></marker>'
        for name, color in COLORS.items()
    )
    rows = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="Camera axes of OpenCV and OpenGL, and pixel coordinates">'
        ),
        f"<style>{STYLE}</style>",
        f"<defs>{markers}</defs>",
        *camera(
            0,
            "OpenCV axes: ours",
            "COLMAP, VGGT, DUSt3R, gsplat, viser",
            (1, 1, 1),
            "right, down, forward",
        ),
        *camera(
            PANEL,
            "OpenGL axes",
            "nerfstudio, Blender, glTF, three.js",
            (1, -1, -1),
            "right, up, backward",
        ),
        *pixels(2 * PANEL),
        "</svg>",
    ]
    OUTPUT.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
