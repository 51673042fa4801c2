import contextlib
import dataclasses
import io
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.app.viewer import Viewer, ViewerScene, build_viewer, serve, view
from sightline.errors import InputError, MissingExtraError, ShapeError
from sightline.types import Cameras
from tests.browser import Browser, Page, open_browser
from tests.report.fake import ring_cameras, ring_cloud, ring_gaussians

viser = pytest.importorskip("viser", reason="the viewer needs the extra app")

HOSTILE = "../<b>x</b>/\udc80.jpg"


def ring_scene(views: int = 6, **changes) -> ViewerScene:
    cloud = ring_cloud(600)
    parts = {
        "title": f"ring {HOSTILE}",
        "cameras": ring_cameras(views, 240, 320),
        "names": tuple(f"{i}{HOSTILE}" for i in range(views)),
        "test": (0, 4),
        "thumbnails": torch.randint(0, 255, (views, 3, 24, 32), dtype=torch.uint8),
        "gaussians": ring_gaussians(800),
        "points": cloud,
        "tracks": torch.stack([torch.arange(600), torch.arange(600) // 100], 1).int(),
    }
    return ViewerScene(**{**parts, **changes})


@pytest.fixture(scope="module")
def server() -> Iterator["viser.ViserServer"]:
    running = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    yield running
    running.stop()


@pytest.fixture
def viewer(server: "viser.ViserServer") -> Viewer:
    server.scene.reset()
    server.gui.reset()
    return build_viewer(server, ring_scene())


def fake_browser(aspect: float) -> SimpleNamespace:
    return SimpleNamespace(
        camera=SimpleNamespace(aspect=aspect), atomic=lambda: contextlib.nullcontext()
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"names": ("a",)}, "names must be one a camera = 6, got 1"),
        (
            {"registered": torch.ones(5, dtype=torch.bool), "thumbnails": None},
            "registered must be one a camera = 6",
        ),
        ({"tracks": torch.tensor([[600, 0]])}, "tracks must name points 0 to 599, got 600"),
        ({"cameras": None, "names": ()}, "thumbnails must be one a camera = 0, got 6"),
    ],
)
def test_counts_must_agree(changes: dict, text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        ring_scene(**changes)


def test_empty_scene_is_refused() -> None:
    with pytest.raises(InputError, match="no splats, points or cameras"):
        ViewerScene(title="nothing")


def test_scene_has_its_parts(viewer: Viewer) -> None:
    assert viewer.splats is not None
    assert viewer.cloud is not None
    assert sorted(viewer.frusta) == list(range(6))
    assert viewer.frusta[4].color != viewer.frusta[5].color
    assert viewer.frusta[4].color == viewer.frusta[0].color
    assert len(viewer.cloud.points) == 450  # a quarter is hidden at first
    assert not viewer.cloud.visible  # splats come first
    np.testing.assert_allclose(viewer.frame.up, [0, -1, 0], atol=0.05)


def test_feature_colours_take_the_place_of_the_photo_s(server: "viser.ViserServer") -> None:
    server.scene.reset()
    server.gui.reset()
    plain = ring_scene()
    assert plain.gaussians is not None
    assert plain.points is not None
    gray = dataclasses.replace(plain.gaussians, sh=torch.zeros(800, 1, 3))
    red = dataclasses.replace(plain.points, colors=torch.tensor([1.0, 0, 0]).expand(600, 3))
    viewer = build_viewer(server, ring_scene(feature_gaussians=gray, feature_points=red))
    assert viewer.colors.visible
    assert viewer.splats is not None
    before = viewer.splats.rgbs.copy()
    viewer.colors.value = "Features"
    viewer.recolor()
    assert (np.abs(viewer.splats.rgbs.astype(float) - 127.5) <= 1).all()
    assert viewer.cloud is not None
    assert (np.asarray(viewer.cloud.colors) == [255, 0, 0]).all()
    viewer.colors.value = "Photo"
    viewer.recolor()
    np.testing.assert_allclose(viewer.splats.rgbs, before)


def test_splats_keep_their_size_in_half_precision(server: "viser.ViserServer") -> None:
    """A scene in tiny units: 1e-4 squared would be nothing in half precision."""
    server.scene.reset()
    server.gui.reset()
    made = ring_gaussians(300, degree=0)
    tiny = type(made)(
        means=made.means * 1e-3, quats=made.quats, scales=made.scales * 1e-3,
        opacities=made.opacities, sh=made.sh,
    )  # fmt: skip
    viewer = build_viewer(server, ViewerScene(gaussians=tiny))
    assert viewer.splats is not None
    scale = viewer.splats.scale
    traces = np.trace(viewer.splats.covariances, axis1=1, axis2=2) * scale**2
    np.testing.assert_allclose(traces, tiny.scales.square().sum(1).numpy(), rtol=5e-3)
    np.testing.assert_allclose(viewer.splats.centers * scale, tiny.means.numpy(), rtol=1e-5)


def test_controls_choose_points(viewer: Viewer) -> None:
    assert viewer.cloud is not None
    viewer.confidence.value = 0
    viewer.refresh_points()
    assert len(viewer.cloud.points) == 600
    viewer.toggle_view(2)
    viewer.toggle_view(5)
    assert len(viewer.cloud.points) == 200
    assert viewer.chosen_names.value == "2../<b>x</b>/?.jpg, 5../<b>x</b>/?.jpg"
    viewer.toggle_view(2)
    viewer.toggle_view(5)
    assert len(viewer.cloud.points) == 600
    assert viewer.seen_by.value == "All views"


def test_standing_in_a_camera_gives_its_picture(viewer: Viewer) -> None:
    cameras = viewer.scene.cameras
    assert cameras is not None
    wide, narrow = fake_browser(2.0), fake_browser(0.5)
    viewer.stand(wide, 3)
    viewer.stand(narrow, 3)
    c2w = cameras.c2w[3].double().numpy()
    for browser in (wide, narrow):
        ahead = browser.camera.look_at - browser.camera.position
        np.testing.assert_allclose(browser.camera.position, c2w[:3, 3], atol=1e-6)
        np.testing.assert_allclose(ahead / np.linalg.norm(ahead), c2w[:3, 2], atol=1e-6)
        np.testing.assert_allclose(browser.camera.up_direction, -c2w[:3, 1], atol=1e-6)
    focal = 1.1 * 320
    assert wide.camera.fov == pytest.approx(2 * math.atan(120 / focal))
    across = math.tan(narrow.camera.fov / 2) * 0.5
    assert across == pytest.approx(160 / focal)
    assert not viewer.frusta[3].visible
    assert viewer.frusta[2].visible
    assert viewer.where.value == "3../<b>x</b>/?.jpg"
    viewer.stand(wide, 4)
    assert viewer.frusta[3].visible
    assert viewer.where.value.endswith("(held out)")


def test_unregistered_cameras_are_left_out(server: "viser.ViserServer") -> None:
    server.scene.reset()
    server.gui.reset()
    cameras = ring_cameras(6)
    cameras.w2c[1] = torch.nan
    registered = torch.tensor([True, False, True, True, False, True])
    viewer = build_viewer(server, ring_scene(cameras=cameras, registered=registered))
    assert sorted(viewer.frusta) == [0, 2, 3, 5]


@pytest.mark.parametrize("kind", ["splats", "points", "cameras"])
def test_each_part_may_come_alone(server: "viser.ViserServer", kind: str) -> None:
    server.scene.reset()
    server.gui.reset()
    scene = {
        "splats": ViewerScene(gaussians=ring_gaussians(50)),
        "points": ViewerScene(points=ring_cloud(50)),
        "cameras": ViewerScene(cameras=ring_cameras(2), names=("a", "b")),
    }[kind]
    viewer = build_viewer(server, scene)
    assert (viewer.splats is not None) == (kind == "splats")
    assert (viewer.cloud is not None) == (kind == "points")
    assert bool(viewer.frusta) == (kind == "cameras")
    assert viewer.show_points.value == (kind != "splats")


def test_no_view_with_a_pose(server: "viser.ViserServer") -> None:
    server.scene.reset()
    server.gui.reset()
    cameras: Cameras = ring_cameras(2)
    cameras.w2c[:] = torch.nan
    viewer = build_viewer(server, ViewerScene(cameras=cameras, names=("a", "b")))
    assert viewer.frusta == {}


def test_missing_viser_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sightline\[app\]"'):
        serve(ViewerScene(points=ring_cloud(5)))


def test_a_taken_port_is_an_input_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            serve(ViewerScene(points=ring_cloud(5)), port=port)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("256.1.1.1", None, "cannot listen on 256.1.1.1"),
        ("127.0.0.1", 70000, "--port must be 0 to 65535, got 70000"),
    ],
)
def test_a_wrong_address_is_an_input_error(host: str, port: int | None, text: str) -> None:
    with pytest.raises(InputError, match=text):
        serve(ViewerScene(points=ring_cloud(5)), host=host, port=port)


def test_view_serves_until_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []
    opened: list[str] = []

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sightline.app.viewer.time.sleep", interrupt)
    monkeypatch.setattr("sightline.app.viewer.webbrowser.open", opened.append)
    view(ViewerScene(points=ring_cloud(5)), on_ready=addresses.append)
    assert opened == addresses
    assert addresses[0].startswith("http://127.0.0.1:")
    port = int(addresses[0].rsplit(":", 1)[1])
    with pytest.raises(OSError, match=r".*"), socket.create_connection(("127.0.0.1", port), 2):
        pass
    assert threading.active_count() < 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


def wait_until(page: Page, is_true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        page.evaluate("new Promise((done) => setTimeout(done, 100))")


@pytest.mark.browser
def test_viewer_in_a_browser(
    browser: Browser, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with browser.page() as page:
        page.resize(900, 600)
        page.goto(f"http://127.0.0.1:{viewer.server.get_port()}")
        wait_until(page, lambda: len(viewer.server.get_clients()) == 1)
        viewer.show_photos.value = False
        # Left of the control panel: the scene and nothing else.
        wait_until(page, lambda: page.screenshot()[:, 300:550].std() > 15)
        client = next(iter(viewer.server.get_clients().values()))
        page.wait_for("document.querySelector('canvas') !== null")
        before = client.camera.position.copy()

        # A click on a camera leads there.
        camera = client.camera
        axes = viser.transforms.SO3(camera.wxyz).as_matrix()
        cameras = viewer.scene.cameras
        assert cameras is not None
        target = None
        for index in viewer.frusta:
            c2w = cameras.c2w[index].double().numpy()
            depth = 0.8 * viewer.frame.camera_size
            local = axes.T @ (c2w[:3, 3] + depth * c2w[:3, 2] - before)
            focal = 300 / math.tan(camera.fov / 2)
            spot = np.array([450, 300]) + focal * local[:2] / local[2]
            if local[2] > 0 and 320 < spot[0] < 540 and 60 < spot[1] < 540:
                target = (index, spot)
        assert target is not None
        page.mouse("mouseMoved", *target[1])
        page.evaluate("new Promise((done) => setTimeout(done, 300))")
        page.click(*target[1])
        wait_until(page, lambda: viewer.where.value.startswith(f"{target[0]}.."))
        wait_until(page, lambda: not np.allclose(client.camera.position, before))

        # The picture that is offered for saving is the one on the screen, as soon as the page has
        # flown to the camera and sorted the splats for it: on a busy machine that takes seconds.
        def saved_equals_screen() -> bool:
            saved: list[tuple[str, bytes]] = []
            monkeypatch.setattr(client, "send_file_download", lambda *file: saved.append(file))
            worker = threading.Thread(target=viewer.save_picture, args=(client,))
            worker.start()
            wait_until(page, lambda: not worker.is_alive())
            ((name, data),) = saved
            assert name == "scene.png"
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == (900, 600)
                pixels = np.asarray(image.convert("RGB"))
            difference = pixels[200:, :550].astype(int) - page.screenshot()[200:, :550]
            return bool(np.abs(difference).mean() < 8)

        wait_until(page, saved_equals_screen)

        # viser itself logs this one for any splats, since it draws them without positions.
        assert [e for e in page.errors if "computeBoundingSphere" not in e] == []
        assert page.external_requests() == []
