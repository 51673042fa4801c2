"""The interactive viewer of a scene in the browser, served by viser from this machine.

`build_viewer` fills a server with a scene and its controls; `view` starts a server and waits. The
self-contained page of `sightline.report.scene_html` needs no server; this one takes larger scenes
and filters points by the views that saw them.
"""

import contextlib
import logging
import math
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from sightline.app.points import PointChoice, ViewerPoints, prepare_points
from sightline.errors import InputError, MissingExtraError, ShapeError
from sightline.geometry.rotation import matrix_to_quat, quat_to_matrix
from sightline.geometry.sh import sh0_to_rgb
from sightline.report.framing import SceneFrame, frame_by_cameras, frame_by_points, posed_views
from sightline.report.scene_data import drawable_splats
from sightline.types import Cameras, Gaussians, PointCloud

if TYPE_CHECKING:
    import viser

log = logging.getLogger(__name__)

ACCENT = (92, 195, 224)
HELD_OUT = (255, 157, 87)
_BACKGROUND = (15, 18, 20)
_PORT = 8080
_MOST_SPLATS = 2_000_000
_MOST_FRUSTA = 1000
_ALL_VIEWS = "All views"
_CHOSEN_VIEWS = "Chosen views"
_PHOTO, _FEATURES = "Photo", "Features"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewerScene:
    """What the viewer shows. Splats, points and cameras may each be absent, but not all."""

    title: str = "scene"
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    """One a camera."""
    registered: Bool[Tensor, " V"] | None = None
    """False for cameras without a pose; None when all have one."""
    test: tuple[int, ...] = ()
    """Indices of held-out views."""
    thumbnails: UInt8[Tensor, "V 3 h w"] | None = None
    gaussians: Gaussians | None = None
    points: PointCloud | None = None
    """Its confidence, if any, drives a slider."""
    feature_gaussians: Gaussians | None = None
    """The same splats in the colours of their features."""
    feature_points: PointCloud | None = None
    """The same points in the colours of their features."""
    tracks: Int[Tensor, "T 2"] | None = None
    """Rows of (point, view): which views saw which points."""

    def __post_init__(self) -> None:
        """Refuse counts that disagree and scenes with nothing in them."""
        count = 0 if self.cameras is None else len(self.cameras)
        given = {"names": len(self.names)}
        if self.registered is not None:
            given["registered"] = len(self.registered)
        if self.thumbnails is not None:
            given["thumbnails"] = len(self.thumbnails)
        for what, number in given.items():
            if number != count:
                raise ShapeError(
                    f"{what} must be one a camera = {count}, got {number}; pass them in view order"
                )
        if self.tracks is not None and len(self.tracks):
            points = 0 if self.points is None else len(self.points.points)
            if int(self.tracks[:, 0].min()) < 0 or int(self.tracks[:, 0].max()) >= points:
                raise ShapeError(
                    f"tracks must name points 0 to {points - 1}, got "
                    f"{int(self.tracks[:, 0].max())}; pass the points that they belong to"
                )
        if self.gaussians is None and self.points is None and count == 0:
            raise InputError(
                "the scene has no splats, points or cameras to show; reconstruct it first"
            )


def view(
    scene: ViewerScene,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = True,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a scene until interrupted.

    Args:
        scene: What to show.
        host: Address to listen on. Everybody who reaches it sees the scene; the default is this
            machine only.
        port: None takes 8080 or the next free one.
        open_browser: Also open it in the default browser.
        on_ready: Called with the address once it answers.

    Raises:
        MissingExtraError: If viser is not installed.
        InputError: If nothing can listen on the address.
    """
    server = serve(scene, host, port)
    try:
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        address = f"http://{shown}:{server.get_port()}"
        log.info("the viewer answers at %s", address)
        if on_ready is not None:
            on_ready(address)
        if open_browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    finally:
        server.stop()


def serve(
    scene: ViewerScene, host: str = "127.0.0.1", port: int | None = None
) -> "viser.ViserServer":
    """Start a server that shows a scene and return it; see `view` for arguments and errors."""
    try:
        import viser
    except ImportError as error:
        raise MissingExtraError(
            "the viewer", "viser", "app", "share the scene with: sightline export --to html"
        ) from error
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"--port must be 0 to 65535, got {port}; change it")
    # viser would go on searching for a port for ever where the address itself is wrong.
    try:
        with socket.create_server((host, port or 0)):
            pass
    except OSError as error:
        where = host if port is None else f"{host}:{port}"
        raise InputError(
            f"the viewer cannot listen on {where} ({error}); give another --host or --port"
        ) from error
    server = viser.ViserServer(
        host=host, port=_PORT if port is None else port, label=_plain(scene.title), verbose=False
    )
    build_viewer(server, scene)
    return server


def build_viewer(server: "viser.ViserServer", scene: ViewerScene) -> "Viewer":
    """Fill a server with a scene and its controls."""
    return Viewer(server, scene)


class Viewer:
    """The scene's parts and controls on one server; changes reach every connected browser."""

    def __init__(self, server: "viser.ViserServer", scene: ViewerScene) -> None:
        """Use `build_viewer`."""
        self.server = server
        self.scene = scene
        self.frame = _frame(scene)
        self.points: ViewerPoints | None = None
        self.splats: viser.GaussianSplatHandle | None = None
        self.cloud: viser.PointCloudHandle | None = None
        self.frusta: dict[int, viser.CameraFrustumHandle] = {}
        self.chosen: set[int] = set()
        self._standing = -1
        self._drawn: PointChoice | None = None
        self._lock = threading.Lock()

        server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, brand_color=ACCENT
        )
        server.scene.set_up_direction(self.frame.up.numpy())
        if scene.gaussians is not None and len(scene.gaussians):
            self._add_splats(scene.gaussians)
        self._prepare_points(scene.points)
        self._add_controls()
        self._add_frusta()
        self.refresh_points()
        self._aim_first_view()

    # What is shown

    def _prepare_points(self, cloud: PointCloud | None) -> None:
        if cloud is not None and len(cloud.points):
            self.points = prepare_points(cloud, self.scene.tracks)

    def recolor(self) -> None:
        """Show photo or feature colours, as the control says."""
        scene, by_features = self.scene, self.colors.value == _FEATURES
        gaussians = scene.feature_gaussians if by_features else scene.gaussians
        points = scene.feature_points if by_features else scene.points
        if gaussians is not None:
            self._add_splats(gaussians)
            self._show(self.splats, self.show_splats.value)
        with self._lock:
            self._prepare_points(points)
            self._drawn = None
        self.refresh_points()

    def _add_splats(self, gaussians: Gaussians) -> None:
        keep = torch.from_numpy(drawable_splats(gaussians, _MOST_SPLATS))
        if len(keep) == 0:
            return
        scales = gaussians.scales[keep].detach().float().cpu()
        # viser keeps covariances in half precision, which cannot hold small ones: the splats go
        # there enlarged to a typical size of 0.1, and are shown reduced.
        enlarge = 0.1 / max(float(scales.median()), 1e-12)
        axes = quat_to_matrix(gaussians.quats[keep].detach().float().cpu())
        axes = axes * (scales * enlarge)[:, None, :]
        covariances = (axes @ axes.mT).clamp(-6e4, 6e4)
        self.splats = self.server.scene.add_gaussian_splats(
            "/splats",
            centers=(gaussians.means[keep].detach().float().cpu() * enlarge).numpy(),
            covariances=covariances.numpy(),
            rgbs=sh0_to_rgb(gaussians.sh[keep, 0].detach().float().cpu()).clamp(0, 1).numpy(),
            opacities=gaussians.opacities[keep, None].detach().float().cpu().numpy(),
            scale=1 / enlarge,
        )

    def refresh_points(self) -> None:
        """Send the points that the controls ask for, unless they are there already."""
        if self.points is None:
            return
        # Sliders call this from many threads; whoever comes last finds its work done.
        with self._lock:
            choice = self.choice()
            if choice == self._drawn:
                return
            self._drawn = choice
            shown = self.points.select(choice)
            self.cloud = self.server.scene.add_point_cloud(
                "/points",
                points=self.points.positions[shown],
                colors=self.points.colors[shown],
                point_size=self._point_size(),
                point_shape="circle",
                point_shading="flat",
                precision="float32",
                visible=self.show_points.value,
            )

    def choice(self) -> PointChoice:
        """Return what the controls say about points."""
        only = self.seen_by is not None and self.seen_by.value == _CHOSEN_VIEWS
        return PointChoice(
            hidden_percent=0.0 if self.confidence is None else float(self.confidence.value),
            views=frozenset(self.chosen) if only else frozenset(),
            hides_black=self.hide_black.value,
            hides_white=self.hide_white.value,
        )

    def _point_size(self) -> float:
        return 0.0006 * self.frame.radius * float(self.point_size.value)

    def _add_frusta(self) -> None:
        cameras = self.scene.cameras
        if cameras is None:
            return
        shown = _posed(self.scene)
        for index in shown[:: -(-len(shown) // _MOST_FRUSTA) or 1]:
            c2w = cameras.c2w[index].double()
            handle = self.server.scene.add_camera_frustum(
                f"/cameras/{index}",  # never the file name: it may contain anything
                fov=_vertical_fov(cameras, index),
                aspect=_aspect(cameras, index),
                scale=self._frustum_scale(index),
                thickness=1.5,
                thickness_units="screen",
                color=HELD_OUT if index in self.scene.test else ACCENT,
                image=self._thumbnail(index),
                variant=self._frustum_variant(),
                format="jpeg",
                wxyz=matrix_to_quat(c2w[:3, :3]).numpy(),
                position=c2w[:3, 3].numpy(),
                cast_shadow=False,
                receive_shadow=False,
                visible=self.show_cameras.value,
            )
            self.frusta[index] = handle
            handle.on_click(lambda event, index=index: self.stand(event.client, index))
            handle.on_click(modifier="cmd/ctrl")(lambda event, index=index: self.toggle_view(index))

    def _frustum_scale(self, index: int) -> float:
        assert self.scene.cameras is not None
        depth = 0.8 * self.frame.camera_size * 2 ** float(self.camera_size.value)
        # viser draws pyramids of one volume, scale^3, whatever their angles.
        half = math.tan(_vertical_fov(self.scene.cameras, index) / 2)
        return depth * (half * half * _aspect(self.scene.cameras, index) / 3) ** (1 / 3)

    def _frustum_variant(self) -> Literal["wireframe", "filled"]:
        # Clicks need a face to hit: the photo, or else the pyramid's own.
        has_photos = self.scene.thumbnails is not None and self.show_photos.value
        return "wireframe" if has_photos else "filled"

    def _thumbnail(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        if self.scene.thumbnails is None or not self.show_photos.value:
            return None
        return self.scene.thumbnails[index].permute(1, 2, 0).contiguous().cpu().numpy()

    # Controls

    def _add_controls(self) -> None:
        gui, scene = self.server.gui, self.scene
        has_cameras = bool(_posed(scene))
        self.show_splats = gui.add_checkbox("Splats", True, visible=self.splats is not None)
        # Splats and points would hide each other: the finer of the two comes first.
        self.show_points = gui.add_checkbox(
            "Points", self.splats is None, visible=self.points is not None
        )
        painted = (scene.feature_gaussians, scene.feature_points)
        self.colors = gui.add_dropdown(
            "Colours",
            (_PHOTO, _FEATURES),
            visible=any(part is not None for part in painted),
            hint="As photographed, or the first three components of a backbone's features",
        )
        self.show_cameras = gui.add_checkbox("Cameras", True, visible=has_cameras)
        self.show_photos = gui.add_checkbox(
            "Photos on cameras", True, visible=has_cameras and scene.thumbnails is not None
        )
        with gui.add_folder("Points", visible=self.points is not None):
            has_rank = self.points is not None and self.points.rank is not None
            self.point_size = gui.add_slider("Size", 1.0, 20.0, 0.5, 5.0)
            self.confidence = gui.add_slider(
                "Hide least confident %",
                0,
                99,
                1,
                25 if has_rank else 0,
                visible=has_rank,
                hint="Hides this share of the points, the least confident first",
            )
            has_tracks = has_cameras and self.points is not None and self.points.tracks is not None
            self.seen_by = gui.add_dropdown(
                "Seen by",
                (_ALL_VIEWS, _CHOSEN_VIEWS),
                visible=has_tracks,
                hint="Ctrl-click on cameras to choose views",
            )
            self.chosen_names = gui.add_text("Chosen", "none", disabled=True, visible=has_tracks)
            self.hide_black = gui.add_checkbox("Hide near-black", False)
            self.hide_white = gui.add_checkbox("Hide near-white", False)
        with gui.add_folder("Cameras", visible=has_cameras):
            self.camera_size = gui.add_slider("Size", -3.0, 3.0, 0.1, 0.0)
            self.where = gui.add_text("Standing at", "", disabled=True)
            self.walk = gui.add_button_group("Stand at", ("Previous", "Next"))
        self.background = gui.add_rgb("Background", _BACKGROUND)
        self.reset = gui.add_button("Reset view")
        self.picture = gui.add_button("Save picture")
        self._paint_background()
        self._connect()

    def _connect(self) -> None:
        for handle in (self.confidence, self.seen_by, self.hide_black, self.hide_white):
            handle.on_update(lambda _: self.refresh_points())
        self.colors.on_update(lambda _: self.recolor())
        self.show_splats.on_update(lambda _: self._show(self.splats, self.show_splats.value))
        self.show_points.on_update(lambda _: self._show(self.cloud, self.show_points.value))
        self.point_size.on_update(lambda _: self._resize_points())
        self.show_cameras.on_update(lambda _: self._update_frusta())
        self.show_photos.on_update(lambda _: self._update_frusta())
        self.camera_size.on_update(lambda _: self._update_frusta())
        self.background.on_update(lambda _: self._paint_background())
        self.walk.on_click(
            lambda event: self._walk(event.client, 1 if self.walk.value == "Next" else -1)
        )
        self.reset.on_click(lambda event: self._reset(event.client))
        self.picture.on_click(lambda event: self.save_picture(event.client))

    def _show(
        self, handle: "viser.GaussianSplatHandle | viser.PointCloudHandle | None", on: bool
    ) -> None:
        if handle is not None:
            handle.visible = on

    def _resize_points(self) -> None:
        if self.cloud is not None:
            self.cloud.point_size = self._point_size()

    def _update_frusta(self) -> None:
        with self.server.atomic():
            for index, handle in self.frusta.items():
                handle.visible = self.show_cameras.value and index != self._standing
                handle.scale = self._frustum_scale(index)
                if (handle.image is not None) != self.show_photos.value:
                    handle.image = self._thumbnail(index)
                handle.variant = self._frustum_variant()

    def _paint_background(self) -> None:
        color = np.array(self.background.value, np.uint8).reshape(1, 1, 3)
        self.server.scene.set_background_image(color, format="png")

    def toggle_view(self, index: int) -> None:
        """Add a view to those whose points are shown, or take it out."""
        self.chosen ^= {index}
        names = [_plain(self.scene.names[i]) for i in sorted(self.chosen)]
        self.chosen_names.value = ", ".join(names) or "none"
        if self.scene.tracks is not None:
            self.seen_by.value = _CHOSEN_VIEWS if self.chosen else _ALL_VIEWS
        self.refresh_points()

    # Where one stands

    def stand(self, client: "viser.ClientHandle | None", index: int) -> None:
        """Put a browser, or all of them, into a camera, so that its whole picture is in sight."""
        cameras = self.scene.cameras
        assert cameras is not None
        self._standing = index
        held = " (held out)" if index in self.scene.test else ""
        self.where.value = _plain(self.scene.names[index]) + held
        self._update_frusta()
        c2w = cameras.c2w[index].double().cpu().numpy()
        ahead = float((self.frame.focus.numpy() - c2w[:3, 3]) @ c2w[:3, 2])
        ahead = ahead if ahead > 0.02 * self.frame.radius else self.frame.radius
        fov, aspect = _vertical_fov(cameras, index), _aspect(cameras, index)
        for browser in self._browsers(client):
            with browser.atomic():
                # A window narrower than the picture needs a wider view from top to bottom.
                wider = max(1.0, aspect / browser.camera.aspect)
                browser.camera.fov = 2 * math.atan(math.tan(fov / 2) * wider)
                browser.camera.position = c2w[:3, 3]
                browser.camera.look_at = c2w[:3, 3] + ahead * c2w[:3, 2]
                browser.camera.up_direction = -c2w[:3, 1]

    def _walk(self, client: "viser.ClientHandle | None", by: int) -> None:
        order = sorted(self.frusta)
        if not order:
            return
        at = order.index(self._standing) + by if self._standing in self.frusta else min(by, 0)
        self.stand(client, order[at % len(order)])

    def _reset(self, client: "viser.ClientHandle | None") -> None:
        self._standing = -1
        self.where.value = ""
        self._update_frusta()
        first = self.server.initial_camera
        for browser in self._browsers(client):
            with browser.atomic():
                browser.camera.fov = first.fov
                browser.camera.position = first.position
                browser.camera.look_at = first.look_at
                browser.camera.up_direction = self.frame.up.numpy()

    def _browsers(self, client: "viser.ClientHandle | None") -> "Sequence[viser.ClientHandle]":
        return [client] if client is not None else list(self.server.get_clients().values())

    def save_picture(self, client: "viser.ClientHandle | None") -> None:
        """Offer a browser, or all of them, what they see as a PNG file."""
        import cv2

        for browser in self._browsers(client):
            size = (browser.camera.image_height, browser.camera.image_width)
            pixels = browser.get_render(*size, transport_format="png")
            done, data = cv2.imencode(".png", pixels[..., 2::-1])
            assert done
            browser.send_file_download("scene.png", data.tobytes())

    def _aim_first_view(self) -> None:
        first, frame = self.server.initial_camera, self.frame
        focus, up = frame.focus.numpy(), frame.up.numpy()
        views = _posed(self.scene)
        if self.scene.cameras is not None and views:
            index = views[frame.first]
            c2w = self.scene.cameras.c2w[index].double().cpu().numpy()
            # A little behind the most typical camera, so that it and its neighbours are seen.
            eye = c2w[:3, 3] - 0.35 * frame.radius * c2w[:3, 2] + 0.12 * frame.radius * up
            first.fov = max(_vertical_fov(self.scene.cameras, index), 0.7)
        else:
            side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
            eye = focus + frame.radius * (2.0 * side / np.linalg.norm(side) + 0.8 * up)
            first.fov = 0.9
        first.position, first.look_at, first.up = eye, focus, up
        first.near, first.far = 0.002 * frame.radius, 1000 * frame.radius


def _posed(scene: ViewerScene) -> list[int]:
    views = posed_views(scene.cameras)
    return views if scene.registered is None else [i for i in views if scene.registered[i]]


def _frame(scene: ViewerScene) -> SceneFrame:
    views = _posed(scene)
    if scene.cameras is not None and views:
        return frame_by_cameras(scene.cameras.select(views))
    if scene.gaussians is not None and len(scene.gaussians):
        return frame_by_points(scene.gaussians.means)
    return frame_by_points(torch.zeros(0, 3) if scene.points is None else scene.points.points)


def _vertical_fov(cameras: Cameras, index: int) -> float:
    return 2 * math.atan(cameras.height / 2 / float(cameras.K[index, 1, 1]))


def _aspect(cameras: Cameras, index: int) -> float:
    # By the angles, so that pixels that are not square come out right.
    ratio = float(cameras.K[index, 1, 1]) / float(cameras.K[index, 0, 0])
    return cameras.width / cameras.height * ratio


def _plain(text: str) -> str:
    # Names that are not UTF-8 hold lone surrogates, which cannot be sent.
    return text.encode("utf-8", "replace").decode("utf-8")
