import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import InputError, ShapeError
from sightline.io.export import ExportOptions, SceneResult
from sightline.report.scene_html import export_html, write_scene_html
from sightline.report.theme import read_asset
from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, Gaussians, SparsePoints
from tests.browser import Browser, Page
from tests.report.fake import paint, ring_cameras, ring_cloud, ring_gaussians, ring_points

HOSTILE = "</script><img src=x onerror=alert(1)>\udc80\u202e.jpg"


@pytest.fixture(scope="module")
def thumbnails() -> torch.Tensor:
    points, colors, _ = ring_points(20000)
    pictures, _ = paint(points, colors.clamp(0, 1), ring_cameras(6, 60, 80))
    return (pictures * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, thumbnails: torch.Tensor) -> Path:
    return write_scene_html(
        ring_gaussians(3000, degree=2),
        ring_cloud(2000),
        ring_cameras(6, 240, 320),
        thumbnails,
        tmp_path_factory.mktemp("scene") / "scene.html",
        title=HOSTILE,
        names=tuple(f"{i}{HOSTILE}" for i in range(6)),
        test=(0, 4),
    )


def read_header(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="scene">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def ready(page: Page) -> None:
    page.wait_for("window.sightline && sightline.isSettled() && sightline.state.frames > 0")


def bare(page: Page) -> None:
    """Leave only the canvas, black where nothing is."""
    page.evaluate(
        "document.querySelectorAll('.glass, .corner').forEach((e) => { e.style.display = 'none'; });"
        "document.querySelector('[data-color=\"#000000\"]').click()"
    )


def test_header_has_scene_and_cameras(page_file: Path) -> None:
    header = read_header(page_file.read_text("utf-8"))
    assert header["splats"]["count"] == 3000
    assert header["points"]["count"] == 2000
    assert [row["held"] for row in header["cameras"]] == [True, False, False, False, True, False]
    assert header["cameras"][2]["name"] == f"2{HOSTILE}"
    np.testing.assert_allclose(header["up"], [0, -1, 0], atol=0.05)
    np.testing.assert_allclose(header["focus"], [0, 0.1, 0], atol=0.05)
    assert header["file"] == "script-img-src-x-onerror-alert-1-.jpg"


def test_nothing_hostile_becomes_markup(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    assert "<img src=x" not in text
    assert text.count("<script") == 1 + 1 + 5  # the program, the header, five tables
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_viewer_is_small() -> None:
    names = ("scene_math.js", "scene_sorter.js", "scene_shaders.js", "scene_draw.js", "scene_control.js", "scene_filter.js", "scene_tools.js", "scene.js",
             "scene.css", "theme.css")  # fmt: skip
    assert sum(len(read_asset(name).encode()) for name in names) < 100_000


def test_empty_scene_is_refused(tmp_path: Path) -> None:
    empty = ring_gaussians(4)
    empty.means[:] = torch.nan
    for gaussians in (None, empty):
        with pytest.raises(InputError, match="neither splats nor points"):
            write_scene_html(gaussians, None, None, None, tmp_path / "s.html", title="x")
    assert list(tmp_path.iterdir()) == []


def test_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="names must be one a camera = 3, got 2"):
        write_scene_html(
            ring_gaussians(4), None, ring_cameras(3), None, tmp_path / "s.html", title="x",
            names=("a", "b"),
        )  # fmt: skip


def test_cameras_without_pose_are_left_out(tmp_path: Path) -> None:
    cameras = ring_cameras(5)
    cameras.w2c[1] = torch.nan
    file = write_scene_html(
        None, ring_cloud(10), cameras, None, tmp_path / "s.html", title="x", test=(2,)
    )
    rows = read_header(file.read_text())["cameras"]
    assert [row["name"] for row in rows] == ["view 0", "view 2", "view 3", "view 4"]
    assert [row["held"] for row in rows] == [False, True, False, False]


def reference(gaussians: Gaussians, cameras: Cameras, view: int) -> np.ndarray:
    picture, _, _ = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh,
        cameras.w2c[view : view + 1], cameras.K[view : view + 1], cameras.width, cameras.height,
        sh_degree=gaussians.sh_degree,
        rasterize_mode="antialiased" if gaussians.antialiased else "classic",
    )  # fmt: skip
    return picture[0].clamp(0, 1).numpy()


@pytest.mark.browser
@pytest.mark.parametrize(("degree", "antialiased"), [(0, False), (1, True), (2, False), (3, True)])
def test_browser_draws_what_the_rasteriser_draws(
    browser: Browser, tmp_path: Path, degree: int, antialiased: bool
) -> None:
    made = ring_gaussians(2500, degree=degree)
    sh = made.sh.clone()
    sh[:, 1:] *= 4  # so that a wrong sign or order would show
    gaussians = Gaussians(
        means=made.means, quats=made.quats, scales=made.scales, opacities=made.opacities, sh=sh,
        antialiased=antialiased,
    )  # fmt: skip
    cameras = ring_cameras(4, 240, 320)
    file = write_scene_html(gaussians, None, cameras, None, tmp_path / "s.html", title="x")
    with browser.page() as page:
        page.resize(320, 240)
        page.goto(file.as_uri())
        ready(page)
        bare(page)
        page.evaluate("document.getElementById('show-cameras').click()")
        for view in (0, 2):
            page.evaluate(f"sightline.stand({view}, 0)")
            ready(page)
            drawn = page.screenshot() / 255
            error = float(((drawn - reference(gaussians, cameras, view)) ** 2).mean())
            assert -10 * np.log10(error) > 45  # about 51 dB: 8-bit blending and packing
        assert page.errors == []


@pytest.mark.browser
def test_page_works_offline_from_a_file(browser: Browser, page_file: Path) -> None:
    with browser.page() as page:
        page.resize(900, 600)
        page.goto(page_file.as_uri())
        ready(page)
        assert page.evaluate("document.getElementById('status').hidden")
        assert page.evaluate("document.querySelector('.title h1').textContent").startswith("</scri")
        bare(page)
        ready(page)
        assert page.screenshot().std() > 20
        # Splats off, points on: still a picture; the slider hides points.
        page.evaluate("document.getElementById('show-splats').click()")
        page.evaluate("document.getElementById('show-cameras').click()")
        ready(page)
        assert page.screenshot().max() == 0
        page.evaluate("document.getElementById('show-points').click()")
        set_slider = (
            "(() => {{ const s = document.getElementById('confidence'); s.value = {};"
            "s.dispatchEvent(new Event('input')); }})()"
        )
        counts = []
        for hidden in (0, 50, 90):
            page.evaluate(set_slider.format(hidden))
            ready(page)
            counts.append(int((page.screenshot().max(axis=2) > 0).sum()))
        assert counts[0] > 1.2 * counts[1] > 0
        assert counts[1] > 2 * counts[2] > 0
        assert page.errors == []
        assert page.external_requests() == []


@pytest.mark.browser
def test_mouse_and_keys_move_the_view(browser: Browser, page_file: Path) -> None:
    with browser.page() as page:
        page.resize(900, 600)
        page.goto(page_file.as_uri())
        ready(page)

        def view() -> dict:
            ready(page)
            return page.evaluate("({...sightline.view, standing: sightline.state.standing})")

        start = view()
        assert start["standing"] == page.evaluate("sightline.scene.first")
        page.drag((450, 300), (520, 280))
        turned = view()
        assert turned["standing"] == -1
        target = [
            np.add(v["eye"], np.multiply(v["forward"], v["distance"])) for v in (start, turned)
        ]
        np.testing.assert_allclose(target[0], target[1], atol=1e-5)
        assert np.linalg.norm(np.subtract(turned["eye"], start["eye"])) > 0.1
        page.mouse("mouseWheel", 450, 300, deltaX=0, deltaY=200)
        assert view()["distance"] > 1.2 * turned["distance"]
        page.press("]")
        page.wait_for("!sightline.control.flight")
        assert view()["standing"] == 0
        assert page.evaluate("document.getElementById('where').textContent").endswith("(held out)")
        page.press("r")
        page.wait_for("!sightline.control.flight")
        np.testing.assert_allclose(view()["eye"], start["eye"], atol=1e-6)
        # A click on a camera that can be seen: stand there.
        page.evaluate("(sightline.control.zoom(2.5), sightline.control.changed())")
        ready(page)
        spot = page.evaluate(
            "(() => { const c = sightline.scene.cameras[3], v = sightline.view, p = c.eye.map((x, i)"
            " => x - v.eye[i]), d = (a) => a.reduce((s, x, i) => s + x * p[i], 0), z = d(v.forward),"
            " f = 300 / Math.tan(v.fov / 2); return [450 + f * d(v.right) / z, 300 + f * d(v.down) / z,"
            " z]; })()"
        )
        assert spot[2] > 0
        assert 0 < spot[0] < 900
        assert 0 < spot[1] < 600
        page.click(spot[0], spot[1])
        page.wait_for("sightline.state.standing === 3 && !sightline.control.flight")
        np.testing.assert_allclose(
            view()["eye"], page.evaluate("sightline.scene.cameras[3].eye"), atol=1e-6
        )
        page.press("h")
        assert not page.evaluate("document.getElementById('help').hidden")
        assert page.errors == []


@pytest.mark.browser
def test_scene_without_cameras_or_splats(browser: Browser, tmp_path: Path) -> None:
    file = write_scene_html(None, ring_cloud(3000), None, None, tmp_path / "s.html", title="points")
    with browser.page() as page:
        page.resize(390, 700, scale=2, dark=True, touch=True)
        page.goto(file.as_uri())
        ready(page)
        assert page.evaluate("document.getElementById('panel').hidden")
        assert page.screenshot().std() > 5
        assert page.errors == []
        assert page.external_requests() == []


def test_exporter_takes_a_run_or_a_bare_file(tmp_path: Path) -> None:
    bare = SceneResult.bare(gaussians=ring_gaussians(20))
    (path,) = export_html(bare, tmp_path / "bare", ExportOptions())
    assert path == tmp_path / "bare" / "scene.html"
    assert read_header(path.read_text())["cameras"] == []

    cameras = ring_cameras(4, 60, 80)
    cloud = ring_cloud(1000)
    result = SceneResult(
        names=("a", "b", "c", "d"),
        cameras=cameras,
        from_original=torch.eye(3).expand(4, 3, 3),
        original_sizes=torch.tensor([[60, 80]] * 4),
        registered=torch.tensor([True, False, True, True]),
        points=cloud,
        images=torch.zeros(4, 3, 60, 80, dtype=torch.uint8),
        test=(3,),
        title="run 7",
    )
    (path,) = export_html(result, tmp_path, ExportOptions(min_confidence=40.0, sh_degree=1))
    header = read_header(path.read_text())
    assert header["title"] == "run 7"
    assert header["points"]["count"] == 600
    assert [(row["name"], row["held"]) for row in header["cameras"]] == [
        ("a", False), ("c", False), ("d", True)
    ]  # fmt: skip
    assert header["cameras"][0]["thumbnail"].startswith("data:image/jpeg;base64,")


def test_exporter_falls_back_on_sparse_points(tmp_path: Path) -> None:
    points, colors, _ = ring_points(30)
    sparse = SparsePoints(
        points=points,
        colors=(colors.clamp(0, 1) * 255).to(torch.uint8),
        tracks=torch.zeros(0, 2, dtype=torch.int32),
    )
    result = replace(SceneResult.bare(), sparse=sparse)
    (path,) = export_html(result, tmp_path, ExportOptions(min_confidence=50.0))
    assert read_header(path.read_text())["points"] == {
        "count": 30, "total": 30, "shown": None
    }  # fmt: skip
