"""How much a proposal looks like a class: the main similarity and the published alternatives.

Shapes: P proposals, K classes, S shots, C channels. ``objects`` are unit mean features of
proposals. Local similarities are sums over mask pixels of values that depend on the pixel's own
feature in a non-linear way, so they take features that were resized to the mask grid.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Objects = Float[Tensor, "p c"]
Similarity = Float[Tensor, "p k"]
Instances = Float[Tensor, "k s c"]


def prototypes(instances: Instances) -> Float[Tensor, "k c"]:
    """Return one unit prototype a class: the direction of the mean of its instance means."""
    return normalize(instances.mean(1), dim=-1)


def cosine(objects: Objects, prototypes: Float[Tensor, "k c"]) -> Similarity:
    """Return the main similarity: the cosine to each prototype, negative values set to zero."""
    return (objects @ prototypes.T).clamp(min=0)


def softmax_cosine(
    objects: Objects, prototypes: Float[Tensor, "k c"], temperature: float
) -> Similarity:
    """Return a softmax over classes of the cosine."""
    return (objects @ prototypes.T / temperature).softmax(-1)


def instance_softmax(objects: Objects, instances: Instances, temperature: float) -> Similarity:
    """Return a softmax over classes of the sum over shots of the cosine."""
    cosines = torch.einsum("pc,ksc->pks", objects, normalize(instances, dim=-1))
    return (cosines.sum(-1) / temperature).softmax(-1)


def gaussian_distance(
    means: Float[Tensor, "p c"], class_means: Float[Tensor, "k c"], sigma: float
) -> Similarity:
    """Return ``exp(-distance / sigma)`` between means that are not normalised."""
    return (-torch.cdist(means, class_means) / sigma).exp()


def with_negatives(
    objects: Objects,
    class_means: Float[Tensor, "k c"],
    negatives: Float[Tensor, "k m c"],
    sigma: float,
    valid: Bool[Tensor, "k m"] | None = None,
) -> Similarity:
    """Return the cosine to the class mean, lowered where a negative reference is nearer.

    Args:
        objects: Unit features of the proposals.
        class_means: Means of all cells of the class (not of the instance means).
        negatives: Instance means of what was taken for the class by mistake.
        sigma: How quickly the similarity falls: ``exp(-max(0, negative - positive) / sigma)``.
        valid: Which negatives exist; all by default.
    """
    positive = cosine(objects, normalize(class_means, dim=-1))
    negative = negative_cosine(objects, negatives, valid)
    return positive * (-(negative - positive).clamp(min=0) / sigma).exp()


def negative_cosine(
    objects: Objects, negatives: Float[Tensor, "k m c"], valid: Bool[Tensor, "k m"] | None = None
) -> Similarity:
    """Return the largest clamped cosine to the negative references of each class."""
    if negatives.shape[1] == 0:
        return objects.new_zeros(len(objects), len(negatives))
    cosines = torch.einsum("pc,kmc->pkm", objects, normalize(negatives, dim=-1)).clamp(min=0)
    if valid is not None:
        cosines = cosines * valid
    return cosines.amax(-1)


def covariance_cosine(
    objects: Objects,
    prototypes: Float[Tensor, "k c"],
    covariances: Float[Tensor, "k c c"],
    shrinkage: float = 0.001,
) -> Similarity:
    """Return the clamped cosine in the metric of each class's inverse, shrunk covariance."""
    eye = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    factor = torch.linalg.cholesky((1 - shrinkage) * covariances + shrinkage * eye)
    p = torch.linalg.solve_triangular(factor, prototypes.unsqueeze(-1), upper=False)  # [K, C, 1]
    o = torch.linalg.solve_triangular(factor, objects.T.expand(len(factor), -1, -1), upper=False)
    dots = (o * p).sum(1)  # [K, P]
    return (dots / (o.norm(dim=1) * p.norm(dim=1))).clamp(min=0).T


def local_matching(
    pixels: Float[Tensor, "m c"],
    masks: Bool[Tensor, "p m"],
    centres: Float[Tensor, "k j c"],
    *,
    theta: float | None = None,
) -> Similarity:
    """Return the mean over a mask's pixels of the best match among a class's centres.

    Args:
        pixels: Features on the mask grid, not normalised.
        masks: Flattened masks.
        centres: k-means centres of each class.
        theta: None takes the best centre; a number weighs all by ``softmax(similarity / theta)``.

    The mean is divided by the length of the mask's mean feature and mapped to [0, 1].
    """
    dots = torch.einsum("mc,kjc->mkj", pixels, centres)
    best = dots.amax(-1) if theta is None else (dots * (dots / theta).softmax(-1)).sum(-1)
    weights = masks.to(pixels.dtype)
    area = weights.sum(1, keepdim=True)
    length = (weights @ pixels / area).norm(dim=-1, keepdim=True)
    return (weights @ best / area / length + 1) / 2


def pca_score(
    pixels: Float[Tensor, "m c"],
    masks: Bool[Tensor, "p m"],
    mean: Float[Tensor, "k c"],
    axes: Float[Tensor, "k a c"],
) -> Similarity:
    """Return the largest agreement of a mask's pixels with each principal axis, averaged.

    Agreement is ``(cos + 1) / 2`` between the centred feature and the axis.
    """
    columns = []
    for centre, directions in zip(mean, axes, strict=True):
        agree = (normalize(pixels - centre, dim=-1) @ normalize(directions, dim=-1).T + 1) / 2
        best = torch.stack([agree[inside].amax(0) for inside in masks])  # [P, A]
        columns.append(best.mean(-1))
    return torch.stack(columns, 1)


def nearest_neighbours(
    objects: Objects, instances: Instances, count: int, sigma: float = 0.1
) -> tuple[Int64[Tensor, " p"], Float[Tensor, " p"]]:
    """Return label and score by the ``count`` nearest instance prototypes.

    The label is the most frequent class among them (the lowest of equals); the score is the mean of
    ``(cos + 1) / 2`` over that class's neighbours, weighted by ``exp(-d^2 / sigma^2)``,
    ``d = 1 - cos``.
    """
    shots = instances.shape[1]
    cosines = objects @ normalize(instances, dim=-1).flatten(0, 1).T
    near, index = cosines.topk(min(count, cosines.shape[1]), dim=1)
    classes = index // shots
    labels = one_hot(classes, len(instances)).sum(1).argmax(1)
    weights = (-(((1 - near) / sigma) ** 2)).exp() * (classes == labels[:, None])
    scores = (weights * (near + 1) / 2).sum(1) / weights.sum(1).clamp(min=1e-30)
    return labels, scores


def ambiguity_decay(
    similarity: Similarity,
    labels: Int64[Tensor, " p"],
    class_means: Float[Tensor, "k c"],
    scale: float = 0.01,
) -> Float[Tensor, " p"]:
    """Return a factor that falls when a proposal is nearer to other classes than its own class is.

    ``exp(-sum w (s - m)_+^2 / sum w / scale)``, where ``m`` is the row of the assigned class in the
    class-class matrix of ``(cos + 1) / 2`` (0.5 on the diagonal) and ``w = (m - 0.5)_+``.
    """
    unit = normalize(class_means, dim=-1)
    between = (unit @ unit.T + 1) / 2
    between.fill_diagonal_(0.5)
    rows = between[labels]
    weights = (rows - 0.5).clamp(min=0)
    excess = (similarity - rows).clamp(min=0) ** 2
    return (-(weights * excess).sum(1) / weights.sum(1).clamp(min=1e-12) / scale).exp()


def completeness(
    pixels: Float[Tensor, "m c"],
    masks: Bool[Tensor, "p m"],
    labels: Int64[Tensor, " p"],
    class_means: Float[Tensor, "k c"],
    threshold: float,
) -> Float[Tensor, " p"]:
    """Return the share of a mask's pixels that look like the class nearly as much as the best one.

    A pixel counts when its clamped cosine to the mean of the assigned class is above ``threshold``
    times the largest in the mask.
    """
    cosines = (normalize(pixels, dim=-1) @ normalize(class_means, dim=-1).T).clamp(min=0)
    own = cosines.T[labels] * masks  # [P, M]; zero outside
    best = own.amax(1, keepdim=True)
    return ((own > threshold * best) & masks).sum(1) / masks.sum(1)


def attention_average(
    pixels: Float[Tensor, "m c"],
    masks: Bool[Tensor, "p m"],
    attention: Float[Tensor, " m"],
) -> Objects:
    """Return unit means of pixels weighted by the encoder's attention inside each mask."""
    weights = masks * attention
    return normalize(weights @ pixels / weights.sum(1, keepdim=True).clamp(min=1e-12), dim=-1)
