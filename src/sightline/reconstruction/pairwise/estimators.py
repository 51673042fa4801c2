"""DUSt3R, MASt3R and Splatt3R as geometry estimators."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sightline.errors import InputError, OutOfMemoryError
from sightline.geometry.align import transform_gaussians
from sightline.protocols import Progress
from sightline.reconstruction.learned.chunks import thumbnails
from sightline.reconstruction.learned.gauge import align_cameras
from sightline.reconstruction.learned.memory import free_memory
from sightline.reconstruction.pairwise.align import Distance, Schedule, Weighting
from sightline.reconstruction.pairwise.frames import PairFrames, make_frames, reconstruction
from sightline.reconstruction.pairwise.graph import Pair, count_groups, make_pairs
from sightline.reconstruction.pairwise.images import Picture
from sightline.reconstruction.pairwise.inference import Both, PairCache, PairResult, run_pairs
from sightline.reconstruction.pairwise.matching import Matches, match_symmetric
from sightline.reconstruction.pairwise.pairs import PairMaps, Predictions
from sightline.reconstruction.pairwise.solve import (
    Solution,
    solve_cloud,
    solve_single,
    solve_sparse,
    solve_viewer,
)
from sightline.reconstruction.pairwise.tree import TreeMode
from sightline.types import Gaussians, Reconstruction, Views

Aligner = Literal["auto", "viewer", "cloud", "modular", "sparse"]

_ALL_PAIRS = 20
_PIXEL_BYTES = 20.0
"""Points, confidence and what masks copy of them, for every pixel of a prediction."""
_SHARE = 0.8
"""Part of the free memory that predictions may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dust3rEstimator:
    """Cameras and dense depth from pairs of pictures with DUSt3R (Wang et al. 2024).

    Every picture is encoded once, every pair of the graph decoded once; then all pairs are put into
    one world. One picture is paired with itself and gives depth and a focal length. Pairs that
    contradict the majority are left out.

    The world is the first view's camera (OpenCV axes) and the unit of length the median depth of
    what is valid; where two or more views come with poses these are kept, and the world is theirs.
    Known intrinsics are kept too.
    """

    name: ClassVar[str] = "dust3r"
    metric: ClassVar[bool] = False
    square: ClassVar[bool] = False

    checkpoint: Path | str | None = None
    """Weights with the official names; None takes those downloaded before, if any."""
    model: nn.Module | None = None
    """Any module with the network's outputs, in place of ``checkpoint``."""
    device: str = "cpu"
    graph: str = "auto"
    """Which pairs, see `graph.make_pairs`; ``auto`` takes all of up to 20 pictures, and of more
    those 1, 2, 4, 8 and 16 apart in order. ``retrieval`` goes by thumbnails."""
    prefilter: str | None = None
    size: int = 512
    """Long side of the network's pictures; 224 for networks of that size, which cuts squares."""
    square_ok: bool = False
    """Let square pictures be square instead of cutting them to 4:3."""
    patch_size: int = 16
    aligner: Aligner = "auto"
    """``viewer`` (two pictures, no optimisation), ``cloud`` (the point-cloud optimiser),
    ``modular`` (every pair counts the same), for MASt3R also ``sparse``. ``auto`` chooses by
    number of pictures and by what is known."""
    iterations: int = 300
    rate: float = 0.01
    schedule: Schedule = "cosine"
    """How the step size falls."""
    distance: Distance = "l1"
    weighting: Weighting = "log"
    min_confidence: float = 3.0
    """Above it, a pixel helps to find poses."""
    most_points: int = 2048
    """Pixels of a picture that the optimiser works on; depth of all follows in closed form."""
    batch: int = 1
    """Pairs decoded at once."""
    shared_focal: bool = False
    """Give all pictures the mean of the first guesses of their focal lengths, for good (``cloud``)."""
    known_focal: float | None = None
    """Of all pictures, in pixels of the pictures as they come (``cloud``)."""
    robust: bool = True
    """Leave out pairs that contradict the others."""
    clean: bool = True
    """Drop points that other pictures look through."""
    raw: bool = False
    """Do as the original does: whole pixels, nothing known, every pair, every pixel. K is then off
    by half a pixel, and ``raw`` of the result is the `solve.Solution` in the aligner's world and
    unit, with depth also where `clean` took confidence away."""
    cache: Path | None = None
    """Folder of predictions, kept by the content of pictures and network."""
    workspace: Path | None = None
    """Not needed; every estimator takes one."""
    seed: int = 0
    """Of the choice of key pictures."""
    progress: Progress | None = None
    """Called with the stages ``load``, ``pairs`` and ``align``."""
    loaded: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    """The network once it is loaded; shared by copies that `dataclasses.replace` makes."""

    def estimate(self, views: Views) -> Reconstruction:
        """Find cameras and depth.

        Args:
            views: The pictures; ``files`` are read where given. Known lenses and cameras are kept;
                ``masks`` limit what counts.

        Returns:
            Pinhole cameras (float64) in pixels of the full-size pictures; depth, points,
            confidence (at least 1) and validity at the views' pixels. Margins, what the network's
            crop cuts off and masked pixels are not valid.

        Raises:
            InputError: If there is no picture, or an option does not fit.
            CheckpointError: If there are no weights, or they are another network's.
            ReconstructionError: If the pairs do not link the pictures.
            Cancelled: If ``progress`` raised it.
        """
        frames = self._frames(views)
        return self._reconstruction(frames, self._solve(frames))

    def _frames(self, views: Views) -> PairFrames:
        if len(views) == 0:
            raise InputError("expected one or more pictures, got none; give a folder of photos")
        if self.size % self.patch_size:
            raise InputError(
                f"size must be a multiple of the patch of {self.patch_size} pixels, got {self.size}"
                f"; the nearest is {max(1, round(self.size / self.patch_size)) * self.patch_size}"
            )
        return make_frames(
            views,
            self.size,
            square=self.square,
            square_ok=self.square_ok,
            patch_size=self.patch_size,
            raw=self.raw,
        )

    def _reconstruction(
        self,
        frames: PairFrames,
        solution: Solution,
        raw: Any = None,  # noqa: ANN401
    ) -> Reconstruction:
        raw = solution if raw is None and self.raw else raw
        poses, depth = solution.poses.clone(), solution.depth
        if self.metric:  # back to the unit that the network speaks
            poses[:, :3, 3] /= solution.scale
            depth = [d / solution.scale for d in depth]
        return reconstruction(
            frames,
            K=solution.K,
            poses=poses,
            depth=depth,
            confidence=solution.confidence,
            metric=self.metric,
            raw=raw,
        )

    def _pairs(self, frames: PairFrames) -> list[Pair]:
        count = len(frames.pictures)
        if count == 1:
            return [(0, 0)]
        graph, similarity = self.graph, None
        if graph == "auto":
            graph = "complete" if count <= _ALL_PAIRS else "logwin-5-noncyclic"
        if graph.startswith("retrieval"):
            thumbs = thumbnails(frames.views)
            similarity = (thumbs @ thumbs.T).clamp(0, 1).numpy()
        pairs = make_pairs(
            graph, count, prefilter=self.prefilter, similarity=similarity, seed=self.seed
        )
        if count_groups(pairs, count) > 1:
            raise InputError(
                f'the graph "{graph}" does not link all {count} pictures; use a wider one'
            )
        self._check_memory(frames, pairs)
        return pairs

    def _check_memory(self, frames: PairFrames, pairs: list[Pair]) -> None:
        """Refuse a graph whose predictions do not fit."""
        area = {i: p.size[0] * p.size[1] for i, p in enumerate(frames.pictures)}
        need = sum(_PIXEL_BYTES * (area[i] + area[j]) for i, j in pairs)
        free = free_memory(torch.device("cpu"))
        if free is not None and need > _SHARE * free:
            raise OutOfMemoryError(
                f"the predictions of {len(pairs)} pairs need about {need / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB of memory are free; use a sparser graph (swin-3, logwin-4) or "
                "fewer pictures (--max-frames)"
            )

    def _solve(self, frames: PairFrames) -> Solution:
        pairs = self._pairs(frames)
        predictions = {pair: maps for pair, maps, _ in self._predict(frames, pairs)}
        return self._align(frames, _ordered(predictions, pairs))

    def _align(self, frames: PairFrames, predictions: Predictions) -> Solution:
        count = len(frames.pictures)
        if count == 1:
            return solve_single(frames, predictions)
        aligner = self.aligner
        if aligner == "auto":
            known = int(frames.posed.sum()) > 1
            aligner = "viewer" if count == 2 and not known else "cloud"
        if aligner == "viewer":
            if set(predictions) != {(0, 1), (1, 0)}:
                raise InputError(
                    f"the viewer shows one pair in both orders, got {count} pictures and "
                    f"{len(predictions)} pairs; use --aligner cloud"
                )
            return solve_viewer(frames, predictions, min_confidence=self.min_confidence)
        if aligner == "sparse":
            raise InputError(f"{self.name} has no descriptors to match; use the aligner cloud")
        return solve_cloud(
            frames,
            predictions,
            per_edge=aligner == "modular",
            iterations=self.iterations,
            rate=self.rate,
            schedule=self.schedule,
            shared_focal=self.shared_focal,
            known_focal=self.known_focal,
            distance=self.distance,
            weighting=self.weighting,
            min_confidence=self.min_confidence,
            most_points=self.most_points,
            robust=self.robust,
            clean=self.clean,
            on_step=self._tell("align"),
        )

    def _tell(self, stage: str):  # noqa: ANN202
        def tell(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(stage, float(done), float(total))

        return tell

    def _network(self) -> nn.Module:
        model = self.model or self.loaded.get(self.name)
        if model is None:
            from sightline.reconstruction.learned.weights import find_weights, load_pair_network

            path = find_weights(self.name, self.checkpoint, self.progress)
            self._tell("load")(0, 1)
            model = load_pair_network(self.name, path)
            self.loaded[self.name] = model
            self._tell("load")(1, 1)
        return model.eval().to(self.device)

    def _predict(
        self, frames: PairFrames, pairs: list[Pair]
    ) -> Iterable[tuple[Pair, PairMaps, dict[str, Tensor]]]:
        """Yield every ordered pair with its point maps and what else is kept of it."""
        model = self._network()
        pictures = frames.pictures
        cache = None if self.cache is None else PairCache(self.cache, model, self._kept())
        groups: dict[Pair, list[Pair]] = {}
        for i, j in dict.fromkeys(pairs):
            groups.setdefault((min(i, j), max(i, j)), []).append((i, j))
        todo: list[Pair] = []
        for both in groups.values():
            stored = {} if cache is None else self._stored(cache, pictures, both)
            if len(stored) < len(both):
                todo += both
                continue
            for pair, kept in stored.items():
                yield pair, frames.maps(pair, _unpacked(kept)), kept
        tell, before = self._tell("pairs"), len(groups) - len({frozenset(pair) for pair in todo})
        done = run_pairs(
            model,
            pictures,
            todo,
            device=self.device,
            batch=self.batch,
            on_done=lambda count, _: tell(before + count, len(groups)),
        )
        for both in done:
            for pair, kept in self._keep(both).items():
                if cache is not None:
                    cache.store(pictures[pair[0]], pictures[pair[1]], kept)
                yield pair, frames.maps(pair, _unpacked(kept)), kept

    def _stored(
        self, cache: PairCache, pictures: list[Picture], pairs: list[Pair]
    ) -> dict[Pair, dict[str, Tensor]]:
        """Return what the cache has of some pairs."""
        found = {pair: cache.load(pictures[pair[0]], pictures[pair[1]]) for pair in pairs}
        return {
            pair: kept
            for pair, kept in found.items()
            if kept is not None and _complete(kept, *(pictures[i].size for i in pair))
        }

    def _kept(self) -> str:
        """Name what `_keep` depends on."""
        return "points"

    def _keep(self, both: Both) -> dict[Pair, dict[str, Tensor]]:
        """Choose what is kept of the predictions of a pair, by direction."""
        return {pair: _packed(result) for pair, result in both.items()}


def _ordered(predictions: Predictions, pairs: list[Pair]) -> Predictions:
    return {pair: predictions[pair] for pair in dict.fromkeys(pairs)}


def _packed(result: PairResult) -> dict[str, Tensor]:
    return {
        f"{name}{number}": side[name]
        for number, side in enumerate(result, 1)
        for name in ("pts3d", "conf")
    }


def _unpacked(kept: dict[str, Tensor]) -> PairResult:
    first, second = (
        {name: kept[f"{name}{number}"] for name in ("pts3d", "conf")} for number in (1, 2)
    )
    return PairResult(first, second)


def _complete(stored: dict[str, Tensor], first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether a cache entry has the point maps of pictures of these sizes."""
    want = {
        f"{name}{number}": (*size, *more)
        for number, size in ((1, first), (2, second))
        for name, more in (("pts3d", (3,)), ("conf", ()))
    }
    return all(
        name in stored and tuple(stored[name].shape) == shape for name, shape in want.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mast3rEstimator(Dust3rEstimator):
    """Cameras and dense depth in metres with MASt3R (Leroy et al. 2024, Duisterhof et al. 2024).

    As `Dust3rEstimator`, but with matches between pictures: the sparse alignment is used where the
    model gives descriptors, unless poses are known, which only the point-cloud optimiser can keep.
    """

    name: ClassVar[str] = "mast3r"
    metric: ClassVar[bool] = True

    subsample: int = 8
    """Step of the grid on which depth is optimised and matches start."""
    tree: TreeMode = "hclust-ward"
    coarse: tuple[int, float, float] = (300, 0.07, 1.5)
    """Steps, step size and gamma of the first stage of the sparse alignment."""
    fine: tuple[int, float, float] = (300, 0.01, 0.5)
    """Of the second."""
    min_match_confidence: float = 5.0
    """Pairs without a better match are compared point by point."""
    shared_intrinsics: bool = False
    """One camera took all pictures."""
    optimize_center: bool = False
    """Let principal points move; the original does."""

    def _kept(self) -> str:
        return f"matches {self.subsample}" if self.aligner in ("auto", "sparse") else "points"

    def _keep(self, both: Both) -> dict[Pair, dict[str, Tensor]]:
        kept = {pair: _packed(result) for pair, result in both.items()}
        first = next(iter(both))
        back = first[::-1]
        wanted = self.aligner == "sparse" or (
            self.aligner == "auto" and "desc" in both[first].first
        )
        if first[0] == first[1] or back not in both or not wanted:
            return kept
        if "desc" not in both[first].first:
            raise InputError(
                "the model gives no descriptors (desc, desc_conf); use the aligner cloud, or "
                "geometry dust3r"
            )
        there, here = both[first], both[(back[0], back[1])]
        found = match_symmetric(
            (_descriptors(there.first), _descriptors(here.second)),
            (_descriptors(there.second), _descriptors(here.first)),
            subsample=self.subsample,
        )
        kept[first] |= {
            "xy1": found.xy1.int(), "xy2": found.xy2.int(), "match_conf": found.confidence
        }  # fmt: skip
        return kept

    def _solve(self, frames: PairFrames) -> Solution:
        count = len(frames.pictures)
        pairs = self._pairs(frames)
        predictions: Predictions = {}
        matches: dict[Pair, Matches] = {}
        for pair, maps, kept in self._predict(frames, pairs):
            predictions[pair] = maps
            if "xy1" in kept:
                found = Matches(kept["xy1"].long(), kept["xy2"].long(), kept["match_conf"])
                matches[pair] = _counted(frames, pair, found)
        predictions = _ordered(predictions, pairs)
        aligner = self.aligner
        if aligner == "auto" and count > 1:
            aligner = "sparse" if matches and int(frames.posed.sum()) < 2 else "cloud"
        if count == 1 or aligner != "sparse":
            return replace(self, aligner=aligner)._align(frames, predictions)
        optimize_center = self.optimize_center or self.raw
        return solve_sparse(
            frames,
            predictions,
            {pair: matches[pair] for pair in pairs if pair in matches},
            subsample=self.subsample,
            tree=self.tree,
            coarse=self.coarse,
            fine=self.fine,
            min_match_confidence=self.min_match_confidence,
            shared_intrinsics=self.shared_intrinsics,
            optimize_center=optimize_center,
            robust=self.robust,
            clean=self.clean,
            on_step=self._tell("align"),
        )


def _descriptors(side: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return side["desc"], side.get("desc_conf", side["conf"])


def _counted(frames: PairFrames, pair: Pair, matches: Matches) -> Matches:
    """Leave out matches at masked pixels."""
    keep = torch.ones(len(matches.confidence), dtype=torch.bool)
    for image, xy in zip(pair, matches[:2], strict=True):
        mask = frames.pictures[image].mask
        if mask is not None:
            keep &= torch.from_numpy(mask)[xy[:, 1], xy[:, 0]]
    return Matches(*(part[keep] for part in matches))


_SPLATS = ("means", "scales", "rotations", "sh", "opacities")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splatt3rEstimator(Dust3rEstimator):
    """Splats from pairs in one pass, in metres, with Splatt3R (Smart et al. 2024).

    Two pictures are what the network was made for; one is paired with itself, and more are chained:
    each with the next. Pictures are cut to centred squares.
    """

    name: ClassVar[str] = "splatt3r"
    metric: ClassVar[bool] = True
    square: ClassVar[bool] = True

    graph: str = "swin-1-noncyclic"

    def estimate(self, views: Views) -> Reconstruction:
        """Find cameras, depth, and splats, which are in ``raw``; see `Dust3rEstimator.estimate`."""
        return self.splats(views)[0]

    def splats(self, views: Views) -> tuple[Reconstruction, Gaussians]:
        """Return cameras with depth, and the splats in the same world."""
        frames = self._frames(views)
        count = len(frames.pictures)
        pairs = self._pairs(frames)
        predictions: Predictions = {}
        kept: dict[Pair, dict[str, Tensor]] = {}
        for pair, maps, parts in self._predict(frames, pairs):
            predictions[pair] = maps
            kept[pair] = parts
        solution = self._align(frames, _ordered(predictions, pairs))
        made = self._reconstruction(frames, solution)
        parts = [self._of_view(view, solution, predictions, kept) for view in range(count)]
        joined = Gaussians(
            means=torch.cat([part.means for part in parts]),
            quats=torch.cat([part.quats for part in parts]),
            scales=torch.cat([part.scales for part in parts]),
            opacities=torch.cat([part.opacities for part in parts]),
            sh=torch.cat([part.sh for part in parts]),
        )
        # The record has a world of its own; the splats go where the cameras went.
        solved = solution.poses.double()
        solved[:, :3, 3] /= solution.scale
        world = align_cameras(torch.linalg.inv(solved), made.cameras.w2c.double())
        world = replace(world, scale=world.scale / solution.scale)
        splats = transform_gaussians(joined, world.map(lambda t: t.float()))
        return replace(made, raw=splats), splats

    def _of_view(
        self,
        view: int,
        solution: Solution,
        predictions: Predictions,
        kept: dict[Pair, dict[str, Tensor]],
    ) -> Gaussians:
        """Return a picture's splats from its surest pair, in the solution's world."""
        rows = [(pair, side) for pair in solution.pairs for side in (0, 1) if pair[side] == view]
        pair, side = max(rows, key=lambda row: (row[1] == 0, predictions[row[0]].score))
        parts = {name: kept[pair][f"{name}{side + 1}"] for name in _SPLATS}
        counted = predictions[pair].confidence[side] > 0
        flat = {name: value[counted] for name, value in parts.items()}
        x, y, z, w = flat["rotations"].unbind(-1)
        gaussians = Gaussians(
            means=flat["means"],
            quats=torch.stack([w, x, y, z], -1),
            scales=flat["scales"],
            opacities=flat["opacities"].squeeze(-1),
            sh=flat["sh"].mT.contiguous(),
        )
        return transform_gaussians(gaussians, solution.pairs[pair])

    def _kept(self) -> str:
        return "splats"

    def _keep(self, both: Both) -> dict[Pair, dict[str, Tensor]]:
        kept = super(Splatt3rEstimator, self)._keep(both)
        for pair, result in both.items():
            for number, side in enumerate(result, 1):
                missing = [name for name in _SPLATS if name not in side]
                if missing:
                    raise InputError(
                        f"the model gives no {', '.join(missing)}; it is no Splatt3R network"
                    )
                kept[pair] |= {f"{name}{number}": side[name] for name in _SPLATS}
        return kept
