"""Training a probe: the warm start towards the cloud, then photos, with poses on the way."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sightline.errors import InputError, UnknownNameError
from sightline.geometry.pose import camera_centers
from sightline.metrics.images import ssim
from sightline.probing.poses import draw, pose_matrices, pose_vectors
from sightline.probing.protocols import HEADS, MODES, Protocol
from sightline.probing.readout import Reading, Readout, gaussians_from
from sightline.probing.schedule import camera_extent, photometric_rates, view_order, warm_rate
from sightline.probing.tokens import TokenGrid
from sightline.protocols import Progress
from sightline.splatting.losses import photometric_loss
from sightline.types import Cameras, TensorStruct

_RECORDS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeInput(TensorStruct):
    """What every mode starts from."""

    start: dict[str, Tensor]
    """Raw values a Gaussian, as `start.start_values` returns them."""
    pixels: Tensor
    """Index of each Gaussian's pixel in the flattened ``[V H W]`` of the working pictures."""
    cameras: Cameras
    """Of the training views, at the size of ``photos``."""
    photos: UInt8[Tensor, "V 3 H W"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult(TensorStruct):
    """A trained probe."""

    raw: dict[str, Tensor]
    """Raw parameters a Gaussian."""
    w2c: Float[Tensor, "V 4 4"]
    """Of the training views, after optimisation."""
    readout: dict[str, Tensor]
    """State of the heads, under the published names."""
    history: dict[str, list[float]]
    """``step``, ``loss``, and ``warm`` (loss of the warm start)."""
    warm_seconds: float
    seconds: float

    def gaussians(self) -> dict[str, Tensor]:
        """Return activated values by the rasteriser's names."""
        return gaussians_from(self.raw)


class Probe(nn.Module):
    """Heads and free parameters of one mode, poses and perhaps features."""

    def __init__(
        self,
        inputs: ProbeInput,
        tokens: TokenGrid | None,
        mode: str,
        protocol: Protocol,
        seed: int,
    ) -> None:
        """Draw the heads; everything else starts from ``inputs``.

        Raises:
            UnknownNameError: If there is no such mode.
            InputError: If the mode reads features and there are none.
        """
        super().__init__()
        if mode not in MODES:
            raise UnknownNameError("probing mode", mode, MODES)
        heads = MODES[mode]
        if heads and tokens is None:
            raise InputError(f"mode {mode} reads out features, got none; name a feature")
        device = inputs.photos.device
        self.start = inputs.start
        self.free = nn.ParameterDict(
            {n: nn.Parameter(inputs.start[n].clone()) for n in HEADS if n not in heads}
        )
        self.pose = nn.Parameter(pose_vectors(inputs.cameras.w2c.float()))
        self.readout = self.features = self.reading = None
        if tokens is not None and heads:
            narrow = tokens.is_pixels and protocol.quirks.narrow_pixel_readout
            generator = torch.Generator().manual_seed(seed)
            hidden = tokens.width if narrow else protocol.hidden
            self.readout = Readout(heads, tokens.width, hidden, generator).to(device)
            if mode.endswith("ft"):
                flat = tokens.at_pixels().flatten(0, 2)[inputs.pixels]
                self.features = nn.Parameter(flat.clone())
            else:
                self.reading = Reading.of(tokens, inputs.pixels)

    def read(self) -> dict[str, Tensor]:
        """Return what the heads read, one row a Gaussian."""
        if self.readout is None:
            return {}
        if self.features is not None:
            return self.readout.per_pixel(self.features)
        return self.readout(self.reading)

    def raw(self) -> dict[str, Tensor]:
        """Return all raw parameters."""
        return {**dict(self.free.items()), **self.read()}

    def groups(self) -> list[dict]:
        """Return the optimiser's groups, by the names of the rates."""
        groups = [{"name": name, "params": [value]} for name, value in self.free.items()]
        if self.readout is not None:
            groups += [
                {"name": name, "params": list(self.readout.head(name).parameters())}
                for name in self.readout.names
            ]
        if self.features is not None:
            groups.append({"name": "features", "params": [self.features]})
        return [*groups, {"name": "pose", "params": [self.pose]}]


def warm_loss(read: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return the sum over what is read of the mean absolute error to the start."""
    return torch.stack([(value - start[name]).abs().mean() for name, value in read.items()]).sum()


def photo_loss(
    image: Float[Tensor, "H W 3"], photo: UInt8[Tensor, "3 H W"], protocol: Protocol
) -> Float[Tensor, ""]:
    """Return ``(1 - w) L1 + w (1 - SSIM)`` of the unclamped render and the whole photo."""
    weight = protocol.ssim_weight
    if not protocol.quirks.zero_padded_ssim:
        return photometric_loss(image, photo, ssim_weight=weight)
    target = photo[None].to(image) / 255
    rendered = image.permute(2, 0, 1)[None]
    l1 = (rendered - target).abs().mean()
    return (1 - weight) * l1 + weight * (1 - ssim(rendered, target)[0])


def train_probe(
    inputs: ProbeInput,
    tokens: TokenGrid | None,
    mode: str,
    protocol: Protocol,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    penalise_scales: bool = False,
) -> ProbeResult:
    """Train one probe.

    Args:
        inputs: The cloud, cameras and photos of the training views.
        tokens: Features; None for the mode ``free`` (InstantSplat), which has no warm start.
        mode: A key of `protocols.MODES`.
        protocol: Steps, rates and quirks.
        seed: Of the heads and of the order of views.
        progress: Called as ``progress("probe", done, total)``.
        penalise_scales: Add the drift of log scales to the loss (``iuv`` and ``iuvrgb`` alone).
    """
    probe = Probe(inputs, tokens, mode, protocol, seed)
    baseline = probe.readout is None
    optimizer = torch.optim.Adam(
        [{**group, "lr": 0.0} for group in probe.groups()], eps=1e-15, fused=True
    )
    warm = 0 if baseline else protocol.warm_steps
    steps = protocol.baseline_steps if baseline else protocol.steps
    history: dict[str, list[float]] = {"step": [], "loss": [], "warm": []}
    every = max(1, (warm + steps) // _RECORDS)

    def tell(done: int) -> None:
        if progress is not None:
            progress("probe", float(done), float(warm + steps))

    began = time.perf_counter()
    for iteration in range(1, warm + 1):
        _set_rates(
            optimizer, dict.fromkeys((*HEADS, "features", "pose"), warm_rate(protocol, iteration))
        )
        optimizer.zero_grad(set_to_none=True)
        loss = warm_loss(probe.read(), inputs.start)
        loss.backward()
        optimizer.step()
        if iteration % every == 0:
            history["warm"].append(float(loss.detach()))
        tell(iteration)
    warm_seconds = time.perf_counter() - began

    if probe.features is not None and protocol.quirks.features_freeze:
        probe.features.requires_grad_(False)
    extent = camera_extent(camera_centers(inputs.cameras.w2c.float()))
    order = view_order(len(inputs.photos), seed, python=protocol.quirks.python_order)
    for step in range(1, steps + 1):
        _set_rates(optimizer, photometric_rates(protocol, step, extent, baseline=baseline))
        optimizer.zero_grad(set_to_none=True)
        view = next(order)
        raw = probe.raw()
        w2c = pose_matrices(probe.pose[view : view + 1])
        camera = inputs.cameras.select([view])
        image = draw(gaussians_from(raw), w2c, camera)[0]
        loss = photo_loss(image, inputs.photos[view], protocol)
        total = loss
        if penalise_scales:
            drift = (raw["scaling"] - inputs.start["scaling"]).abs().mean()
            total = loss + protocol.scale_penalty * drift
        total.backward()
        if not protocol.quirks.free_gauge and probe.pose.grad is not None:
            probe.pose.grad[0] = 0
        if step < steps or not protocol.quirks.idle_last_step:
            optimizer.step()
        if step % every == 0 or step == steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"the loss of mode {mode} is not finite at step {step}; check depth and cameras"
                )
            history["step"].append(float(step))
            history["loss"].append(value)
        tell(warm + step)
    with torch.no_grad():
        raw = {name: value.detach().clone() for name, value in probe.raw().items()}
    state = {} if probe.readout is None else probe.readout.state_dict()
    return ProbeResult(
        raw={name: raw[name] for name in HEADS},
        w2c=pose_matrices(probe.pose.detach()),
        readout={name: value.detach().clone() for name, value in state.items()},
        history=history,
        warm_seconds=warm_seconds,
        seconds=time.perf_counter() - began,
    )


def _set_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
