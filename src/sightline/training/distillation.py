"""The losses and targets of DINO self-distillation, in the versions of DINOv2 and DINOv3.

A student sees all crops of a picture, a teacher (a moving average of the student) the two global
ones; logits are over K prototypes. Axes in shapes: s student crops, t teacher crops, b pictures,
n masked patches, p patches, d features.

DINO: Caron et al. 2021 (arXiv:2104.14294). iBOT: Zhou et al. 2022 (arXiv:2111.07832). KoLeo and
DINOv2: Oquab et al. 2023 (arXiv:2304.07193). Gram anchoring and DINOv3: Simeoni et al. 2025
(arXiv:2508.10104).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.training.collectives import all_logsumexp, all_sum, gather_rows

STUDENT_TEMPERATURE = 0.1


class Center(nn.Module):
    """Moving average of the teacher's logits, taken off them before the softmax."""

    value: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float = 0.9) -> None:
        """Start at zero; ``shape`` broadcasts against the logits."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(shape))

    def targets(
        self, logits: Float[Tensor, "*rows K"], temperature: float
    ) -> Float[Tensor, "*rows K"]:
        """Return the teacher's probabilities; call `update` afterwards."""
        return ((logits - self.value) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "*rows K"]) -> None:
        """Move towards the mean of these logits, those of all processes."""
        rows = logits.flatten(0, -2).float()
        count = all_sum(rows.new_tensor(float(len(rows)))).clamp(min=1)
        mean = all_sum(rows.sum(0)) / count
        self.value.lerp_(mean.expand_as(self.value), 1 - self.momentum)


@torch.no_grad()
def sinkhorn_targets(
    logits: Float[Tensor, "*rows K"], temperature: float, iterations: int = 3
) -> Float[Tensor, "*rows K"]:
    """Return teacher probabilities in which all prototypes are used equally (Sinkhorn-Knopp).

    Worked out on logarithms: the published form overflows where a logit is 88 temperatures high.
    Balanced over the rows of all processes, which may have different numbers of them.
    """
    shares = logits.float().flatten(0, -2) / temperature
    for _ in range(iterations):
        shares = shares - all_logsumexp(shares)
        shares = shares - shares.logsumexp(1, keepdim=True)
    return shares.exp().view(logits.shape)


def cross_entropies(
    student: Float[Tensor, "s b K"],
    targets: Float[Tensor, "t b K"],
    temperature: float = STUDENT_TEMPERATURE,
) -> Float[Tensor, "s t"]:
    """Return the mean cross-entropy of each student crop against each teacher crop."""
    log_shares = (student.float() / temperature).log_softmax(-1)
    return -torch.einsum("sbk,tbk->st", log_shares, targets) / student.shape[1]


def dino_loss(
    student: Float[Tensor, "s b K"],
    targets: Float[Tensor, "t b K"],
    *,
    ignore_diagonal: bool = False,
    temperature: float = STUDENT_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Return the mean over pairs of crops, as DINOv3 does; DINOv2 sums `cross_entropies`.

    Args:
        student: Logits.
        targets: Probabilities of the teacher.
        ignore_diagonal: Leave out the pairs of a crop with itself (global against global).
        temperature: Of the student.
    """
    pairs = cross_entropies(student, targets, temperature)
    if not ignore_diagonal:
        return pairs.mean()
    kept = ~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs[kept].mean()


def mask_weights(masks: Bool[Tensor, "crops p"]) -> Float[Tensor, " n"]:
    """Return one over the number of masked patches of its crop for every masked patch."""
    counts = masks.sum(-1, keepdim=True).clamp(min=1)
    return (1 / counts).expand(masks.shape)[masks]


def ibot_loss(
    student: Float[Tensor, "n K"],
    targets: Float[Tensor, "n K"],
    masks: Bool[Tensor, "crops p"],
    weights: Float[Tensor, " n"] | None = None,
    temperature: float = STUDENT_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Return the loss of the masked patches.

    Args:
        student: Logits of the masked patches, in the order of ``masks``.
        targets: Probabilities of the teacher there.
        masks: Which patches of which crop were masked; unmasked crops count in the mean.
        weights: Of the patches; `mask_weights` by default.
        temperature: Of the student.
    """
    weights = mask_weights(masks) if weights is None else weights
    rows = (targets * (student.float() / temperature).log_softmax(-1)).sum(-1)
    return -(rows * weights).sum() / len(masks)


def ibot_dense_loss(
    student: Float[Tensor, "crops p K"],
    targets: Float[Tensor, "crops p K"],
    masks: Bool[Tensor, "crops p"],
    temperature: float = STUDENT_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Return `ibot_loss` of logits and probabilities that are given for all patches."""
    return ibot_loss(student[masks], targets[masks], masks, temperature=temperature)


def koleo_loss(features: Float[Tensor, "b d"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """Return how close features come to their nearest neighbour: the mean of ``-log distance``.

    Sablayrolles et al. 2019 (arXiv:1806.03198); the features are put on the unit sphere. Neighbours
    are looked for in the batches of all processes.
    """
    features = nn.functional.normalize(gather_rows(features.float()), eps=eps, dim=-1)
    with torch.no_grad():
        nearest = (features @ features.mT).fill_diagonal_(-1).argmax(1)
    distance = nn.functional.pairwise_distance(features, features[nearest], eps=eps)
    return -(distance + eps).log().mean()


def gram_loss(
    student: Float[Tensor, "b p d"],
    teacher: Float[Tensor, "b p d"],
    *,
    level: Literal["image", "batch"] = "image",
    normalize: bool = True,
    clip: Literal["none", "teacher", "both"] = "none",
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the patches' similarities (Gram anchoring).

    Args:
        student: Patch features.
        teacher: Those of the Gram teacher, on the same grid.
        level: Similarities within each picture, or within the whole batch.
        normalize: Compare directions only.
        clip: Where negative similarities are set to zero. DINOv3's option for the student's alone
            has no effect in the published code, so there is none here.
    """
    similarities = []
    for features in (student, teacher):
        features = features.float()
        if normalize:
            features = nn.functional.normalize(features, dim=-1)
        if level == "batch":
            features = features.flatten(0, 1)
        similarities.append(features @ features.mT)
    ours, theirs = similarities
    if clip != "none":
        theirs = theirs.clamp(min=0)
    if clip == "both":
        ours = ours.clamp(min=0)
    return nn.functional.mse_loss(ours, theirs)


class ProjectionHead(nn.Module):
    """From features to prototype logits: an MLP, the unit sphere, and one more linear layer.

    DINOv2 splits the last layer's weight into length and direction (keys ``last_layer.weight_g``
    and ``weight_v``), DINOv3 does not (``last_layer.weight``).
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        *,
        weight_norm: bool = False,
    ) -> None:
        """Build the head; linear layers start from a truncated normal of 0.02."""
        super().__init__()
        sizes = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        modules: list[nn.Module] = []
        for index in range(layers):
            modules += [nn.GELU()] * (index > 0)
            modules.append(nn.Linear(sizes[index], sizes[index + 1]))
        self.mlp = nn.Sequential(*modules) if layers > 1 else modules[0]
        self.last_layer: nn.Module = (
            _WeightNormLinear(bottleneck_dim, prototypes)
            if weight_norm
            else nn.Linear(bottleneck_dim, prototypes, bias=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "*rows d"], *, last_layer: bool = True
    ) -> Float[Tensor, "*rows k"]:
        """Return logits, or without the last layer the unit vectors before it."""
        x = self.mlp(x)
        eps = 1e-6 if x.dtype == torch.float16 else 1e-12
        x = nn.functional.normalize(x, dim=-1, eps=eps)
        return self.last_layer(x) if last_layer else x


class _WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are ``g * v / |v|``, under DINOv2's key names."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        direction = self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, self.weight_g * direction)
