"""The tools of the shared scene in a browser: filters, colours, lengths, comparison, paths."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.report.scene_html import SceneExtras, write_scene_html
from sightline.report.scene_marks import SceneMarks
from sightline.types import PointCloud
from tests.browser import Browser, Page
from tests.report.fake import paint, ring_cameras, ring_cloud, ring_gaussians, ring_points
from tests.report.test_scene_html import bare, ready

pytestmark = pytest.mark.browser
CHANGE = (
    "(() => {{ const e = document.getElementById('{}'); e.{} = {}; "
    "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind)); }})()"
)


def change(page: Page, name: str, value: float | str | bool) -> None:
    """Set a control as a hand would."""
    kind = "checked" if isinstance(value, bool) else "value"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    page.evaluate(CHANGE.format(name, kind, text))
    ready(page)


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points, colors, _ = ring_points(20000)
    cameras = ring_cameras(6, 60, 80)
    photos, _ = paint(points, colors.clamp(0, 1), cameras)
    cloud = ring_cloud(2000)
    painted = cloud.colors.clone()
    painted[:200], painted[200:500] = 0.0, 1.0
    cloud = PointCloud(points=cloud.points, colors=painted, confidence=cloud.confidence)
    splats = ring_gaussians(3000, degree=1)
    seen = torch.zeros(2000, 6, dtype=torch.bool)
    seen[:300, 2] = seen[200:900, 3] = True
    extras = SceneExtras(
        marks=SceneMarks(
            seen=seen, point_sky=cloud.points[:, 1] < -0.2, splat_sky=splats.means[:, 1] < -0.2
        ),
        splat_paint=torch.tensor([[1.0, 0.0, 0.0]]).expand(3000, 3),
        other_points=replace(cloud, points=cloud.points * 2, confidence=None),
        photo_side=80,
    )
    return write_scene_html(
        splats,
        cloud,
        cameras,
        (photos * 255).to(torch.uint8),
        tmp_path_factory.mktemp("tools") / "scene.html",
        title="tools",
        extras=extras,
    )


def test_filters_hide_points_and_splats(browser: Browser, scene_file: Path) -> None:
    def counts() -> list[int]:
        return page.evaluate("[sightline.state.points, sightline.state.splats]")

    with browser.page() as page:
        page.resize(700, 500)
        page.goto(scene_file.as_uri())
        ready(page)
        change(page, "confidence", 0)
        points, splats = counts()
        assert (points, splats) == (2000, 3000)
        change(page, "hide-black", True)
        assert counts()[0] == 1800
        change(page, "hide-white", True)
        assert counts()[0] == 1500
        change(page, "hide-sky", True)
        fewer = counts()
        assert 500 < fewer[0] < 1500
        assert 500 < fewer[1] < 3000
        for name in ("hide-black", "hide-white", "hide-sky"):
            change(page, name, False)
        assert counts() == [2000, 3000]
        change(page, "seen", "here")
        page.evaluate("sightline.stand(2, 0)")
        ready(page)
        assert counts()[0] == 300
        page.evaluate("sightline.stand(3, 0)")
        assert counts()[0] == 700
        change(page, "seen", "chosen")
        assert counts()[0] == 0
        for view in (2, 3):
            page.evaluate(f"document.querySelectorAll('#strip button')[{view}].click()")
        assert counts()[0] == 900
        change(page, "seen", "all")
        change(page, "crop", 40)
        near = counts()
        assert 0 < near[0] < 2000
        assert 0 < near[1] < 3000
        change(page, "source", "other")
        assert counts()[0] < near[0]  # twice as far away
        assert page.errors == []


def test_depth_normals_and_features_are_other_colours(browser: Browser, scene_file: Path) -> None:
    with browser.page() as page:
        page.resize(400, 300)
        page.goto(scene_file.as_uri())
        ready(page)
        change(page, "show-cameras", False)
        bare(page)
        ready(page)
        pictures = {}
        for mode in ("color", "depth", "normal", "paint", "color"):
            change(page, "mode", mode)
            picture = page.screenshot().astype(int)
            if mode in pictures:
                np.testing.assert_array_equal(picture, pictures[mode])  # nothing is lost on the way
            pictures[mode] = picture
            assert picture.std() > 5, mode
        for mode in ("depth", "normal", "paint"):
            assert np.abs(pictures[mode] - pictures["color"]).mean() > 5, mode
        lit = pictures["paint"].max(axis=2) > 40
        assert pictures["paint"][lit][:, 1:].max() < 20  # red, as painted
        assert page.errors == []


def test_lengths_take_the_scale_that_is_told(browser: Browser, scene_file: Path) -> None:
    with browser.page() as page:
        page.resize(700, 500)
        page.goto(scene_file.as_uri())
        ready(page)
        page.press("l")
        spots = page.evaluate(
            "(() => { const found = []; for (let y = 130; y < 400; y += 20) for (let x = 60; x < 460;"
            " x += 20) found.push([x, y]); return found; })()"
        )
        for spot in spots:
            page.click(*spot)
            if page.evaluate("sightline.lengths.ends.length") == 2:
                break
        ready(page)
        assert "units" in page.evaluate("document.querySelector('#lengths text').textContent")
        change(page, "real-length", "2.5")
        assert page.evaluate("document.querySelector('#lengths text').textContent") == "2.50 m"
        page.evaluate("document.getElementById('unmeasure').click()")
        ready(page)
        assert page.evaluate("document.querySelector('#lengths text')") is None
        assert page.errors == []


def test_photo_lies_exactly_over_the_scene(browser: Browser, scene_file: Path) -> None:
    with browser.page() as page:
        page.resize(600, 500)
        page.goto(scene_file.as_uri())
        ready(page)
        page.press("c")
        ready(page)
        box = page.evaluate(
            "(() => { const b = document.getElementById('wipe').getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        np.testing.assert_allclose(box, [0, 25, 600, 450], atol=0.5)  # 80 x 60 into 600 x 500
        page.press("v")
        page.wait_for("sightline.state.panesOf !== null && sightline.isSettled()")
        spread = page.evaluate(
            "[...document.querySelectorAll('#panes canvas')].map((c) => { const d ="
            " c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " return Math.max(...d.filter((_, i) => i % 4 === 0)); })"
        )
        assert len(spread) == 3
        assert min(spread) > 60
        page.drag((300, 60), (380, 60))  # the rule moves, the view does not
        assert page.evaluate("sightline.state.standing") >= 0
        page.press("]")
        page.wait_for("!sightline.control.flight && sightline.isSettled()")
        assert not page.evaluate("document.getElementById('wipe').hidden")
        assert page.errors == []


def test_camera_path_plays_through_kept_views(browser: Browser, scene_file: Path) -> None:
    with browser.page() as page:
        page.resize(400, 300)
        page.goto(scene_file.as_uri())
        ready(page)
        for view in (1, 2):
            page.evaluate(f"sightline.stand({view}, 0)")
            page.press("k")
        assert page.evaluate("sightline.tour.stops.length") == 2
        page.evaluate("(sightline.tour.seconds = 0.3, document.getElementById('play').click())")
        page.wait_for("sightline.state.tourStart === null")
        np.testing.assert_allclose(
            page.evaluate("sightline.view.eye"),
            page.evaluate("sightline.scene.cameras[2].eye"),
            atol=1e-6,
        )
        assert page.errors == []
        assert page.external_requests() == []
