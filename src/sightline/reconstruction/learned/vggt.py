"""Cameras and depth from VGGT and its relatives, for any number of pictures."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import InputError, OutOfMemoryError, ReconstructionError
from sightline.io.undistort import pinhole_intrinsics
from sightline.protocols import Progress
from sightline.reconstruction.learned import chunks
from sightline.reconstruction.learned.gauge import finish
from sightline.reconstruction.learned.layout import Fit, Frames, plan_frames
from sightline.reconstruction.learned.memory import MemoryNeed, free_memory, memory_need
from sightline.reconstruction.learned.passes import Head
from sightline.reconstruction.learned.scene import Found, PassOptions, ScenePasses
from sightline.reconstruction.learned.weights import find_weights, load_own_size, network_of
from sightline.reconstruction.pictures import source_sizes
from sightline.types import Reconstruction, Views

_SHARE = 0.9
"""Part of the free memory that a pass may take."""
_MOST_FRAMES_CPU, _MOST_FRAMES_GPU = 16, 120
"""Time grows with the square of the frames in one pass; beyond these, chunks are quicker."""
_HELD_BYTES = 21.0
"""Bytes a pixel of all views that the result takes: depth, confidence, points, validity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtEstimator:
    """Feed-forward geometry with VGGT (Wang et al. 2025, arXiv:2503.11651).

    One picture or a thousand: what does not fit into memory at once is worked on in chunks that
    share views, joined by robust similarities and balanced over loops. The object may be used for
    many scenes; the network is loaded once.

    The world is the first registered view's camera (OpenCV axes), and the unit of length is the
    median depth of what is valid. Which picture the network takes as its first, which it treats
    specially, is chosen by content, not by order. Where views come with cameras,
    the world is theirs instead, with the scale of their positions.
    """

    name: ClassVar[str] = "vggt"
    fits: ClassVar[tuple[str, ...]] = ("crop", "pad")

    checkpoint: Path | str | None = None
    """Weights, `facebook/VGGT-1B`'s names; None takes those downloaded before, if any."""
    model: nn.Module | None = None
    """Any module with the network's outputs, in place of ``checkpoint``."""
    device: str = "cpu"
    fit: Fit | None = None
    """How pictures become frames, see `plan_layout`; None crops unless that would lose part of a
    picture, and pads then."""
    side: int | None = None
    """Width or long side of the frames; None is what the published weights expect."""
    patch: int | None = None
    """None is the network's own."""
    head: Head = "depth"
    """Geometry from the depth maps and cameras (the more exact), or from the point maps."""
    chunk: int | None = None
    """Most views in one pass; None is what memory allows, at most 16 on a CPU and 120 on a GPU."""
    overlap: int | None = None
    """Views that neighbouring chunks share; None is a quarter of a chunk."""
    loops: bool = True
    """Join chunks that come back to the same place."""
    tracks: int = 0
    """Points to follow from the central view through its chunk, for ``sparse``; 0 follows none."""
    memory_limit: float | None = None
    """GB (10^9 bytes) that may be taken; None is what is free."""
    raw: bool = False
    """Unproject at integer pixels, as the original does (half a pixel towards the top left), and
    keep each pass's own output in ``Reconstruction.raw``, a list."""
    workspace: Path | None = None
    """Not needed; every estimator takes one."""
    seed: int = 0
    """Of the robust alignments."""
    progress: Progress | None = None
    """Called with the stages ``load``, ``geometry`` and ``loops``."""
    loaded: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    """The network once it is loaded; shared by copies that `dataclasses.replace` makes."""

    def estimate(self, views: Views) -> Reconstruction:
        """Find cameras and depth.

        Args:
            views: The pictures; ``files`` are read where views are plain copies of them. Known
                lenses and cameras are kept; ``masks`` limit what is valid.

        Returns:
            Pinhole cameras (float64) in pixels of the full-size pictures; depth, points,
            confidence (as the model gives it, at least 1) and validity at the views' pixels.
            Margins, cut-off parts and masked pixels are not valid, and are zero (points: NaN).

        Raises:
            InputError: If there is no picture, or an option does not fit the network.
            CheckpointError: If there are no weights, or they are another network's.
            OutOfMemoryError: If not even the smallest chunk fits; the text says what would.
            ReconstructionError: If no view got a usable camera.
            Cancelled: If ``progress`` raised it.
        """
        count = len(views)
        if count == 0:
            raise InputError("expected one or more pictures, got none; give a folder of photos")
        self._load_own_size()
        frames = self._frames(views)
        model, need = self._network(frames, count)
        size, overlap = self._chunk_size(need, frames, count)
        plan = chunks.plan_chunks(count, size, overlap)
        options = PassOptions(
            name=self.name,
            device=self.device,
            head=self.head,
            loops=self.loops,
            tracks=self.tracks,
            raw=self.raw,
            seed=self.seed,
            progress=self.progress,
        )
        worker = ScenePasses(options, model, frames)
        result = self._result(views, frames, worker.run(plan), worker)
        if self.tracks < 1:
            return result
        return replace(result, sparse=worker.follow(plan[0], result))

    def _frames(self, views: Views) -> Frames:
        side, patch = self._side_and_patch()
        if side % patch:
            raise InputError(
                f"side must be a multiple of the patch of {patch} pixels, got {side}; the nearest "
                f"is {max(1, round(side / patch)) * patch}"
            )
        fit = self.fit
        if fit is not None and fit not in self.fits:
            raise InputError(
                f'{self.name} has no fit "{fit}"; expected {" or ".join(self.fits)}, or None'
            )
        if fit is None:
            tall = bool((views.sizes[:, 0] > views.sizes[:, 1]).any())
            fit = self._default_fit(tall=tall)
        return plan_frames(views, fit=fit, side=side, patch=patch)

    def _default_fit(self, *, tall: bool) -> Fit:
        return "pad" if tall else "crop"

    def _side_and_patch(self) -> tuple[int, int]:
        patch = self.patch or _patch_of(self.model or self.loaded.get(self.name), 14)
        return self.side or round(518 / patch) * patch, patch

    def _load_own_size(self) -> None:
        """Load weights of a network of a size of its own, such as one that was trained here."""
        if self.checkpoint is None or self.model is not None or self.name in self.loaded:
            return
        path = find_weights(self.name, self.checkpoint, self.progress)
        model = load_own_size(self.name, path)
        if model is not None:
            self.loaded[self.name] = model

    def _network(self, frames: Frames, count: int) -> tuple[nn.Module, MemoryNeed]:
        """Return the network on its device, after a look at the memory."""
        device = torch.device(self.device)
        model = self.model or self.loaded.get(self.name)
        size = (frames.layout.height, frames.layout.width)
        if model is not None:
            model = model.eval().to(device)
            return model, self._held(memory_need(model, *size, device), frames)
        from sightline.models import load

        network = network_of(self.name)
        path = find_weights(self.name, self.checkpoint, self.progress)
        # On the meta device it costs nothing, and tells what the weights will need.
        need = memory_need(load(network, False, device="meta"), *size, device)
        need = self._held(need, frames)
        self._check_memory(need, frames, count, loaded=False)
        if self.progress is not None:
            self.progress("load", 0.0, 1.0)
        model = load(network, path).eval().to(device)
        self.loaded[self.name] = model
        if self.progress is not None:
            self.progress("load", 1.0, 1.0)
        return model, need

    @staticmethod
    def _held(need: MemoryNeed, frames: Frames) -> MemoryNeed:
        """Add what the result takes, which on a GPU machine is a trifle of its own memory."""
        pixels = frames.views.images.numel() / 3
        return replace(need, fixed=need.fixed + _HELD_BYTES * pixels)

    def _budget(self) -> float | None:
        free = free_memory(torch.device(self.device))
        if self.memory_limit is None:
            return None if free is None else _SHARE * free
        limit = 1e9 * self.memory_limit
        return limit if free is None else min(limit, free)

    def _check_memory(
        self, need: MemoryNeed, frames: Frames, count: int, *, loaded: bool
    ) -> int | None:
        """Return how many frames fit; None where the free memory is unknown."""
        budget = self._budget()
        if budget is None:
            return None
        if loaded and self.memory_limit is not None:
            budget -= need.weights  # the limit is for everything, weights included
        most = need.most_frames(budget, loaded=loaded)
        least = min(count, 3)
        if most >= least:
            return most
        where = f"--memory-limit {self.memory_limit:g}" if self.memory_limit else "free memory"
        hint = "a higher --memory-limit" if self.memory_limit else "a machine with more memory"
        if most >= 1:
            hint = f"--max-frames {most}, or {hint}"
        raise OutOfMemoryError(
            f"{self.name} needs about {need.total(least) / 1e9:.1f} GB for {least} of {count} "
            f"pictures at {frames.layout.width} x {frames.layout.height} (weights "
            f"{need.weights / 1e9:.1f} GB, {need.frame / 1e9:.2f} GB a picture), and "
            f"{(budget + (need.weights if loaded else 0)) / 1e9:.1f} GB of {where} may be used; "
            f"use {hint}"
        )

    def _chunk_size(self, need: MemoryNeed, frames: Frames, count: int) -> tuple[int, int]:
        most = self._check_memory(need, frames, count, loaded=True)
        on_cpu = torch.device(self.device).type == "cpu"
        usual = _MOST_FRAMES_CPU if on_cpu else _MOST_FRAMES_GPU
        size = min(count, self.chunk or usual, count if most is None else most)
        if size < count and size < 3:
            raise InputError(f"chunk must be 3 or more to join chunks, got {size}; raise it")
        overlap = max(1, size // 4) if self.overlap is None else self.overlap
        if size < count and not 1 <= overlap < size:
            raise InputError(
                f"overlap must be 1 to {size - 1} views of a chunk of {size}, got {overlap}"
            )
        return size, overlap

    def _result(
        self, views: Views, frames: Frames, found: Found, worker: ScenePasses
    ) -> Reconstruction:
        if not bool(found.registered.any()):
            raise ReconstructionError(
                f"{self.name} gave no usable camera for any of the {len(views)} pictures "
                f"({found.reasons[0]}); check that the weights are trained ones"
            )
        original = frames.original_from_grid @ found.K
        K = original / original[:, 2:, 2:]
        sizes = torch.tensor(_original_sizes(views))
        guess = 1.2 * sizes.amax(-1).double()
        if views.focal_priors is not None:
            prior = views.focal_priors.double()
            guess = torch.where(prior.isfinite() & (prior > 0), prior, guess)
        for axis in (0, 1):
            K[:, axis, axis] = torch.where(found.has_focal, K[:, axis, axis], guess)
        if views.lenses is not None:
            K = pinhole_intrinsics(views.lenses).double()
        return finish(
            views,
            K=K,
            w2c=found.w2c,
            sizes=sizes,
            registered=found.registered,
            depth=worker.depth,
            confidence=worker.confidence,
            valid=worker.valid,
            rejected=tuple(
                (name, reason)
                for name, reason in zip(views.names, found.reasons, strict=True)
                if reason
            ),
            half_pixel=_half_pixels(frames) if self.raw else None,
            raw=worker.raw if self.raw else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtOmegaEstimator(VggtEstimator):
    """Feed-forward geometry with VGGT-Omega (2026), DINOv3 inside; weights are non-commercial.

    As `VggtEstimator`; the network has no point maps and no tracks.
    """

    name: ClassVar[str] = "vggt-omega"
    fits: ClassVar[tuple[str, ...]] = ("balanced", "max_size")

    def _default_fit(self, *, tall: bool) -> Fit:
        del tall
        return "balanced"

    def _side_and_patch(self) -> tuple[int, int]:
        patch = self.patch or _patch_of(self.model or self.loaded.get(self.name), 16)
        return self.side or round(512 / patch) * patch, patch


def _patch_of(model: nn.Module | None, otherwise: int) -> int:
    patch = getattr(getattr(model, "aggregator", model), "patch_size", None)
    return patch if isinstance(patch, int) else otherwise


def _half_pixels(frames: Frames) -> Float[Tensor, "V 2"]:
    """Return half a pixel of the frames in pixels of the views."""
    scale = torch.diagonal(frames.grid_from_view, dim1=-2, dim2=-1)[:, :2]
    return 0.5 / scale


def _original_sizes(views: Views) -> list[tuple[int, int]]:
    if views.files is not None:
        return source_sizes(views)
    scale = torch.diagonal(views.from_original, dim1=-2, dim2=-1)[:, :2].flip(-1)
    return [(int(h), int(w)) for h, w in (views.sizes / scale).round().tolist()]
