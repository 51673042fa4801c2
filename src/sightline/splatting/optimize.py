"""Fitting splats to photos: one scene, one call, on a CPU or a GPU."""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sightline.errors import Cancelled, CheckpointError, InputError, ShapeError
from sightline.protocols import Progress
from sightline.splatting.config import OptimizeConfig
from sightline.splatting.dense import match_densely, thin_points
from sightline.splatting.density import Seen, make_density_control
from sightline.splatting.exposure import Exposure, ExposureModel, apply_exposure
from sightline.splatting.initialize import initialize_params, random_points, scene_extent
from sightline.splatting.losses import photometric_loss
from sightline.splatting.optimizer import RowAdam
from sightline.splatting.params import GaussianParams
from sightline.splatting.poses import PoseRefinement
from sightline.splatting.rasterize import rasterization
from sightline.splatting.training_state import read_state, write_state
from sightline.types import Cameras, Gaussians, PointCloud, SparsePoints, TensorStruct, Views

OnStep = Callable[[dict[str, float]], None]
"""Called now and then with ``step, loss, psnr, splats``."""

_RECORDS = 200
"""Points of the curves in ``history``."""
_SAVE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizeResult(TensorStruct):
    """Fitted splats and what was fitted with them."""

    gaussians: Gaussians
    cameras: Cameras
    """All views; those of training views refined if that was asked for."""
    exposure: Exposure | None
    """None when no exposure was modelled."""
    history: dict[str, list[float]]
    """``step``, ``loss``, ``psnr`` (of that step's training picture) and ``splats``."""
    config: OptimizeConfig


def optimize_splats(
    views: Views,
    points: SparsePoints | PointCloud | None,
    train: Sequence[int],
    *,
    config: OptimizeConfig,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> OptimizeResult:
    """Fit splats to the training views of a scene.

    Args:
        views: Pictures with cameras; uint8 pictures stay so in memory. Masked pixels count for
            nothing.
        points: World points to start from, if any are known.
        train: Indices of the views to learn from; nothing else of ``views`` is looked at but the
            cameras, for the exposure of the other views.
        config: Everything that decides the result; see ``default_config``.
        checkpoint: File to continue from, if it is there, and to save to, about every 30 seconds
            and when cancelled. The caller removes it once the result is safe.
        progress: Called as ``progress("splats", done, total)``, two thirds of a percent at a time
            or finer; may raise ``Cancelled``.
        on_step: Gets live numbers.
        seed: Of everything random.
        device: Where to work.

    Returns:
        The splats. On a CPU the same inputs give the same bytes, with any number of threads and
        however often the run was interrupted.

    Raises:
        InputError: If there are no cameras, no training views, or views without a pose.
        ShapeError: If the cameras' size is not the pictures'.
        CheckpointError: If ``checkpoint`` is unreadable or of other inputs.
        OutputError: If ``checkpoint`` cannot be written.
        Cancelled: If ``progress`` raised it.
    """
    chosen = _checked(views, train)
    trainer = _Trainer(views, chosen, config, seed, torch.device(device))
    fingerprint = _fingerprint(views, points, chosen, config, seed) if checkpoint else ""
    if checkpoint is not None and checkpoint.is_file():
        trainer.restore(checkpoint, fingerprint)
    else:
        trainer.start(points, progress)
    saved = time.monotonic()
    every = max(1, config.steps // _RECORDS)
    while trainer.step < config.steps:
        record = trainer.step % every == 0 or trainer.step == config.steps - 1
        numbers = trainer.advance(record)
        if numbers is not None and on_step is not None:
            on_step(numbers)
        try:
            if progress is not None:
                progress("splats", float(trainer.step), float(config.steps))
        except Cancelled:
            if checkpoint is not None:
                trainer.save(checkpoint, fingerprint)
            raise
        # When the state is saved must not, and does not, change what comes out.
        if checkpoint is not None and time.monotonic() - saved > _SAVE_SECONDS:
            trainer.save(checkpoint, fingerprint)
            saved = time.monotonic()
    return trainer.result()


def _checked(views: Views, train: Sequence[int]) -> list[int]:
    if views.cameras is None:
        raise InputError("splats need cameras, got views without any; estimate them first")
    size = (views.images.shape[-2], views.images.shape[-1])
    if (views.cameras.height, views.cameras.width) != size:
        raise ShapeError(
            f"cameras must be for pictures of {size[0]} x {size[1]} pixels, got "
            f"{views.cameras.height} x {views.cameras.width}; resize them with resize_cameras"
        )
    chosen = sorted(int(i) for i in train)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= len(views):
        raise InputError(
            f"train must name at least one of the {len(views)} views, each once, got {chosen}"
        )
    lost = [i for i in chosen if not bool(torch.isfinite(views.cameras.w2c[i]).all())]
    if lost:
        raise InputError(
            f"training views must have poses, but {views.names[lost[0]]} has none; leave "
            "unregistered views out of train"
        )
    return chosen


class _Pictures:
    """Training pictures at the scales that the schedule asks for."""

    def __init__(self, views: Views, device: torch.device) -> None:
        self.views = views
        self.device = device
        self._scale = 1.0
        self._small: dict[int, tuple[Tensor, Tensor | None]] = {}

    def get(self, view: int, scale: float) -> tuple[Tensor, Tensor | None]:
        """Return a picture [3 H W] and its mask."""
        image = self.views.images[view]
        mask = None if self.views.masks is None else self.views.masks[view]
        if scale != 1:
            if scale != self._scale:
                self._scale, self._small = scale, {}
            if view not in self._small:
                self._small[view] = _shrink(image, mask, scale)
            image, mask = self._small[view]
        return image.to(self.device), None if mask is None else mask.to(self.device)


def _shrink(image: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor | None]:
    """Resize by area; a pixel of the small picture counts if all it covers counts."""
    size = (max(1, round(image.shape[2] * scale)), max(1, round(image.shape[1] * scale)))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    small = torch.from_numpy(cv2.resize(array, size, interpolation=cv2.INTER_AREA))
    if mask is None:
        return small.permute(2, 0, 1).contiguous(), None
    share = cv2.resize(mask.numpy().astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return small.permute(2, 0, 1).contiguous(), torch.from_numpy(share > 0.999)


class _Trainer:
    """The state of one run."""

    params: GaussianParams
    optimizer: RowAdam

    def __init__(
        self,
        views: Views,
        train: list[int],
        config: OptimizeConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        assert views.cameras is not None
        self.views, self.train, self.config, self.seed, self.device = (
            views, train, config, seed, device,
        )  # fmt: skip
        self.cameras = views.cameras
        self.pictures = _Pictures(views, device)
        self.K = self.cameras.K.float().to(device)
        self.w2c = self.cameras.w2c.float().to(device)
        self.extent = 1.0
        self.step = 0
        self.order: list[int] = []
        self.history: dict[str, list[float]] = {n: [] for n in ("step", "loss", "psnr", "splats")}

    def start(self, points: SparsePoints | PointCloud | None, progress: Progress | None) -> None:
        """Make the first splats."""
        config = self.config
        cameras = self.cameras.select(self.train)
        generator = _generator(self.seed, "start", 0)
        cloud = _cloud(points)
        self.extent = scene_extent(cameras, cloud.points)
        cloud = self._densify(cloud, cameras, progress)
        if len(cloud.points) < config.min_points:
            cloud = _join(cloud, random_points(cameras, config.random_points, generator))
        if len(cloud.points) > config.max_splats:
            kept = torch.randperm(len(cloud.points), generator=generator)[: config.max_splats]
            cloud = cloud.map(lambda t: t[kept.sort().values])
        params = initialize_params(
            cloud,
            config.init,
            sh_degree=config.sh_degree,
            extent=self.extent,
            generator=generator,
        )
        self._install(params)

    def _densify(
        self, cloud: PointCloud, cameras: Cameras, progress: Progress | None
    ) -> PointCloud:
        """Add matched pixels, as far as the budget goes."""
        config = self.config
        wanted = min(
            int(config.max_splats * config.dense_fraction),
            config.max_splats - len(cloud.points),
        )
        if config.dense is None or wanted < 1 or len(self.train) < 2:
            return cloud

        def tell(stage: str, done: float, total: float) -> None:
            if progress is not None:
                progress(stage, 0.0, float(config.steps))

        masks = None if self.views.masks is None else self.views.masks[self.train]
        dense = match_densely(
            _bytes(self.views.images[self.train]),
            masks,
            cameras,
            cloud.points,
            options=config.dense,
            progress=tell,
        )
        dense, _ = thin_points(dense, wanted)
        return _join(cloud, PointCloud(points=dense.points, colors=dense.colors))

    def _install(self, params: GaussianParams) -> None:
        config = self.config
        self.params = params.to(self.device)
        self.optimizer = RowAdam(self.params.tensors(), config.adam)
        self.control = make_density_control(
            config.strategy, len(params), extent=self.extent, max_splats=config.max_splats
        )
        self.control.state = {k: v.to(self.device) for k, v in self.control.state.items()}
        self.exposure = None
        if config.exposure.kind != "none":
            self.exposure = ExposureModel(config.exposure, len(self.views), self.device)
        self.poses = None
        if config.poses is not None:
            self.poses = PoseRefinement(config.poses, self.cameras.to(self.device), self.extent)

    def advance(self, record: bool) -> dict[str, float] | None:
        """Do one step; return its numbers if they are to be recorded."""
        config, step = self.config, self.step
        fraction = step / config.steps
        view = self._view_at(step)
        generator = _generator(self.seed, "step", step)
        target, mask = self.pictures.get(view, config.resolution_at(fraction))
        height, width = target.shape[1:]
        pose = exposure = None
        w2c = self.w2c[view]
        if self.poses is not None and fraction >= self.poses.config.start:
            pose = self.poses.leaf(view)
            w2c = self.poses.corrected(w2c, pose)
        image, meta = self._draw(w2c, view, height, width, config.degree_at(fraction), generator)
        if self.exposure is not None:
            exposure = self.exposure.leaf(view)
            image = apply_exposure(image, exposure)
        loss = photometric_loss(image, target, mask, ssim_weight=config.ssim_weight)
        total = loss + self._penalties(exposure)
        if self.control.needs_gradients:
            meta["means2d"].retain_grad()
        total.backward()
        self._update(meta, view, fraction, pose, exposure, generator)
        self.step += 1
        if not record:
            return None
        numbers = {
            "step": float(self.step),
            "loss": float(loss.detach()),
            "psnr": _psnr(image.detach(), target, mask),
            "splats": float(len(self.params)),
        }
        for name, value in numbers.items():
            self.history[name].append(value)
        return numbers

    def _draw(
        self,
        w2c: Tensor,
        view: int,
        height: int,
        width: int,
        degree: int,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "H W 3"], dict]:
        config, params = self.config, self.params
        K = self.K[view].clone()
        K[0] *= width / self.cameras.width
        K[1] *= height / self.cameras.height
        backgrounds = None
        if config.background == "white":
            backgrounds = torch.ones(1, 3, device=self.device)
        elif config.background == "random":
            backgrounds = torch.rand(1, 3, generator=generator).to(self.device)
        absgrad = getattr(config.strategy, "absgrad", False)
        image, _, meta = rasterization(
            means=params.means,
            quats=params.quats,
            scales=params.scales.exp(),
            opacities=params.opacities.sigmoid(),
            colors=params.sh,
            viewmats=w2c[None],
            Ks=K[None],
            width=width,
            height=height,
            sh_degree=degree,
            packed=False,
            backgrounds=backgrounds,
            absgrad=absgrad,
            rasterize_mode="antialiased" if config.antialiased else "classic",
        )
        return image[0], meta

    def _penalties(self, exposure: Tensor | None) -> Tensor | float:
        config = self.config
        total: Tensor | float = 0.0
        if config.opacity_weight:
            total = total + config.opacity_weight * self.params.opacities.sigmoid().mean()
        if config.scale_weight:
            size = self.params.scales.exp().mean() / self.extent
            total = total + config.scale_weight * size
        if exposure is not None and self.exposure is not None:
            penalty = self.exposure.penalty(exposure)
            total = total if penalty is None else total + penalty
        return total

    @torch.no_grad()
    def _update(
        self,
        meta: dict,
        view: int,
        fraction: float,
        pose: Tensor | None,
        exposure: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        rates = self.config.rates
        decay = rates.decay(fraction)
        means_rate = rates.means * self.extent * rates.means_decay(fraction)
        radii = meta["radii"][0].float()
        radii = radii.amax(-1) if radii.dim() == 2 else radii  # one radius before gsplat 1.5
        visible = radii > 0
        tensors = self.params.tensors()
        grads = {name: t.grad for name, t in tensors.items() if t.grad is not None}
        per_tensor = {
            "means": means_rate,
            "scales": rates.scales * decay,
            "quats": rates.quats * decay,
            "opacities": rates.opacities * decay,
            "sh": (rates.sh0 * decay, rates.shN * decay),
        }
        self.optimizer.step(grads, per_tensor, visible)
        for tensor in tensors.values():
            tensor.grad = None
        if exposure is not None and self.exposure is not None:
            assert exposure.grad is not None
            base = self.exposure.rate * decay
            self.exposure.step(view, exposure.grad, base, self.train)
        if pose is not None and self.poses is not None:
            assert pose.grad is not None
            self.poses.step(view, pose.grad, decay)
        self.control.observe(_seen(meta, radii, visible, self.control.needs_gradients))
        self.control.update(self.step, self.params, self.optimizer, generator, means_rate)

    def _view_at(self, step: int) -> int:
        """Every epoch shows each view once, in an order that depends on seed and epoch only."""
        epoch, place = divmod(step, len(self.train))
        if place == 0 or not self.order:
            generator = _generator(self.seed, "epoch", epoch)
            self.order = torch.randperm(len(self.train), generator=generator).tolist()
        return self.train[self.order[place]]

    def result(self) -> OptimizeResult:
        """Return what was fitted."""
        config = self.config
        exposure = None
        if self.exposure is not None:
            exposure = self.exposure.finish(self.cameras, self.train, self.extent).to("cpu")
        cameras = self.cameras
        if self.poses is not None:
            cameras = self.poses.cameras(cameras)
        with torch.no_grad():
            gaussians = self.params.activate(antialiased=config.antialiased)
        return OptimizeResult(
            gaussians=gaussians.detach().to("cpu"),
            cameras=cameras,
            exposure=exposure,
            history=self.history,
            config=config,
        )

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors of the state, by part and name."""
        parts = {
            "params": {k: t.detach() for k, t in self.params.tensors().items()},
            "m": self.optimizer.m,
            "v": self.optimizer.v,
            "control": self.control.state,
        }
        for name, model in (("exposure", self.exposure), ("poses", self.poses)):
            if model is not None:
                adam = model.optimizer
                parts[name] = dict(adam.params)
                parts[f"{name}_m"], parts[f"{name}_v"] = adam.m, adam.v
        return parts

    def save(self, path: Path, fingerprint: str) -> None:
        """Write everything that decides the rest of the run."""
        parts = self._parts()
        tensors = {f"{part}.{k}": t for part, group in parts.items() for k, t in group.items()}
        facts = {
            "fingerprint": fingerprint,
            "step": self.step,
            "adam_steps": self.optimizer.steps,
            "extent": self.extent,
            "history": self.history,
        }
        write_state(path, tensors, facts)

    def restore(self, path: Path, fingerprint: str) -> None:
        """Continue from what :meth:`save` wrote."""
        tensors, facts = read_state(path, fingerprint)
        try:
            self._take_over(tensors, facts)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} must hold a whole splat training state, got a part ({error}); remove it "
                "to start over"
            ) from error

    def _take_over(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.extent = facts["extent"]
        self.step = facts["step"]
        self.history = facts["history"]
        names = [key.removeprefix("params.") for key in tensors if key.startswith("params.")]
        self._install(GaussianParams(**{name: tensors[f"params.{name}"] for name in names}))
        self.optimizer.steps = facts["adam_steps"]
        for part, group in self._parts().items():
            for name, value in group.items():
                stored = tensors[f"{part}.{name}"].to(self.device)
                if value.shape == stored.shape:
                    value.copy_(stored)
                else:
                    group[name] = stored


def _seen(meta: dict, radii: Tensor, visible: Tensor, with_gradients: bool) -> Seen:
    width, height = meta["width"], meta["height"]
    gradients = None
    if with_gradients:
        means2d = meta["means2d"]
        grad = getattr(means2d, "absgrad", None)
        grad = means2d.grad if grad is None else grad
        gradients = (grad[0] * grad.new_tensor([width / 2, height / 2])).norm(dim=-1)
    return Seen(visible=visible, radii=radii / max(width, height), gradients=gradients)


def _bytes(images: Tensor) -> UInt8[Tensor, "V 3 H W"]:
    if images.dtype == torch.uint8:
        return images
    return (images.clamp(0, 1) * 255).round().byte()


def _cloud(points: SparsePoints | PointCloud | None) -> PointCloud:
    if points is None:
        return PointCloud(points=torch.zeros(0, 3), colors=torch.zeros(0, 3))
    colors = points.colors
    colors = colors.float() / 255 if colors.dtype == torch.uint8 else colors.float()
    finite = torch.isfinite(points.points).all(-1)
    return PointCloud(points=points.points.float()[finite], colors=colors[finite])


def _join(a: PointCloud, b: PointCloud) -> PointCloud:
    return PointCloud(
        points=torch.cat([a.points, b.points]), colors=torch.cat([a.colors, b.colors])
    )


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that depends on these three only."""
    key = zlib.crc32(f"{purpose} {index}".encode())
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + key) % 2**63)


@torch.no_grad()
def _psnr(image: Float[Tensor, "H W 3"], target: Tensor, mask: Bool[Tensor, "H W"] | None) -> float:
    scale = 255 if target.dtype == torch.uint8 else 1
    square = (image.clamp(0, 1) - target.permute(1, 2, 0) / scale).square().mean(-1)
    error = float(square.mean() if mask is None else square[mask].mean())
    return -10 * math.log10(max(error, 1e-10)) if math.isfinite(error) else 0.0


def _fingerprint(
    views: Views,
    points: SparsePoints | PointCloud | None,
    train: list[int],
    config: OptimizeConfig,
    seed: int,
) -> str:
    """Digest everything that decides the result."""
    assert views.cameras is not None
    digest = zlib.crc32(repr((asdict(config), train, seed)).encode())
    tensors = [views.images, views.cameras.w2c, views.cameras.K, views.masks]
    if points is not None:
        tensors += [points.points, points.colors]
    for tensor in tensors:
        if tensor is not None:
            digest = zlib.crc32(tensor.contiguous().numpy().data, digest)
            digest = zlib.crc32(repr(tuple(tensor.shape)).encode(), digest)
    return f"{digest:08x}"
