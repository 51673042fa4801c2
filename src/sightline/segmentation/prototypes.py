"""What is kept of reference features: means, covariances, centres, principal axes.

Shapes: K classes, S shots, N grid cells, C channels. Masks are soft, in [0, 1].
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sightline.errors import InputError


def masked_mean(
    features: Float[Tensor, "*batch n c"], masks: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch c"]:
    """Return the mean feature weighted by the mask; zero where the mask vanishes."""
    total = masks.sum(-1, keepdim=True)
    return (masks.unsqueeze(-2) @ features).squeeze(-2) / total.clamp(min=1e-12)


def class_means(
    features: Float[Tensor, "k s n c"], masks: Float[Tensor, "k s n"]
) -> Float[Tensor, "k c"]:
    """Return the mean over all shots and cells of a class, weighted by the masks."""
    return masked_mean(features.flatten(1, 2), masks.flatten(1, 2))


def covariances(instances: Float[Tensor, "k s c"]) -> Float[Tensor, "k c c"]:
    """Return the covariance of the instance means of each class, divided by their number."""
    centred = instances - instances.mean(1, keepdim=True)
    return centred.mT @ centred / instances.shape[1]


def instance_agreement(
    features: Float[Tensor, "k s n c"], masks: Float[Tensor, "k s n"]
) -> Float[Tensor, " k"]:
    """Return how well each shot agrees with the other shots of its class, in [0, 1].

    Mean over shots of ``(cos + 1) / 2`` between the mean over the foreground cells of the shot and
    that of all others. A single shot agrees with itself: 1.
    """
    hard = (masks > 0).to(features.dtype)
    sums = (hard.unsqueeze(-2) @ features).squeeze(-2)
    counts = hard.sum(-1, keepdim=True)
    return agreement_from_sums(sums, counts)


def agreement_from_sums(
    sums: Float[Tensor, "k s c"], counts: Float[Tensor, "k s 1"]
) -> Float[Tensor, " k"]:
    """Return `instance_agreement` from each shot's sum and number of foreground cells."""
    if sums.shape[1] == 1:
        return sums.new_ones(len(sums))
    own = sums / counts.clamp(min=1e-12)
    rest = (sums.sum(1, keepdim=True) - sums) / (counts.sum(1, keepdim=True) - counts).clamp(1e-12)
    return ((cosine_similarity(own, rest, dim=-1) + 1) / 2).mean(1)


def cosine_kmeans(
    tokens: Float[Tensor, "n c"], start: Int64[Tensor, " k"], iterations: int = 100
) -> Float[Tensor, "k c"]:
    """Return unit centres of a k-means that assigns by cosine and averages plainly.

    Args:
        tokens: Foreground features of one class.
        start: Which of them are the first centres.
        iterations: At most so many; it stops when no token moves. A centre that loses all its
            tokens stays where it is.
    """
    unit = normalize(tokens, dim=-1)
    centres = tokens[start]
    assigned = None
    for _ in range(iterations):
        nearest = (unit @ normalize(centres, dim=-1).T).argmax(1)
        if assigned is not None and torch.equal(nearest, assigned):
            break
        assigned = nearest
        counts = torch.bincount(nearest, minlength=len(centres)).to(tokens.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, tokens)
        means = sums / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, centres)
    return normalize(centres, dim=-1)


def principal_axes(
    tokens: Float[Tensor, "n c"], count: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, "p c"]]:
    """Return the mean and the first ``count`` principal axes; largest entry of each is positive.

    Raises:
        InputError: There are fewer tokens, or channels, than axes.
    """
    if min(tokens.shape) < count:
        msg = (
            f"expected at least {count} foreground cells and channels for {count} principal axes, "
            f"got {tokens.shape[0]} cells of {tokens.shape[1]} channels; ask for fewer axes or "
            "give larger references"
        )
        raise InputError(msg)
    mean = tokens.mean(0)
    axes = torch.linalg.svd((tokens - mean).double(), full_matrices=False)[2][:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return mean, (axes * largest.sign()).to(tokens.dtype)
