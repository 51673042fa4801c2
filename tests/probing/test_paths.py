"""Section 11 of the published protocol: paths, frames, canvas, depth and normals, by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import UnknownNameError
from sightline.geometry.pose import invert_se3, look_at
from sightline.probing import paths
from sightline.probing.config import config_from
from sightline.probing.grid import run_grid
from sightline.probing.paths import (
    PATHS,
    SETTINGS,
    Setting,
    average_camera,
    frame_count,
    gallery_paths,
    interpolate_cameras,
    interpolate_matrices,
    nearest_to_axes,
    published_path,
)
from sightline.probing.protocols import PROTOCOLS, Protocol, find_protocol
from sightline.probing.report import write_report
from sightline.probing.results import collect
from sightline.probing.videos import (
    SPECTRAL,
    normal_pixels,
    probe_path,
    scale_depth,
    square_canvas,
)
from sightline.types import Cameras
from tests.probing import tiny

OURS, PUBLISHED = PROTOCOLS["sightline-1"], PROTOCOLS["feat2gs-v1"]
TARGET = torch.tensor([10.0, 0, 0], dtype=torch.float64)


def with_quirk(number: str, base: str = "sightline-1") -> Protocol:
    return find_protocol(base, {"quirks": {number: True}})


def ring(count: int = 5) -> Cameras:
    """Cameras around a point ten units from the origin, which all look at it."""
    angles = torch.linspace(0, 1.5, count, dtype=torch.float64)
    eyes = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.full_like(angles, 1.0)], -1)
    c2w = look_at(eyes + TARGET, TARGET, torch.tensor([0.0, 0, 1]).double())
    K = torch.tensor([[[100.0, 0, 40], [0, 100, 30], [0, 0, 1]]], dtype=torch.float64)
    return Cameras(w2c=invert_se3(c2w), K=K.expand(count, 3, 3), height=60, width=80)


def centers(w2c: torch.Tensor) -> torch.Tensor:
    return invert_se3(w2c)[:, :3, 3]


def along(name: str, frames: int = 8, setting: Setting | None = None, protocol=PUBLISHED):
    return published_path(name, ring(), frames, setting or Setting(), protocol.quirks)


def test_frames_settings_and_gallery() -> None:
    assert [frame_count(n) for n in (2, 3, 7)] == [150, 200, 252]
    assert SETTINGS["Tanks/Ignatius"].arc == 330
    assert SETTINGS["Infer/bread"].up == (-1, 0)
    assert SETTINGS["Infer/brunch"].up == (1, 1)
    assert (SETTINGS["Infer/castle"].spiral, SETTINGS["Infer/castle"].arc) == ((2, 2), None)
    assert len(SETTINGS) == 21 + 5 + 5 + 3 + 3 + 5
    assert gallery_paths("Infer/bread") == ("lemniscate", "ellipse")
    assert gallery_paths("Tanks/Ignatius") == ("lemniscate", "arc")
    assert gallery_paths("DTU/scan4") == ("interpolate", "spiral")
    assert gallery_paths("kitchen") == ("interpolate",)
    shown = [scene for scenes in paths._PUBLISHED.values() for scene in scenes]
    assert [len(scenes) for scenes in paths._PUBLISHED.values()] == [11, 16, 6, 3, 5, 1]
    assert {scene.split("/")[0] for scene in shown} <= {
        *("LLFF", "DL3DV", "Tanks", "MipNeRF360", "MVimgNet", "Infer")
    }
    with pytest.raises(UnknownNameError, match="arc"):
        along("orbit")


def test_average_camera_and_look_at_point() -> None:
    c2w = invert_se3(ring().w2c)
    average = average_camera(c2w)
    torch.testing.assert_close(average[:3, 3], c2w[:, :3, 3].mean(0))
    z = c2w[:, :3, 2].mean(0)
    torch.testing.assert_close(average[:3, 2], z / z.norm())
    assert abs(float(average[:3, 0] @ c2w[:, :3, 1].mean(0))) < 1e-9  # x is across the mean y
    torch.testing.assert_close(average[:3, :3].T @ average[:3, :3], torch.eye(3).double())
    torch.testing.assert_close(nearest_to_axes(c2w), TARGET, rtol=1e-6, atol=1e-6)


def test_arc_and_q16() -> None:
    c2w = invert_se3(ring().w2c)
    average = average_camera(c2w)
    up = -average[:3, 1]
    found = centers(along("arc", setting=Setting(90)))
    start = average[:3, 3] - TARGET
    for i in (0, 2, 5):
        angle = math.radians(45) * math.sin(2 * math.pi * i / 8)
        # Rodrigues' formula.
        turned = (
            start * math.cos(angle)
            + torch.linalg.cross(up, start) * math.sin(angle)
            + up * (up @ start) * (1 - math.cos(angle))
        )
        torch.testing.assert_close(found[i], turned + TARGET, rtol=1e-6, atol=1e-6)
    wrong = centers(along("arc", setting=Setting(90), protocol=with_quirk("Q16")))
    torch.testing.assert_close(wrong, found - TARGET, rtol=1e-6, atol=1e-6)
    # Everything looks at the look-at point.
    forward = invert_se3(along("arc"))[:, :3, 2]
    toward = torch.nn.functional.normalize(TARGET - centers(along("arc")), dim=-1)
    torch.testing.assert_close(forward, toward, rtol=1e-5, atol=1e-6)


def test_spiral() -> None:
    c2w = invert_se3(ring().w2c)
    average = average_camera(c2w)
    local = (c2w[:, :3, 3] - average[:3, 3]) @ average[:3, :3]
    rads = 1.25 * (local.amax(0) - local.amin(0))
    found = centers(along("spiral", setting=Setting(spiral=(2, 3))))
    for i in (0, 1, 6):
        t = 2 * math.pi * 3 * i / 8
        at = torch.tensor([math.cos(t), -math.sin(t), -math.sin(2 * t)]).double() * rads
        want = average[:3, :3] @ at + average[:3, 3]
        torch.testing.assert_close(found[i], want, rtol=1e-6, atol=1e-6)


def test_lemniscate_and_up() -> None:
    average = average_camera(invert_se3(ring().w2c))
    a = float((average[:3, 3] - TARGET).norm()) * math.tan(60 * math.pi / 360)
    way = along("lemniscate", setting=Setting(lemniscate=60))
    t = math.pi / 2 + 2 * math.pi * 3 / 8
    x = a * math.cos(t) / (1 + math.sin(t) ** 2)
    want = average[:3, :3] @ torch.tensor([x, x * math.sin(t), 0.0]).double() + average[:3, 3]
    torch.testing.assert_close(centers(way)[3], want, rtol=1e-6, atol=1e-6)
    # `up` turns the picture, not the path.
    turned = along("lemniscate", setting=Setting(lemniscate=60, up=(-1, 0)))
    torch.testing.assert_close(centers(turned), centers(way), rtol=1e-6, atol=1e-6)
    right = invert_se3(turned)[:, :3, 0]
    assert (right @ average[:3, 0]).abs().max() < 0.3  # the right of the picture is across it now


def test_wander_keeps_its_orientation() -> None:
    average = average_camera(invert_se3(ring().w2c))
    way = invert_se3(along("wander", setting=Setting(wander=100)))
    reach = 100 / 100  # pixels over the focal length
    for i in (0, 1):
        t = 2 * math.pi * i / 8
        offset = torch.tensor([reach * math.sin(t), 0, reach / 2 * math.cos(t)]).double()
        pose = torch.eye(4).double()
        pose[:3, 3] = offset
        torch.testing.assert_close(way[i], average @ torch.linalg.inv(pose), rtol=1e-6, atol=1e-6)


def test_ellipse_of_a_ring() -> None:
    """A half ring in a tilted plane: the ellipse lies in it, about the point looked at."""
    angles = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    plane = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())[
        0
    ]
    eyes = torch.stack([4 * angles.cos(), 2 * angles.sin(), torch.zeros_like(angles)], -1)
    eyes, up = eyes @ plane.T + TARGET, plane[:, 2]
    c2w = look_at(eyes, TARGET, up)
    cameras = Cameras(
        w2c=invert_se3(c2w), K=torch.eye(3).double().expand(9, 3, 3), height=4, width=4
    )
    way = invert_se3(published_path("ellipse", cameras, 12, Setting(), PUBLISHED.quirks))
    local = (way[:, :3, 3] - TARGET) @ plane
    assert local[:, 2].abs().max() < 1e-6
    # Half axes: the largest distances from the focus, at even angles without even speed.
    t = 2 * math.pi * torch.arange(12).double() / 12
    torch.testing.assert_close(local[:, 0].abs(), (4 * t.cos()).abs(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(local[:, 1].abs(), (2 * t.sin()).abs(), rtol=1e-5, atol=1e-5)
    toward = torch.nn.functional.normalize(TARGET - way[:, :3, 3], dim=-1)
    torch.testing.assert_close(way[:, :3, 2], toward, rtol=1e-5, atol=1e-5)
    assert (-way[:, :3, 1] @ up > 0.9).all()  # upright


def test_q17_interpolation() -> None:
    three = ring(3)
    steps = interpolate_matrices(three.w2c, 4)
    assert len(steps) == 8
    torch.testing.assert_close(steps[0], three.w2c[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(steps[4], three.w2c[1], rtol=1e-6, atol=1e-6)
    middle = (three.w2c[0, :3, 3] + three.w2c[1, :3, 3]) / 2
    torch.testing.assert_close(steps[2, :3, 3], middle)  # of translations, not of centres
    c2w = invert_se3(three.w2c)
    even = interpolate_cameras(c2w, 4)
    assert len(even) == 8
    torch.testing.assert_close(even[2, :3, 3], (c2w[0, :3, 3] + c2w[1, :3, 3]) / 2)
    half = even[2, :3, :3] @ c2w[0, :3, :3].T  # half of the turn, twice
    torch.testing.assert_close(half @ half, c2w[1, :3, :3] @ c2w[0, :3, :3].T, rtol=1e-5, atol=1e-6)
    assert interpolate_cameras(c2w[:1], 5).shape == (5, 4, 4)
    straight = published_path("interpolate", three, 8, Setting(), with_quirk("Q17").quirks)
    torch.testing.assert_close(straight, steps)
    torch.testing.assert_close(
        published_path("interpolate", three, 8, Setting(), OURS.quirks), invert_se3(even)
    )


@pytest.mark.parametrize("name", PATHS)
def test_both_protocols_have_every_path(name: str) -> None:
    for protocol in (OURS, PUBLISHED, with_quirk("Q16"), with_quirk("Q17")):
        way = probe_path(name, ring(4), 12, "Tanks/Train", protocol)
        assert len(way) == 12
        assert way.w2c.isfinite().all()
    published = probe_path(name, ring(4), 12, "x", PUBLISHED).w2c
    torch.testing.assert_close(
        published, published_path(name, ring(4), 12, Setting(), PUBLISHED.quirks)
    )


def test_canvas_depth_and_q18() -> None:
    canvas = square_canvas(ring())
    assert (canvas.height, canvas.width) == (80, 80)
    assert canvas.K[0].tolist() == [[100, 0, 40], [0, 100, 40], [0, 0, 1]]
    # One range a video, or each frame by its own range but at most 1.
    depth = np.array([[[1.0, 1.5]], [[2.0, 6.0]]])
    assert scale_depth(depth, OURS.quirks).tolist() == [[[0, 0.1]], [[0.2, 1]]]
    assert scale_depth(depth[:1], OURS.quirks, (1.0, 3.0)).tolist() == [[[0, 0.25]]]
    assert scale_depth(depth, with_quirk("Q18").quirks).tolist() == [[[0, 1]], [[0, 4]]]
    assert SPECTRAL[0].tolist() == [158, 1, 66]
    assert SPECTRAL[255].tolist() == [94, 79, 162]


def test_normals_of_a_plane() -> None:
    K = torch.tensor([[[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]])
    camera = Cameras(w2c=torch.eye(4)[None], K=K, height=16, width=16)
    alpha = torch.full((16, 16), 0.5)
    found = normal_pixels(torch.full((16, 16), 3.0), alpha, camera)
    # It faces the camera: (0, 0, -1), times alpha, halved and moved up.
    assert found[8, 8].tolist() == [128, 128, 64]
    assert found[0, 5].tolist() == [128, 128, 128]  # the border is zero


def test_videos_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mode of the gallery's path, inside the scene's page."""
    monkeypatch.setattr(paths, "FRAMES", 4)
    config = config_from(
        tiny.grid(features=["iuvrgb"], videos=["gallery"], video_modes=["rgb", "depth", "normal"])
    )
    outcome = run_grid(config, tmp_path)
    assert not outcome.failed, outcome.failed
    (cell,) = collect(tmp_path).companions
    assert cell["summary"]["files"] == {
        "rgb": "interpolate.mp4",
        "depth": "interpolate_depth.mp4",
        "normal": "interpolate_normal.mp4",
    }
    write_report(tmp_path)
    page = next((tmp_path / "scenes").glob("*.html")).read_text("utf-8")
    assert page.count("data:video/mp4") == 3
    assert "media-src data:" in page
    with pytest.raises(UnknownNameError, match="entry of videos"):
        config_from(tiny.grid(videos=["sideways"]))
