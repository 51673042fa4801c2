"""The passes of one scene through a network, joined into one world."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.errors import OutOfMemoryError
from sightline.geometry.align import Similarity
from sightline.protocols import Progress
from sightline.reconstruction.learned import chunks
from sightline.reconstruction.learned.layout import Frames
from sightline.reconstruction.learned.maps import depth_on_view
from sightline.reconstruction.learned.passes import (
    Head,
    Pass,
    confirmed_share,
    lift,
    run_pass,
    sample_pixels,
)
from sightline.reconstruction.learned.tracks import track_points
from sightline.types import Reconstruction, SparsePoints

_CONFIRMED = 0.2
"""Share of points that both ends of a loop must see alike."""
_SAMPLES = 24
"""Side of the grid of pixels by which passes are joined."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Cameras of all views in one world."""

    w2c: Float[Tensor, "V 4 4"]
    K: Float[Tensor, "V 3 3"]
    """Pixels of the frames."""
    has_focal: Bool[Tensor, " V"]
    """False where the network gave no usable field of view."""
    registered: Bool[Tensor, " V"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """What passes need to know of an estimator's options; see there."""

    name: str
    device: str
    head: Head
    loops: bool
    tracks: int
    raw: bool
    seed: int
    progress: Progress | None


class ScenePasses:
    """The passes of one scene, and the growing maps of its views.

    Attributes:
        depth, confidence, valid: At the views' pixels, in the world of all views after `run`.
        raw: The network's outputs, one a pass, where they are kept.
    """

    def __init__(self, options: PassOptions, model: nn.Module, frames: Frames) -> None:
        """Start with empty maps."""
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
        """Run every chunk, and put all views into the world of the first."""
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
