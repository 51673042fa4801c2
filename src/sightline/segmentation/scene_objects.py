"""Masks of single views become objects of the scene, made of splats.

`scene_votes` finds out which masks show one object, and which to believe. Then every splat gets a
share in each object, so that the drawn shares come nearest to the masks (`splatting.lift_fit`): a
splat on an edge may belong to both sides, which keeps drawn edges as sharp as the masks'. A view in
which an object has no mask but ought to show says nothing about it, so missing masks do no harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from sightline.errors import InputError, ShapeError
from sightline.protocols import Progress
from sightline.segmentation.scene_votes import Carried, Votes, count_votes
from sightline.splatting.channels import draw_values
from sightline.splatting.lift_fit import FitOptions, ViewMaps, fit_to_gaussians
from sightline.types import Cameras, Gaussians, InstanceMasks, TensorStruct

_BLENDED = 0.5
"""Coverage from which a pixel shows something."""
_SEEN = 0.05
"""Pixels of a splat in one view from which its masks tell something about it."""
_NEIGHBORS = 9
_CHANNELS = 64
"""Drawn at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftOptions:
    """How masks become objects."""

    iou: float = 0.25
    """Least overlap, on the splats that both have seen, of masks of one object."""
    share: float = 0.3
    """Least share in an object of the splats that belong to it."""
    least_views: int = 2
    """Views that must show an object; 1 where there are fewer than three views."""
    fit: FitOptions = field(default_factory=FitOptions)
    """How shares are fitted to the masks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneObjects(TensorStruct):
    """Objects of a scene; O of them, N splats."""

    owner: Int64[Tensor, " N"]
    """Object of each splat; -1 for none."""
    shares: Float[Tensor, "N O"]
    """How much of each splat shows each object; drawn, they give the masks. From 0 to 1, but for what
    edges need beyond."""
    labels: Int64[Tensor, " O"]
    """Class of each object, as the masks say; -1 for unknown."""
    views: Bool[Tensor, "O V"]
    """Which views have a mask of it."""
    of_mask: tuple[Int64[Tensor, " _"], ...] = ()
    """For each view, the object of each of its masks; -1 where the mask was left out."""
    trust: Float[Tensor, "O V"] | None = None
    """How far each view's mask of each object was believed; 0 where there is none."""

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
        progress: Called with the stages ``lift masks`` and ``fit values``.

    Raises:
        ShapeError: Counts or sizes do not agree.
    """
    options = options or LiftOptions()
    _check(cameras, instances, known)
    tell = _Counter(progress, len(instances))
    views = []
    for view, found in enumerate(instances):
        views.append(Carried(gaussians, cameras.select([view]), found))
        tell()
    if known is None:
        least = options.least_views if len(instances) > 2 else 1
        of_mask, labels = _associate(views, instances, len(gaussians), options.iou)
    else:
        least = 1
        of_mask = [ids.cpu() for ids in known]
        count = max((int(ids.max()) + 1 for ids in of_mask if len(ids)), default=0)
        labels = [_label_of(number, of_mask, instances) for number in range(count)]
    of_mask, labels, shown = _keep(of_mask, labels, least)
    votes, trust = count_votes(views, of_mask, labels, len(gaussians))
    maps = [
        _maps(ids, found, believed)
        for ids, found, believed in zip(of_mask, instances, trust.cpu(), strict=True)
    ]
    start = _fill_unseen(gaussians, votes.shares().T, views)
    shares = start.clone()
    if labels:
        shares = fit_to_gaussians(
            gaussians, cameras, maps, start, options=options.fit, progress=progress
        )
    return SceneObjects(
        owner=_owner(shares, options.share).cpu(),
        shares=shares.cpu(),
        labels=torch.tensor(labels, dtype=torch.int64),
        views=shown,
        of_mask=tuple(of_mask),
        trust=torch.where(shown.T, trust.cpu(), 0.0).T.contiguous(),
    )


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
    shares = objects.shares.to(gaussians.means.device)
    tell = _Counter(progress, len(cameras), "render objects")
    drawn = []
    for view in range(len(cameras)):
        drawn.append(_draw_owner(gaussians, cameras.select([view]), shares).cpu())
        tell()
    size = (0, cameras.height, cameras.width)
    return torch.stack(drawn) if drawn else torch.empty(size, dtype=torch.int64)


def _draw_owner(gaussians: Gaussians, camera: Cameras, shares: Tensor) -> Int64[Tensor, "H W"]:
    """Draw the object of the largest share; none where what is left over is larger."""
    size = (camera.height, camera.width)
    rest, alpha = shares.new_zeros(size), None
    most, winner = shares.new_zeros(size), torch.full(size, -1, device=shares.device)
    for first in range(0, shares.shape[1], _CHANNELS):
        image, alpha = draw_values(gaussians, camera, shares[:, first : first + _CHANNELS])
        best, index = image.max(-1)
        winner = torch.where(best > most, index + first, winner)
        most = torch.maximum(best, most)
        rest = rest - image.sum(-1)
    if alpha is None:
        return winner
    shown = (alpha >= _BLENDED) & (most >= alpha + rest)
    return torch.where(shown, winner, -1)


class _Counter:
    """Tells progress one step at a time."""

    def __init__(self, progress: Progress | None, total: int, stage: str = "lift masks") -> None:
        self.progress, self.total, self.stage, self.done = progress, total, stage, 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.stage, float(min(self.done, self.total)), float(self.total))


def _associate(
    views: Sequence[Carried], instances: Sequence[InstanceMasks], splats: int, least: float
) -> tuple[list[Tensor], list[int]]:
    """Return the object of every mask, and the objects' classes."""
    device = views[0].weights.device if views else torch.device("cpu")
    votes = Votes(splats, device)
    for view, found in zip(views, instances, strict=True):
        votes.grow(view, found.labels, least)
    # Once more with what all views have found: the first ones had little to compare with.
    of_mask = [
        votes.match(view, found.labels, least) for view, found in zip(views, instances, strict=True)
    ]
    return of_mask, votes.labels


def _keep(
    of_mask: Sequence[Tensor], labels: Sequence[int], least: int
) -> tuple[list[Tensor], list[int], Bool[Tensor, "O V"]]:
    """Drop objects that too few views show; the others are numbered anew."""
    views = torch.zeros(len(labels), len(of_mask), dtype=torch.bool)
    for view, ids in enumerate(of_mask):
        views[ids[ids >= 0], view] = True
    kept = (views.sum(1) >= least).nonzero()[:, 0]
    place = torch.full((len(labels) + 1,), -1)
    place[kept] = torch.arange(len(kept))
    # -1 reads the last entry, which is -1
    return [place[ids] for ids in of_mask], [labels[i] for i in kept.tolist()], views[kept]


def _maps(ids: Tensor, found: InstanceMasks, trust: Tensor) -> ViewMaps:
    """Return what a view says about the objects that it is believed about."""
    channels = (trust > 0).nonzero()[:, 0]
    masks = found.masks.cpu()
    maps = torch.zeros(len(channels), *masks.shape[1:], dtype=torch.bool)
    for row, number in enumerate(channels.tolist()):
        maps[row] = masks[ids == number].any(0)
    return ViewMaps(channels=channels, maps=maps, trust=trust[channels])


def _fill_unseen(
    gaussians: Gaussians, shares: Float[Tensor, "n o"], views: Sequence[Carried]
) -> Float[Tensor, "n o"]:
    """Give splats that no view shows the mean of their nearest neighbours."""
    seen = shares.new_zeros(len(shares))
    for view in views:
        seen[view.rows] = torch.maximum(seen[view.rows], view.weights)
    unseen = seen < _SEEN
    count = min(_NEIGHBORS, int((~unseen).sum()))
    if not count or not bool(unseen.any()):
        return shares
    means = gaussians.means.detach().cpu()
    known = shares[~unseen]
    hidden = unseen.cpu()
    _, near = KDTree(means[~hidden].numpy()).query(means[hidden].numpy(), count)
    filled = shares.clone()
    filled[unseen] = known[torch.from_numpy(near).view(-1, count).to(known.device)].mean(1)
    return filled


def _owner(shares: Float[Tensor, "n o"], least: float) -> Int64[Tensor, " n"]:
    """Return the object of the largest share; -1 where that is small, or what is left is larger."""
    if not shares.shape[1]:
        return torch.full((len(shares),), -1, device=shares.device)
    best, owner = shares.max(1)
    return torch.where((best >= least) & (best >= 1 - shares.sum(1)), owner, -1)


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
