"""The cloud that a scene's probes start from: a point a training pixel, cameras, test poses, masks."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, transform_cameras, transform_points
from sightline.geometry.camera import unproject_depth
from sightline.geometry.pose import camera_centers, invert_se3
from sightline.probing.frames import lift_intrinsics
from sightline.probing.protocols import Protocol
from sightline.probing.registration import find_similarity, register_poses, require_one_focal
from sightline.probing.scenes import ProbeScene
from sightline.probing.start import start_values
from sightline.probing.train import ProbeInput
from sightline.probing.visibility import lay_out_masks, shift_pixels, visible_pixels
from sightline.protocols import GeometryEstimator, Progress
from sightline.reconstruction import create_estimator
from sightline.reconstruction.pairwise.solve import Solution
from sightline.splatting import default_config, optimize_splats, render_gaussians
from sightline.types import Cameras, PointCloud, Reconstruction, TensorStruct, Views

_SOLID = 0.5
"""Expected depth means something where splats cover more than this."""
KNOWN = ("depth", "given")
"""Methods that take the cameras that came with the scene."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cloud(TensorStruct):
    """Geometry of a scene; the same for all features, modes and seeds."""

    points: Float[Tensor, "V h w 3"]
    """Of the training pixels, in the world; anything where ``valid`` is false."""
    valid: Bool[Tensor, "V h w"]
    train: Cameras
    """At the size of the rendered pictures."""
    test: Cameras
    masks: Float[Tensor, "T H W"]
    """1 where a test pixel counts."""
    unit: float
    """Length of the source's unit in the cloud's."""
    method: str
    clean: Float[Tensor, "V h w 3"] | None = None
    """Where the points truly are, when ``points`` have noise."""


def choose_method(scene: ProbeScene, method: str) -> str:
    """Return what ``auto`` stands for: measured depth, else given cameras.

    Raises:
        InputError: If the scene has neither, or lacks what the method needs.
    """
    if method == "auto":
        if scene.cameras is None:
            raise InputError(
                f"{scene.id} has no cameras: name its geometry, one of colmap, dust3r, mast3r, vggt"
            )
        return "depth" if scene.depth is not None else "given"
    if method in KNOWN and scene.cameras is None:
        raise InputError(f"{scene.id} has no cameras for geometry {method}; use colmap or vggt")
    if method == "depth" and scene.depth is None:
        raise InputError(f"{scene.id} has no depth for geometry depth; use given, colmap or vggt")
    return method


def make_cloud(
    scene: ProbeScene,
    method: str,
    protocol: Protocol,
    *,
    estimator: GeometryEstimator | None = None,
    options: Mapping[str, Any] | None = None,
    noise: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Cloud:
    """Find the points of all training pixels, test poses and masks.

    Args:
        scene: Its pictures.
        method: ``depth`` (measured depth and given cameras), ``given`` (given cameras; depth is
            the expected depth of splats that are fitted to the training views only), ``auto``, or
            a geometry estimator.
        protocol: Quirks, tolerance and units.
        estimator: Use this object instead of building one by name.
        options: Of the estimator, such as ``checkpoint``.
        noise: Standard deviation of noise on the points, in the source's units, drawn from ``seed``.
        seed: Of the noise and of fitted splats.
        device: Where networks run.
        progress: Passed on.

    Raises:
        InputError: If the scene lacks what the method needs, or nothing is valid.
    """
    method = choose_method(scene, method)
    if method in KNOWN:
        found = _from_cameras(scene, method, protocol, seed, device, progress)
    else:
        estimator = estimator or _estimator(method, protocol, dict(options or {}), device)
        found = _from_estimator(scene, estimator, method, protocol)
    if not bool(found.valid.any()):
        raise InputError(f"{scene.id}: geometry {method} left no valid training pixel")
    if noise:
        found = _with_noise(found, noise, seed)
    return _in_unit_world(found) if protocol.unit_world else found


def _with_noise(cloud: Cloud, noise: float, seed: int) -> Cloud:
    """Move the known points, drawn in their order."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(int(cloud.valid.sum()), 3, generator=generator)
    points = cloud.points.clone()
    points[cloud.valid] += noise * drawn
    return dataclasses.replace(cloud, points=points, clean=cloud.points)


def _estimator(
    method: str, protocol: Protocol, options: dict[str, Any], device: str
) -> GeometryEstimator:
    estimator = create_estimator(method, **options)
    known = {item.name for item in dataclasses.fields(estimator)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {"device": device, "square_ok": True}
    if protocol.shared_focal:
        settings |= _PUBLISHED.get(method, {})
    # Quirk Q3: the reference's test for MASt3R's depth refinement is never true.
    settings["optimize_depth"] = not protocol.quirks.mast3r_without_depth
    chosen = {k: v for k, v in settings.items() if k in known and k not in options}
    return dataclasses.replace(estimator, **chosen)  # type: ignore[type-var]


_PUBLISHED: dict[str, dict[str, Any]] = {
    "dust3r": {
        "raw": True,
        "graph": "complete",
        "aligner": "cloud",
        "schedule": "linear",
        "shared_focal": True,
    },
    "mast3r": {
        "raw": True,
        "graph": "complete",
        "coarse": (500, 0.07, 1.5),
        "fine": (200, 0.014, 0.5),
        "shared_intrinsics": True,
    },
}
"""What the reference sets: whole pixels, every pair, its own numbers of steps."""


def _from_cameras(
    scene: ProbeScene,
    method: str,
    protocol: Protocol,
    seed: int,
    device: str,
    progress: Progress | None,
) -> Cloud:
    assert scene.cameras is not None
    cameras = scene.cameras
    if method == "depth":
        assert scene.depth is not None
        depth = scene.depth.float()
    else:
        depth = _splatted_depth(scene, protocol, seed, device, progress)
    train = cameras.select(list(range(scene.num_train)))
    test = cameras.select(list(range(scene.num_train, len(scene))))
    points = unproject_depth(depth[: scene.num_train].double(), train)
    counted = (test, train)
    if protocol.quirks.absolute_tolerance:
        counted = tuple(shift_pixels(cameras, -0.5) for cameras in counted)
    masks = visible_pixels(
        depth[scene.num_train :], counted[0], depth[: scene.num_train], counted[1], protocol
    )
    return _assemble(scene, points, train, test, masks, method, protocol)


def _splatted_depth(
    scene: ProbeScene, protocol: Protocol, seed: int, device: str, progress: Progress | None
) -> Float[Tensor, "V h w"]:
    """Return the expected depth of all views, from splats fitted to the training views only."""
    assert scene.cameras is not None
    height, width = scene.frame.working
    count = scene.num_train
    config = default_config(
        device, count, height, width, protocol.depth_steps, exposure="none", sh_degree=1
    )
    train = list(range(count))
    views = _views(scene, train)
    views = dataclasses.replace(views, cameras=scene.cameras.select(train).map(lambda t: t.float()))
    fitted = optimize_splats(
        views, scene.cloud, train, config=config, seed=seed, device=device, progress=progress
    )
    cameras = scene.cameras.map(lambda t: t.float().to(device))
    seen = render_gaussians(fitted.gaussians, cameras)
    assert seen.depth is not None
    return torch.where(seen.alpha > _SOLID, seen.depth, 0.0).cpu()


def _from_estimator(
    scene: ProbeScene, estimator: GeometryEstimator, method: str, protocol: Protocol
) -> Cloud:
    """Run on the training views for the cloud, then on all views for test poses and depth."""
    count = scene.num_train
    first = _dense(estimator.estimate(_views(scene, list(range(count)))), scene, method, count)
    train = first.cameras
    test = train.select([0] * scene.num_test)
    masks = torch.zeros(scene.num_test, *scene.frame.working, dtype=torch.bool)
    if scene.num_test:
        require_one_focal(train.K, protocol)
        second = estimator
        if protocol.shared_focal and getattr(estimator, "shared_focal", False):
            focal = float(train.K[:, [0, 1], [0, 1]].mean())
            second = dataclasses.replace(estimator, known_focal=focal)  # type: ignore[type-var]
        again = second.estimate(_views(scene, list(range(len(scene)))))
        both = _dense(again, scene, method, len(scene))
        similarity = find_similarity(both.points[:count], first.points, first.known)
        seen, held = (both.cameras.select(list(part)) for part in _parts(scene))
        depth = torch.where(both.known, both.depth, 0.0)
        masks = visible_pixels(depth[count:], held, depth[:count], seen, protocol)
        # The second run sees lenses a little longer or shorter than the first, all alike.
        ratio = (train.K[:, 0, 0] / seen.K[:, 0, 0]).median()
        K = held.K.clone()
        K[:, [0, 1], [0, 1]] *= ratio
        test = dataclasses.replace(test, w2c=register_poses(held.w2c, similarity, protocol), K=K)
    points = torch.where(first.valid[..., None], first.points, torch.nan)
    return _assemble(scene, points, train, test, masks, method, protocol)


def _parts(scene: ProbeScene) -> tuple[range, range]:
    return range(scene.num_train), range(scene.num_train, len(scene))


class _Dense(NamedTuple):
    """What an estimator found, at the working size.

    Attributes:
        points: In its world.
        known: Where there is a point.
        valid: Where the estimator trusts it.
        depth: z-depth.
        cameras: In working pixels.
    """

    points: Float[Tensor, "V h w 3"]
    known: Bool[Tensor, "V h w"]
    valid: Bool[Tensor, "V h w"]
    depth: Float[Tensor, "V h w"]
    cameras: Cameras


def _dense(found: Reconstruction, scene: ProbeScene, method: str, count: int) -> _Dense:
    if not bool(found.registered.all()):
        names = [
            n for n, known in zip(scene.names, found.registered.tolist(), strict=False) if not known
        ]
        raise InputError(
            f"{scene.id}: geometry {method} found no pose for {len(names)} of {count} views "
            f"({', '.join(names[:3])}); choose views that overlap more"
        )
    if found.depth is None:
        raise InputError(
            f"geometry {method} returned no depth for {scene.id}; for cameras alone use given"
        )
    own = found.raw
    if isinstance(own, Solution) and all(d.shape == scene.frame.working for d in own.depth):
        return _of_aligner(own, scene)
    cameras = found.cameras.map(lambda t: t.double())
    points = found.points
    if points is None:
        points = unproject_depth(found.depth.double(), cameras)
    valid = found.depth > 0 if found.valid is None else found.valid
    valid = valid & points.isfinite().all(-1)
    return _Dense(points.double(), valid, valid, found.depth, cameras)


def _of_aligner(solution: Solution, scene: ProbeScene) -> _Dense:
    """Take the aligner's own world, its unit, and its depth of all pixels, as the reference does.

    The reference counts pixels from whole numbers, with the principal point at half the size.
    """
    height, width = scene.frame.working
    depth = torch.stack(solution.depth).double()
    w2c = invert_se3(solution.poses.double())
    cameras = Cameras(w2c=w2c, K=solution.K.double(), height=height, width=width)
    points = unproject_depth(depth, shift_pixels(cameras, 0.5))
    known = points.isfinite().all(-1)
    valid = known & (torch.stack(solution.confidence) > 0)
    return _Dense(points, known, valid, depth, cameras)


def _assemble(
    scene: ProbeScene,
    points: Float[Tensor, "V h w 3"],
    train: Cameras,
    test: Cameras,
    masks: Bool[Tensor, "T h w"],
    method: str,
    protocol: Protocol,
) -> Cloud:
    frame = scene.frame
    height, width = frame.target
    shared = protocol.shared_focal and method not in KNOWN
    K = train.K.double()
    if protocol.quirks.one_focal_ratio and method in KNOWN:
        K = shift_pixels(train, -0.5).K.double()  # the reference counts from whole numbers
    own = lift_intrinsics(K, frame, protocol, shared=shared)
    others = own[:0]
    if len(test):
        # In the reference the first training camera's lens serves every test view.
        others = (
            own[:1].expand(len(test), 3, 3).clone()
            if protocol.shared_focal
            else lift_intrinsics(test.K.double(), frame, protocol)
        )
    # Masks are in pixels of what the working picture shows, or is taken to show.
    kept = frame.original if protocol.quirks.stretched_pictures else frame.target
    laid = lay_out_masks(
        _spread_masks(masks, scene), scene.names[scene.num_train :], kept, frame.target, protocol
    )
    valid = points.isfinite().all(-1)
    return Cloud(
        points=torch.where(valid[..., None], points, 0.0).float(),
        valid=valid,
        train=Cameras(w2c=train.w2c.double(), K=own, height=height, width=width),
        test=Cameras(w2c=test.w2c.double(), K=others, height=height, width=width),
        masks=laid,
        unit=1.0,
        method=method,
    )


def _spread_masks(
    masks: Bool[Tensor, "T h w"], scene: ProbeScene
) -> Bool[Tensor, "T H W"] | Bool[Tensor, "T h w"]:
    """Bring masks of cropped working pictures to the rendered ones; margins do not count."""
    frame = scene.frame
    if frame.kept == frame.window:
        return masks
    move = (frame.working_from_original() @ torch.linalg.inv(frame.target_from_original())).tolist()
    height, width = frame.target
    x = ((torch.arange(width) + 0.5) * move[0][0] + move[0][2]).floor().long()
    y = ((torch.arange(height) + 0.5) * move[1][1] + move[1][2]).floor().long()
    inside_x, inside_y = (x >= 0) & (x < frame.working[1]), (y >= 0) & (y < frame.working[0])
    found = masks[:, y.clamp(0, frame.working[0] - 1)[:, None], x.clamp(0, frame.working[1] - 1)]
    return found & (inside_y[:, None] & inside_x)


def _in_unit_world(cloud: Cloud) -> Cloud:
    """Move the mean training camera to the origin and make the median depth of points 1."""
    centers = camera_centers(cloud.train.w2c)
    mean = centers.mean(0)
    distances = []
    for view in range(len(cloud.train)):
        forward = cloud.train.w2c[view, 2, :3]
        known = cloud.points[view][cloud.valid[view]].double()
        distances.append((known - centers[view]) @ forward)
    scale = 1 / torch.cat(distances).median().clamp(min=1e-9)
    move = Similarity(
        scale=scale, rotation=torch.eye(3, dtype=torch.float64), translation=-scale * mean
    )
    return dataclasses.replace(
        cloud,
        points=transform_points(cloud.points.double(), move).float(),
        clean=(
            None if cloud.clean is None else transform_points(cloud.clean.double(), move).float()
        ),
        train=transform_cameras(cloud.train, move),
        test=transform_cameras(cloud.test, move) if len(cloud.test) else cloud.test,
        unit=float(scale),
    )


def probe_input(cloud: Cloud, scene: ProbeScene) -> ProbeInput:
    """Return what training starts from; scales come from the clean points where there is noise."""
    rows = cloud.valid.flatten().nonzero()[:, 0]
    colors = scene.working[: scene.num_train].permute(0, 2, 3, 1).reshape(-1, 3)[rows]
    start = start_values(
        cloud.points.reshape(-1, 3)[rows],
        colors,
        None if cloud.clean is None else cloud.clean.reshape(-1, 3)[rows],
    )
    return ProbeInput(
        start=start,
        pixels=rows,
        cameras=cloud.train.map(lambda t: t.float()),
        photos=scene.targets[: scene.num_train],
    )


def colored_points(cloud: Cloud, scene: ProbeScene) -> PointCloud:
    """Return the cloud with its colours."""
    colors = scene.working[: scene.num_train].permute(0, 2, 3, 1)[cloud.valid].float() / 255
    return PointCloud(points=cloud.points[cloud.valid], colors=colors)


def _views(scene: ProbeScene, index: list[int]) -> Views:
    """Return working pictures as views of their own, of which nothing else is known."""
    height, width = scene.frame.working
    count = len(index)
    return Views(
        images=scene.working[index],
        names=tuple(scene.names[i] for i in index),
        from_original=torch.eye(3).expand(count, 3, 3).clone(),
        sizes=torch.tensor([[height, width]]).expand(count, 2).clone(),
    )
