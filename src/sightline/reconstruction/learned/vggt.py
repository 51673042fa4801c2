"""Cameras and depth from VGGT and its relatives, for any number of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import InputError, OutOfMemoryError, ReconstructionError
from sightline.geometry.align import Similarity
from sightline.io.undistort import pinhole_intrinsics
from sightline.protocols import Progress
from sightline.reconstruction.learned import chunks
from sightline.reconstruction.learned.gauge import finish
from sightline.reconstruction.learned.layout import Fit, Frames, plan_frames
from sightline.reconstruction.learned.maps import depth_on_view
from sightline.reconstruction.learned.memory import MemoryNeed, free_memory, memory_need
from sightline.reconstruction.learned.passes import (
    Head,
    Pass,
    confirmed_share,
    lift,
    run_pass,
    sample_pixels,
)
from sightline.reconstruction.learned.tracks import track_points
from sightline.reconstruction.learned.weights import find_weights, network_of
from sightline.reconstruction.pictures import source_sizes
from sightline.types import Reconstruction, SparsePoints, Views

_SHARE = 0.9
"""Part of the free memory that a pass may take."""
_MOST_FRAMES_CPU, _MOST_FRAMES_GPU = 16, 120
"""Time grows with the square of the frames in one pass; beyond these, chunks are quicker."""
_HELD_BYTES = 21.0
"""Bytes a pixel of all views that the result takes: depth, confidence, points, validity."""
_CONFIRMED = 0.2
"""Share of points that both ends of a loop must see alike."""
_SAMPLES = 24
"""Side of the grid of pixels by which passes are joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtEstimator:
    """Feed-forward geometry with VGGT (Wang et al. 2025, arXiv:2503.11651).

    One picture or a thousand: what does not fit into memory at once is worked on in chunks that
    share views, joined by robust similarities and balanced over loops. The object may be used for
    many scenes; the network is loaded once.

    The world is the first registered view's camera (OpenCV axes), and the unit of length is the
    median depth of what is valid. Which picture the network takes as its first, which it treats
    specially, is chosen by content and has no influence on that. Where views come with cameras,
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
        frames = self._frames(views)
        model, need = self._network(frames, count)
        size, overlap = self._chunk_size(need, frames, count)
        plan = chunks.plan_chunks(count, size, overlap)
        worker = _Worker(self, model, frames)
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
        patch = self.patch or _patch_of(self.model, 14)
        return self.side or round(518 / patch) * patch, patch

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
        hint = "a machine with more memory"
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
        self, views: Views, frames: Frames, found: "Found", worker: "_Worker"
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
        patch = self.patch or _patch_of(self.model, 16)
        return self.side or round(512 / patch) * patch, patch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Cameras of all views in one world."""

    w2c: Float[Tensor, "V 4 4"]
    K: Float[Tensor, "V 3 3"]
    """Pixels of the frames."""
    has_focal: Tensor
    registered: Tensor
    reasons: tuple[str, ...]


class _Worker:
    """The passes of one scene, and the growing maps of its views."""

    def __init__(self, options: VggtEstimator, model: nn.Module, frames: Frames) -> None:
        views = frames.views
        self.options, self.model, self.frames, self.views = options, model, frames, views
        self.device = torch.device(options.device)
        self.thumbs = chunks.thumbnails(views)
        self.grid_from_view = frames.grid_from_view
        shape = (len(views), *views.images.shape[-2:])
        self.depth = torch.zeros(shape)
        self.confidence = torch.zeros(shape)
        self.valid = torch.zeros(shape, dtype=torch.bool)
        self.raw: list[object] = []

    def run(self, plan: list[list[int]]) -> Found:
        count = len(self.views)
        owner = chunks.owners(plan, count)
        w2c = torch.full((count, 4, 4), torch.nan, dtype=torch.float64)
        K = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
        has_focal = torch.zeros(count, dtype=torch.bool)
        reasons = [""] * count
        samples = []
        for number, chunk in enumerate(plan):
            self._tell("geometry", number, len(plan))
            found = self._pass(chunk)
            samples.append(self._samples(found, chunk))
            for row, view in enumerate(chunk):
                if owner[view] != number:
                    continue
                if not bool(found.usable[row]):
                    reasons[view] = "the network's output for it is not finite or has no depth"
                    continue
                w2c[view], K[view] = found.w2c[row], found.K[row]
                has_focal[view] = found.has_focal[row]
                self._keep(view, found, row)
            if self.options.raw:
                self.raw.append(found.raw)
        self._tell("geometry", len(plan), len(plan))
        links = self._links(plan, owner, samples)
        places = chunks.balance(len(plan), links)
        for view in range(count):
            place = places[owner[view]]
            if reasons[view]:
                continue
            if place is None:
                reasons[view] = "its part of the sequence could not be joined with the first part"
                w2c[view] = torch.nan
                self.valid[view] = False
                continue
            w2c[view] = _moved(w2c[view], place)
            self.depth[view] *= float(place.scale)
        return Found(
            w2c=w2c,
            K=K,
            has_focal=has_focal,
            registered=torch.tensor([not reason for reason in reasons]),
            reasons=tuple(reasons),
        )

    def _pass(self, index: Sequence[int]) -> Pass:
        index = list(index)
        try:
            return run_pass(
                self.model,
                self.frames.read(index),
                reference=chunks.central_view(self.thumbs[index]),
                head=self.options.head,
                device=self.device,
                keep_raw=self.options.raw,
            )
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise OutOfMemoryError(
                f"{self.options.name} ran out of memory on {len(index)} pictures at once; use "
                "--memory-limit with less than is free now, or --max-frames with fewer"
            ) from error

    def follow(self, index: Sequence[int], found: Reconstruction) -> SparsePoints | None:
        """Return the points that a network with a tracker follows through some views."""
        self._tell("tracks", 0, 1)
        index = list(index)
        reference = index[chunks.central_view(self.thumbs[index])]
        count = self.options.tracks
        return track_points(self.model, self.frames, index, reference, count, found, self.device)

    def _keep(self, view: int, found: Pass, row: int) -> None:
        height, width = self.views.sizes[view].tolist()
        depth, confidence, valid = depth_on_view(
            found.depth[row],
            found.confidence[row],
            self.grid_from_view[view],
            self.frames.layout.content[view],
            (height, width),
        )
        if self.views.masks is not None:
            valid = valid & self.views.masks[view, :height, :width]
        self.depth[view, :height, :width] = depth
        self.confidence[view, :height, :width] = confidence
        self.valid[view, :height, :width] = valid

    def _samples(self, found: Pass, index: Sequence[int]) -> chunks.Samples:
        points, weights = [], []
        for row, view in enumerate(index):
            pixels, where = sample_pixels(self.frames.layout.content[view], _SAMPLES)
            depth = found.depth[row][where]
            known = (depth > 0) & found.usable[row]
            at = lift(depth, pixels, found.K[row], found.w2c[row])
            points.append(torch.where(known[:, None], at, torch.nan))
            weights.append(found.confidence[row][where].double().clamp_min(1e-6))
        return chunks.Samples(points=torch.stack(points), weights=torch.stack(weights))

    def _links(
        self, plan: list[list[int]], owner: list[int], samples: list[chunks.Samples]
    ) -> list[chunks.Link]:
        links = []
        for b in range(1, len(plan)):
            link = self._link(plan, samples, b - 1, b)
            links += [] if link is None else [link]
        if not self.options.loops or len(plan) < 3:
            return links
        pairs = chunks.loop_pairs(self.thumbs, plan, owner)
        for number, (first, second) in enumerate(pairs):
            self._tell("loops", number, len(pairs))
            link = self._loop(plan, owner, samples, first, second)
            links += [] if link is None else [link]
        return links

    def _link(
        self, plan: list[list[int]], samples: list[chunks.Samples], a: int, b: int
    ) -> chunks.Link | None:
        rows = [(plan[a].index(view), row) for row, view in enumerate(plan[b]) if view in plan[a]]
        found = chunks.join(samples[a], samples[b], rows, self.options.seed)
        return None if found is None else chunks.Link(target=a, source=b, similarity=found)

    def _loop(
        self,
        plan: list[list[int]],
        owner: list[int],
        samples: list[chunks.Samples],
        first: int,
        second: int,
    ) -> chunks.Link | None:
        """Run the surroundings of two views together, and join their chunks through that."""
        a, b = owner[first], owner[second]
        half = max(2, len(plan[a]) // 2)
        near = [chunks.around(first, plan[a], half), chunks.around(second, plan[b], half)]
        index = sorted({*near[0], *near[1]})
        found = self._pass(index)
        own = self._samples(found, index)
        # A network also answers when two places have nothing in common; then nothing is confirmed.
        parts = [[index.index(view) for view in part] for part in near]
        if confirmed_share(found, own.points, parts[0], parts[1]) < _CONFIRMED:
            return None
        sides = []
        for chunk, part in zip((a, b), near, strict=True):
            rows = [(plan[chunk].index(view), index.index(view)) for view in part]
            sides.append(chunks.join(samples[chunk], own, rows, self.options.seed))
        if sides[0] is None or sides[1] is None:
            return None
        return chunks.Link(target=a, source=b, similarity=sides[0] @ sides[1].inverse())

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.options.progress is not None:
            self.options.progress(stage, float(done), float(total))


def _moved(w2c: Float[Tensor, "4 4"], place: Similarity) -> Float[Tensor, "4 4"]:
    """Return a camera carried along by a similarity of the world."""
    result = w2c.clone()
    result[:3, :3] = w2c[:3, :3] @ place.rotation.mT
    result[:3, 3] = place.scale * w2c[:3, 3] - result[:3, :3] @ place.translation
    return result


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
