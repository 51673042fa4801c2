"""Masks of single views become objects of the scene, made of splats.

Each mask is carried onto the splats that paint its pixels. Masks of different views that fall on
the same splats are one object; every splat then belongs to the object that most of what is seen of
it lies in. A view in which an object has no mask says nothing about it, so missing masks do no
harm, and masks that no other view confirms are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from sightline.errors import InputError, ShapeError
from sightline.protocols import Progress
from sightline.splatting.lift import lift_to_gaussians
from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, Gaussians, InstanceMasks, TensorStruct

_BLENDED = 0.5
"""Coverage from which a pixel shows something."""
_SEEN = 0.05
"""Pixels of a splat in one view from which its masks tell something about it."""
_NEIGHBORS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftOptions:
    """How masks become objects."""

    iou: float = 0.25
    """Least overlap, on the splats that both have seen, of masks of one object."""
    share: float = 0.5
    """Least part of a splat that lies in an object's masks."""
    least_views: int = 2
    """Views that must show an object; 1 where there are fewer than three views."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneObjects(TensorStruct):
    """Objects of a scene; O of them, N splats."""

    owner: Int64[Tensor, " N"]
    """Object of each splat; -1 for none."""
    shares: Float[Tensor, " N"]
    """Part of what is seen of the splat that lies in its object's masks."""
    labels: Int64[Tensor, " O"]
    """Class of each object, as the masks say; -1 for unknown."""
    views: Bool[Tensor, "O V"]
    """Which views have a mask of it."""
    of_mask: tuple[Int64[Tensor, " _"], ...] = ()
    """For each view, the object of each of its masks; -1 where the mask was left out."""

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.labels)

    def select(self, gaussians: Gaussians, index: int, *, keep: bool = True) -> Gaussians:
        """Return the splats of one object, or with ``keep=False`` all others.

        Raises:
            InputError: There is no such object.
        """
        if not 0 <= index < len(self):
            raise InputError(
                f"expected an object from 0 to {len(self) - 1}, got {index}; see the list of objects"
            )
        chosen = (self.owner == index) == keep
        return gaussians.map(lambda t: t[chosen.to(t.device)])


def lift_objects(
    gaussians: Gaussians,
    cameras: Cameras,
    instances: Sequence[InstanceMasks],
    *,
    known: Sequence[Int64[Tensor, " _"]] | None = None,
    options: LiftOptions | None = None,
    progress: Progress | None = None,
) -> SceneObjects:
    """Make objects of the scene from the masks of its views.

    Args:
        gaussians: The scene.
        cameras: Of the views, all with a pose.
        instances: Masks of each view, at the cameras' size (see `fit_masks`); their labels keep
            masks of different classes apart.
        known: For each view, the number of the object that each mask shows, from 0 on; None finds
            out which masks are of one object.
        options: Numbers.
        progress: Called as ``progress("lift masks", done, total)``.

    Raises:
        ShapeError: Counts or sizes do not agree.
    """
    options = options or LiftOptions()
    _check(cameras, instances, known)
    tell = _Counter(progress, len(instances) * (2 if known is None else 1))
    device = gaussians.means.device

    seen = gaussians.means.new_zeros(len(gaussians))

    def carried(view: int) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"]]:
        tell()
        masks = instances[view].masks.to(device).float()
        lifted = lift_to_gaussians(gaussians, cameras.select([view]), [masks])
        torch.maximum(seen, lifted.weights, out=seen)
        return lifted.weights, lifted.values

    votes = _Votes(len(gaussians), device)
    of_mask: list[Tensor] = []
    least = 1
    if known is None:
        least = options.least_views if len(instances) > 2 else 1
        first = _Votes(len(gaussians), device)
        for view, found in enumerate(instances):
            first.grow(*carried(view), found.labels, options.iou)
        votes.extend(first.labels)
        # Once more with what all views have found: the first ones had little to compare with.
        for view, found in enumerate(instances):
            weights, parts = carried(view)
            of_mask.append(first.match(weights, parts, found.labels, options.iou))
            votes.add(of_mask[view], weights, parts)
    else:
        of_mask = [ids.cpu() for ids in known]
        count = max((int(ids.max()) + 1 for ids in of_mask if len(ids)), default=0)
        votes.extend([_label_of(number, of_mask, instances) for number in range(count)])
        for view, ids in enumerate(of_mask):
            votes.add(ids, *carried(view))
    objects = _settle(votes, of_mask, least, options.share)
    unseen = (seen < _SEEN).cpu()
    owner = _follow_neighbors(gaussians.means.detach().cpu(), objects.owner, unseen)
    return replace(objects, owner=owner)


def fit_masks(
    instances: InstanceMasks, from_original: Float[Tensor, "3 3"], size: tuple[int, int]
) -> InstanceMasks:
    """Bring masks of an original picture to the size of a scene's view.

    Args:
        instances: At the original's size.
        from_original: Maps original pixels to those of the view (``Views.from_original``).
        size: Height and width of the view; what the picture does not reach is empty.
    """
    height, width = instances.masks.shape[1:]
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    inverse = torch.linalg.inv(from_original.double())
    source = grid @ inverse[:2, :2].T + inverse[:2, 2]
    unit = 2 * source / torch.tensor([width, height], dtype=torch.float64) - 1
    where = unit.float()[None].expand(len(instances.masks), -1, -1, -1)
    # Averaging first: a thin object must not fall between the samples.
    step = max(1, round(float(inverse[:2, :2].det().abs().sqrt())))
    soft = instances.masks[:, None].float()
    if step > 1:
        soft = functional.avg_pool2d(soft, step, ceil_mode=True, count_include_pad=False)
    read = functional.grid_sample(soft, where, "bilinear", "zeros", align_corners=False)
    scale = from_original.diagonal()[:2].float().repeat(2)
    return InstanceMasks(
        masks=read[:, 0] >= 0.5,
        boxes=instances.boxes * scale,
        labels=instances.labels,
        scores=instances.scores,
    )


@torch.no_grad()
def render_objects(
    gaussians: Gaussians,
    objects: SceneObjects,
    cameras: Cameras,
    progress: Progress | None = None,
) -> Int64[Tensor, "V H W"]:
    """Draw which object each pixel of any camera shows; -1 where none does.

    Args:
        gaussians: The scene that ``objects`` was made for.
        objects: Its objects.
        cameras: New or old views.
        progress: Called as ``progress("render objects", done, total)``.
    """
    if len(objects.owner) != len(gaussians):
        raise ShapeError(
            f"expected objects of {len(gaussians)} splats, got them of {len(objects.owner)}; "
            "lift the masks onto this scene"
        )
    device = gaussians.means.device
    tell = _Counter(progress, len(cameras), "render objects")
    shown = functional.one_hot(objects.owner.to(device) + 1, len(objects) + 1).float()
    drawn = []
    for view in range(len(cameras)):
        camera = cameras.select([view])
        image, alpha, _ = rasterization(
            means=gaussians.means, quats=gaussians.quats, scales=gaussians.scales,
            opacities=gaussians.opacities, colors=shown,
            viewmats=camera.w2c.to(device, torch.float32), Ks=camera.K.to(device, torch.float32),
            width=cameras.width, height=cameras.height,
            rasterize_mode="antialiased" if gaussians.antialiased else "classic",
        )  # fmt: skip
        winner = image[0].argmax(-1) - 1
        drawn.append(torch.where(alpha[0, ..., 0] >= _BLENDED, winner, -1).cpu())
        tell()
    size = (0, cameras.height, cameras.width)
    return torch.stack(drawn) if drawn else torch.empty(size, dtype=torch.int64)


class _Counter:
    """Tells progress one step at a time."""

    def __init__(self, progress: Progress | None, total: int, stage: str = "lift masks") -> None:
        self.progress, self.total, self.stage, self.done = progress, total, stage, 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.stage, float(min(self.done, self.total)), float(self.total))


class _Votes:
    """For each object and splat: how much was seen, and how much of that lay in its masks."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.labels: list[int] = []
        self.inside = torch.zeros(0, count, device=device)
        self.seen = torch.zeros(0, count, device=device)

    def extend(self, labels: Sequence[int]) -> None:
        more = self.inside.new_zeros(len(labels), self.inside.shape[1])
        self.labels = [*self.labels, *labels]
        self.inside, self.seen = torch.cat([self.inside, more]), torch.cat([self.seen, more])

    def add(self, ids: Tensor, weights: Tensor, parts: Tensor) -> None:
        """Count one view's masks for their objects; -1 for none."""
        for number in ids.unique().tolist():
            if number >= 0:
                part = parts[:, (ids == number).to(parts.device)].sum(1).clamp(max=1)
                self.inside[number] += weights * part
                self.seen[number] += weights

    def shares(self) -> Tensor:
        return self.inside / self.seen.clamp(min=1e-6)

    def match(self, weights: Tensor, parts: Tensor, labels: Tensor, least: float) -> Tensor:
        """Return the object of each mask of a view; -1 where none fits."""
        found = torch.full((parts.shape[1],), -1)
        if not self.labels or not len(found):
            return found
        shares = self.shares()
        # [O N]: a splat counts as much as both have seen of it; at rims that is next to nothing.
        known = torch.minimum(weights, self.seen)
        both = (known * shares) @ parts
        union = (known * shares).sum(1)[:, None] + known @ parts - both
        iou = both / union.clamp(min=1e-6)
        # A mask that lies nearly all on splats which the object's views never saw tells nothing.
        iou *= (known @ parts) > 0.02 * (weights @ parts)
        own = torch.tensor(self.labels)[:, None]
        apart = (own != labels.cpu()) & (own >= 0) & (labels.cpu() >= 0)
        iou = iou.cpu().masked_fill(apart, 0.0)
        rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
        good = iou[rows, columns] >= least
        found[torch.from_numpy(columns)[good]] = torch.from_numpy(rows)[good]
        return found

    def grow(self, weights: Tensor, parts: Tensor, labels: Tensor, least: float) -> None:
        """Match a view's masks to the objects so far; the others become new ones."""
        ids = self.match(weights, parts, labels, least)
        new = (ids < 0).nonzero()[:, 0]
        ids[new] = torch.arange(len(new)) + len(self.labels)
        self.extend(labels.cpu()[new].tolist())
        self.add(ids, weights, parts)


def _settle(votes: _Votes, of_mask: list[Tensor], least: int, share: float) -> SceneObjects:
    """Drop what too few views show, and give every splat to one object."""
    views = torch.zeros(len(votes.labels), len(of_mask), dtype=torch.bool)
    for view, ids in enumerate(of_mask):
        views[ids[ids >= 0], view] = True
    kept = (views.sum(1) >= least).nonzero()[:, 0]
    place = torch.full((len(votes.labels) + 1,), -1)
    place[kept] = torch.arange(len(kept))
    shares = votes.shares().cpu()[kept]
    if len(kept):
        best, owner = shares.max(0)
        owner = torch.where(best >= share, owner, -1)
    else:
        best = shares.new_zeros(shares.shape[1])
        owner = torch.full((shares.shape[1],), -1)
    return SceneObjects(
        owner=owner,
        shares=torch.where(owner >= 0, best, 0.0),
        labels=torch.tensor(votes.labels, dtype=torch.int64)[kept],
        views=views[kept],
        of_mask=tuple(place[ids] for ids in of_mask),  # -1 reads the last entry, which is -1
    )


def _follow_neighbors(
    means: Float[Tensor, "n 3"], owner: Int64[Tensor, " n"], unseen: Bool[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """Give splats that no view shows to what most of their nearest neighbours belong to."""
    count = min(_NEIGHBORS, int((~unseen).sum()))
    if not count or not bool(unseen.any()):
        return owner
    known = owner[~unseen]
    _, near = KDTree(means[~unseen].numpy()).query(means[unseen].numpy(), count)
    filled = owner.clone()
    filled[unseen] = known[torch.from_numpy(near).view(-1, count)].mode(1).values
    return filled


def _label_of(number: int, of_mask: Sequence[Tensor], instances: Sequence[InstanceMasks]) -> int:
    """Return the label of the first mask of an object."""
    for ids, found in zip(of_mask, instances, strict=True):
        where = (ids == number).nonzero()[:, 0]
        if len(where):
            return int(found.labels[where[0]])
    return -1


def _check(
    cameras: Cameras,
    instances: Sequence[InstanceMasks],
    known: Sequence[Tensor] | None,
) -> None:
    size = (cameras.height, cameras.width)
    if len(instances) != len(cameras):
        raise ShapeError(
            f"expected masks for each of {len(cameras)} views, got {len(instances)}; views without "
            "any need an empty record"
        )
    for view, found in enumerate(instances):
        if tuple(found.masks.shape[1:]) != size:
            raise ShapeError(
                f"expected masks of {size[0]} x {size[1]} pixels, got "
                f"{list(found.masks.shape[1:])} in view {view}; use fit_masks"
            )
        if known is not None and len(known[view]) != len(found.masks):
            raise ShapeError(
                f"expected the object of each of {len(found.masks)} masks in view {view}, got "
                f"{len(known[view])}"
            )
