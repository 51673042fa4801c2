"""Where splats are added, moved and removed: 3DGS's adaptive density control, and MCMC.

Both act on raw parameters and keep the optimiser's rows in step with them. Chance comes from a
generator that the caller derives from seed and step, so that a resumed run repeats it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.geometry.rotation import quat_to_matrix
from sightline.splatting.optimizer import RowAdam
from sightline.splatting.params import GaussianParams


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultStrategy:
    """Clone, split and prune (Kerbl et al. 2023, arXiv:2308.04079); numbers and names of gsplat.

    ``scaled`` fits the schedule, written for 30,000 steps, to a shorter run.
    """

    prune_opa: float = 0.005
    """Less opaque splats are removed."""
    grow_grad2d: float = 2e-4
    """Mean gradient of the projected centre, in half picture widths and heights, above which a
    splat is cloned or split; 8e-4 suits ``absgrad``."""
    grow_scale3d: float = 0.01
    """Up to this size, in scene extents, splats are cloned; larger ones are split."""
    grow_scale2d: float = 0.05
    """Splats of a larger projected radius, in picture widths, are split too."""
    prune_scale3d: float = 0.1
    """Larger splats, in scene extents, are removed after the first reset."""
    prune_scale2d: float = 0.15
    """And those of larger projected radius."""
    refine_scale2d_stop_iter: int = 0
    """Until this step the two rules about projected radii hold."""
    refine_start_iter: int = 500
    refine_stop_iter: int = 15_000
    refine_every: int = 100
    reset_every: int = 3000
    """Opacities are cut back to twice ``prune_opa``; 0 is never."""
    pause_refine_after_reset: int = 0
    absgrad: bool = False
    """Accumulate absolute gradients (AbsGS, arXiv:2404.10484)."""
    revised_opacity: bool = False
    """Split into splats of opacity ``1 - sqrt(1 - o)`` (arXiv:2404.06109)."""

    def scaled(self, factor: float) -> "DefaultStrategy":
        """Return the schedule with all steps multiplied by ``factor``."""
        return _scaled(
            self,
            factor,
            "refine_scale2d_stop_iter",
            "refine_start_iter",
            "refine_stop_iter",
            "refine_every",
            "reset_every",
            "pause_refine_after_reset",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MCMCStrategy:
    """Relocation, growth and noise (Kheradmand et al. 2024, arXiv:2404.09591); gsplat's numbers."""

    noise_lr: float = 5e5
    refine_start_iter: int = 500
    refine_stop_iter: int = 25_000
    refine_every: int = 100
    min_opacity: float = 0.005
    """Less opaque splats are moved onto others."""
    growth: float = 0.05
    """New splats at each refinement, as a fraction."""
    noise_injection_stop_iter: int = -1
    """Step after which no noise is added; -1 is never."""
    gate_threshold: float = 0.005
    """Opacity at which the noise is halved."""
    gate_sharpness: float = 100.0

    def scaled(self, factor: float) -> "MCMCStrategy":
        """Return the schedule with all steps multiplied by ``factor``."""
        names = ["refine_start_iter", "refine_stop_iter", "refine_every"]
        if self.noise_injection_stop_iter >= 0:
            names.append("noise_injection_stop_iter")
        return _scaled(self, factor, *names)


Strategy = DefaultStrategy | MCMCStrategy


def _scaled(strategy: Any, factor: float, *names: str) -> Any:  # noqa: ANN401
    from dataclasses import replace

    def fit(steps: int) -> int:
        return max(1, round(steps * factor)) if steps else 0

    return replace(strategy, **{name: fit(getattr(strategy, name)) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one step saw, for density control."""

    visible: Bool[Tensor, " N"]
    radii: Float[Tensor, " N"]
    """Projected radius in units of the picture's longer side."""
    gradients: Float[Tensor, " N"] | None
    """Length of the gradient of the projected centre, in half widths and half heights."""


@runtime_checkable
class DensityControl(Protocol):
    """A strategy at work."""

    needs_gradients: bool
    state: dict[str, Tensor]
    """Everything it remembers; restoring it restores the control."""

    def observe(self, seen: Seen) -> None:
        """Take note of one step."""
        ...

    def update(
        self,
        step: int,
        params: GaussianParams,
        optimizer: RowAdam,
        generator: torch.Generator,
        rate: float,
    ) -> bool:
        """Change the splats after step ``step`` (from 0); return whether rows changed.

        ``rate`` is the current learning rate of the means.
        """
        ...


def make_density_control(
    strategy: Strategy | None, count: int, *, extent: float, max_splats: int
) -> DensityControl:
    """Return the control for a strategy; None keeps the splats as they are."""
    if isinstance(strategy, DefaultStrategy):
        return DefaultControl(strategy, count, extent, max_splats)
    if isinstance(strategy, MCMCStrategy):
        return MCMCControl(strategy, max_splats)
    return NoControl()


class NoControl:
    """Splats neither come nor go."""

    needs_gradients = False

    def __init__(self) -> None:
        """Remember nothing."""
        self.state: dict[str, Tensor] = {}

    def observe(self, seen: Seen) -> None:
        """Do nothing."""

    def update(
        self,
        step: int,
        params: GaussianParams,
        optimizer: RowAdam,
        generator: torch.Generator,
        rate: float,
    ) -> bool:
        """Do nothing."""
        return False


class DefaultControl:
    """:class:`DefaultStrategy` at work."""

    needs_gradients = True

    def __init__(self, config: DefaultStrategy, count: int, extent: float, max_splats: int) -> None:
        """Start with empty statistics for ``count`` splats."""
        self.config = config
        self.extent = extent
        self.max_splats = max_splats
        self.state = _empty_statistics(count)

    def observe(self, seen: Seen) -> None:
        """Add up gradients and visibility."""
        assert seen.gradients is not None
        self.state["gradient"] += torch.where(seen.visible, seen.gradients, 0)
        self.state["count"] += seen.visible
        self.state["radius"] = torch.maximum(self.state["radius"], seen.radii)

    @torch.no_grad()
    def update(
        self,
        step: int,
        params: GaussianParams,
        optimizer: RowAdam,
        generator: torch.Generator,
        rate: float,
    ) -> bool:
        """Grow and prune, reset opacities, each in its steps."""
        c = self.config
        if step >= c.refine_stop_iter:
            return False
        since_reset = step % c.reset_every if c.reset_every else step
        due = step > c.refine_start_iter and step % c.refine_every == 0
        changed = due and since_reset >= c.pause_refine_after_reset
        if changed:
            self._grow(step, params, optimizer, generator)
            self._prune(step, params, optimizer)
            self.state = _empty_statistics(len(params), params.means.device)
        if c.reset_every and step > 0 and step % c.reset_every == 0:
            limit = math.log(2 * c.prune_opa / (1 - 2 * c.prune_opa))
            params.opacities.clamp_(max=limit)
            optimizer.reset_rows(torch.arange(len(params)), ("opacities",))
        return changed

    def _grow(
        self, step: int, params: GaussianParams, optimizer: RowAdam, generator: torch.Generator
    ) -> None:
        c = self.config
        mean = self.state["gradient"] / self.state["count"].clamp(min=1)
        wants = mean > c.grow_grad2d
        room = self.max_splats - len(params)
        if int(wants.sum()) > room:  # the budget goes to those with the largest gradients
            best = torch.where(wants, mean, -1).topk(max(room, 0)).indices
            wants = torch.zeros_like(wants)
            wants[best] = True
        small = params.scales.exp().amax(-1) <= c.grow_scale3d * self.extent
        split = wants & ~small
        if step < c.refine_scale2d_stop_iter:
            split |= (self.state["radius"] > c.grow_scale2d) & wants
        duplicate_rows(params, optimizer, wants & ~split)
        added = len(params) - len(split)
        self.state["radius"] = torch.cat([self.state["radius"], split.new_zeros(added).float()])
        split = torch.cat([split, split.new_zeros(added)])
        kept = self.state["radius"][~split]
        split_rows(params, optimizer, split, generator, revised_opacity=c.revised_opacity)
        self.state["radius"] = torch.cat([kept, kept.new_zeros(len(params) - len(kept))])

    def _prune(self, step: int, params: GaussianParams, optimizer: RowAdam) -> None:
        c = self.config
        dead = params.opacities.sigmoid() < c.prune_opa
        if c.reset_every and step > c.reset_every:
            dead |= params.scales.exp().amax(-1) > c.prune_scale3d * self.extent
            if step < c.refine_scale2d_stop_iter:
                dead |= self.state["radius"] > c.prune_scale2d
        if dead.all():  # an empty scene could never recover
            dead[params.opacities.argmax()] = False
        remove_rows(params, optimizer, dead)


def _empty_statistics(count: int, device: torch.device | None = None) -> dict[str, Tensor]:
    names = ("gradient", "count", "radius")
    return {name: torch.zeros(count, device=device) for name in names}


class MCMCControl:
    """:class:`MCMCStrategy` at work."""

    needs_gradients = False

    def __init__(self, config: MCMCStrategy, max_splats: int) -> None:
        """Remember nothing but the numbers."""
        self.config = config
        self.max_splats = max_splats
        self.state: dict[str, Tensor] = {}

    def observe(self, seen: Seen) -> None:
        """Do nothing."""

    @torch.no_grad()
    def update(
        self,
        step: int,
        params: GaussianParams,
        optimizer: RowAdam,
        generator: torch.Generator,
        rate: float,
    ) -> bool:
        """Move dead splats, grow, and add noise to the means."""
        c = self.config
        changed = c.refine_start_iter < step < c.refine_stop_iter and step % c.refine_every == 0
        if changed:
            relocate_rows(params, optimizer, generator, min_opacity=c.min_opacity)
            wanted = min(self.max_splats, math.floor((1 + c.growth) * len(params)))
            count = max(0, wanted - len(params))
            add_rows(params, optimizer, count, generator, min_opacity=c.min_opacity)
        if c.noise_injection_stop_iter < 0 or step < c.noise_injection_stop_iter:
            add_noise(params, generator, rate * c.noise_lr, c.gate_threshold, c.gate_sharpness)
        return changed


@torch.no_grad()
def duplicate_rows(params: GaussianParams, optimizer: RowAdam, chosen: Bool[Tensor, " N"]) -> None:
    """Append copies of the chosen splats; their moments are zero."""
    rows = chosen.nonzero()[:, 0]
    tensors = {name: torch.cat([t, t[rows]]) for name, t in params.tensors().items()}
    _apply(params, optimizer, tensors, torch.arange(len(params), device=rows.device), len(rows))


@torch.no_grad()
def split_rows(
    params: GaussianParams,
    optimizer: RowAdam,
    chosen: Bool[Tensor, " N"],
    generator: torch.Generator,
    *,
    revised_opacity: bool = False,
) -> None:
    """Replace each chosen splat by two drawn from it, 1.6 times smaller; moments zero.

    The others come first, in their order.
    """
    rows = chosen.nonzero()[:, 0]
    rest = (~chosen).nonzero()[:, 0]
    noise = torch.randn(2, len(rows), 3, generator=generator).to(params.means.device)
    scales = params.scales[rows].exp()
    offset = torch.einsum("nij,snj->sni", quat_to_matrix(params.quats[rows]), scales * noise)
    new = {name: t[rows].repeat(2, *[1] * (t.dim() - 1)) for name, t in params.tensors().items()}
    new["means"] = (params.means[rows] + offset).flatten(0, 1)
    new["scales"] = (scales / 1.6).log().repeat(2, 1)
    if revised_opacity:
        opacity = 1 - torch.sqrt(1 - new["opacities"].sigmoid())
        new["opacities"] = torch.logit(opacity, eps=1e-6)
    tensors = {name: torch.cat([t[rest], new[name]]) for name, t in params.tensors().items()}
    _apply(params, optimizer, tensors, rest, 2 * len(rows))


@torch.no_grad()
def remove_rows(params: GaussianParams, optimizer: RowAdam, chosen: Bool[Tensor, " N"]) -> None:
    """Drop the chosen splats."""
    rest = (~chosen).nonzero()[:, 0]
    _apply(params, optimizer, {k: t[rest] for k, t in params.tensors().items()}, rest, 0)


@torch.no_grad()
def relocate_rows(
    params: GaussianParams,
    optimizer: RowAdam,
    generator: torch.Generator,
    *,
    min_opacity: float,
) -> int:
    """Move splats of at most ``min_opacity`` onto others, drawn by opacity; return how many.

    The moments of the splats that others are moved onto are zeroed, and so are those of the moved
    (their history belongs to another place).
    """
    opacity = params.opacities.sigmoid()
    dead = (opacity <= min_opacity).nonzero()[:, 0]
    alive = (opacity > min_opacity).nonzero()[:, 0]
    if not len(dead) or not len(alive):
        return 0
    sources = alive[_draw(opacity[alive], len(dead), generator)]
    _share(params, sources, min_opacity)
    for tensor in params.tensors().values():
        tensor[dead] = tensor[sources]
    optimizer.reset_rows(torch.cat([sources.unique(), dead]))
    return len(dead)


@torch.no_grad()
def add_rows(
    params: GaussianParams,
    optimizer: RowAdam,
    count: int,
    generator: torch.Generator,
    *,
    min_opacity: float,
) -> None:
    """Append ``count`` splats as copies of others drawn by opacity, sharing their opacity."""
    if not count:
        return
    sources = _draw(params.opacities.sigmoid(), count, generator)
    _share(params, sources, min_opacity)
    optimizer.reset_rows(sources.unique())
    tensors = {name: torch.cat([t, t[sources]]) for name, t in params.tensors().items()}
    _apply(params, optimizer, tensors, torch.arange(len(params), device=sources.device), count)


@torch.no_grad()
def add_noise(
    params: GaussianParams,
    generator: torch.Generator,
    strength: float,
    threshold: float,
    sharpness: float,
) -> None:
    """Let nearly transparent splats wander: ``mean += strength gate(o) Sigma n``, n normal.

    The gate is ``sigmoid(-sharpness (o - threshold))``; where it is under 1e-6 nothing is drawn.
    """
    opacity = params.opacities.sigmoid()
    gate = torch.sigmoid(-sharpness * (opacity - threshold))
    rows = (gate > 1e-6).nonzero()[:, 0]
    noise = torch.randn(len(rows), 3, generator=generator).to(rows.device)
    axes = quat_to_matrix(params.quats[rows]) * params.scales[rows].exp()[:, None, :]
    moved = torch.einsum("nij,nkj,nk->ni", axes, axes, noise * gate[rows, None])
    params.means[rows] += strength * moved


MAX_COPIES = 51
"""The relocation formula's table ends here, as in gsplat."""


def relocated_opacity_and_scale(
    opacity: Float[Tensor, " n"], copies: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return opacity and scale factor of ``copies`` splats that look like one.

    ``o' = 1 - (1 - o)^(1/n)`` and ``scale' / scale = o / sum_{i=1..n} sum_{k<i} C(i-1, k) (-1)^k
    o'^(k+1) / sqrt(k+1)`` (arXiv:2404.09591, eq. 9), in float64 since the sum alternates.
    """
    copies = copies.clamp(1, MAX_COPIES)
    new = 1 - (1 - opacity.double()) ** (1 / copies.double())
    powers = new[:, None] ** torch.arange(1, MAX_COPIES + 1, device=new.device).double()
    table = _relocation_table().to(new.device)[copies - 1]
    factor = opacity.double() / (powers * table).sum(-1)
    return new.to(opacity.dtype), factor.to(opacity.dtype)


@lru_cache(maxsize=1)
def _relocation_table() -> Float[Tensor, "51 51"]:
    """Coefficient of ``o'^(k+1)`` for n copies, summed over i: hockey-stick, C(n, k+1)."""
    table = torch.zeros(MAX_COPIES, MAX_COPIES, dtype=torch.float64)
    for n in range(1, MAX_COPIES + 1):
        for k in range(n):
            table[n - 1, k] = (-1) ** k * math.comb(n, k + 1) / math.sqrt(k + 1)
    return table


def _share(params: GaussianParams, sources: Tensor, min_opacity: float) -> None:
    """Give each source the opacity and scale of one of its copies, itself included."""
    rows, count = sources.unique(return_counts=True)
    opacity = params.opacities[rows].sigmoid()
    new, factor = relocated_opacity_and_scale(opacity, count + 1)
    eps = torch.finfo(torch.float32).eps
    params.opacities[rows] = torch.logit(new.clamp(min_opacity, 1 - eps))
    params.scales[rows] += factor.log()[:, None]


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """Draw rows with replacement, by inversion: no limit on their number, same on any device."""
    steps = weights.double().cpu().cumsum(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * steps[-1]
    rows = torch.searchsorted(steps, places, right=True).clamp(max=len(weights) - 1)
    return rows.to(weights.device)


def _apply(
    params: GaussianParams,
    optimizer: RowAdam,
    tensors: Mapping[str, Tensor],
    kept: Tensor,
    added: int,
) -> None:
    """Install new rows: first those ``kept`` from before, then ``added`` with zero moments."""
    params.replace(tensors)
    rows = torch.cat([kept, kept.new_full((added,), -1)])
    optimizer.select_rows(rows, params.tensors())
