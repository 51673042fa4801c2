"""LPIPS, a learned perceptual distance, as in the ``lpips`` package 0.1.4 (version 0.1 heads).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv:1801.03924, github.com/richzhang/PerceptualSimilarity. Weights are never downloaded: the trunk
is torchvision's AlexNet or VGG16 file, the heads are the package's ``alex.pth`` or ``vgg.pth``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.checkpoints import load_strict, read_weights
from sightline.errors import CheckpointError, InputError, ShapeError

Net = Literal["alex", "vgg"]

_TRUNKS = {"alex": ("alexnet-owt-*.pth", "alexnet*"), "vgg": ("vgg16-*.pth", "vgg16*")}


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return AlexNet's features with torchvision's numbering, and where its stages end."""
    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
    return features, (1, 4, 7, 9, 11)


def _vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return VGG16's features with torchvision's numbering, and where its stages end."""
    layers: list[nn.Module] = []
    ends = []
    width = 3
    for stage in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        if layers:
            layers.append(nn.MaxPool2d(2, 2))
        for wider in stage:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
        ends.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(ends)


class _Head(nn.Module):
    """Weights of one stage's channels, below the name that the official files use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Float[Tensor, "V C h w"]) -> Float[Tensor, "V 1 h w"]:
        """Return the weighted sum over channels."""
        return self.model(x)


class Lpips(nn.Module):
    """The distance network; parameters are named ``features.N.*`` and ``linK.model.1.weight``."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        """Build the network with random weights, in evaluation mode.

        Args:
            net: ``alex`` is the package's default and gsplat's; ``vgg`` is what 3D Gaussian
                splatting and Feat2GS report. Their values do not compare.
        """
        super().__init__()
        self.net = net
        self.features, self._ends = _alexnet() if net == "alex" else _vgg16()
        widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
        for stage, width in enumerate(widths):
            self.add_module(f"lin{stage}", _Head(width))
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.eval().requires_grad_(False)

    def _stages(self, images: Float[Tensor, "V 3 H W"]) -> list[Tensor]:
        """Return each stage's features, scaled to unit length over channels."""
        x = (images - self.shift) / self.scale
        stages = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._ends:
                length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
                stages.append(x / (length + 1e-10))
        return stages

    def maps(
        self,
        predicted: Float[Tensor, "V 3 H W"],
        target: Float[Tensor, "V 3 H W"],
        *,
        normalize: bool = True,
    ) -> list[Float[Tensor, "V 1 _ _"]]:
        """Return each stage's distances in space; the sum of their means is the distance.

        Args:
            predicted: RGB in [0, 1].
            target: RGB in [0, 1].
            normalize: As for ``forward``.
        """
        if normalize:
            predicted, target = 2 * predicted - 1, 2 * target - 1
        stages = zip(self._stages(predicted), self._stages(target), strict=True)
        return [self.get_submodule(f"lin{i}")((a - b).square()) for i, (a, b) in enumerate(stages)]

    def forward(
        self,
        predicted: Float[Tensor, "V 3 H W"],
        target: Float[Tensor, "V 3 H W"],
        mask: Bool[Tensor, "V H W"] | None = None,
        *,
        normalize: bool = True,
    ) -> Float[Tensor, " V"]:
        """Return one distance a view; smaller is nearer.

        Args:
            predicted: RGB in [0, 1].
            target: RGB in [0, 1].
            mask: True where a pixel counts: masked pixels of the prediction are replaced by the
                target's, and each stage averages over its unmasked part only.
            normalize: Map [0, 1] to [-1, 1], which the weights expect. False feeds [0, 1] as it
                is, as 3D Gaussian splatting and Feat2GS do; those values are lower.

        Raises:
            ShapeError: If the pictures are too small for the trunk.
        """
        smallest = 31 if self.net == "alex" else 16
        if min(predicted.shape[-2:]) < smallest:
            msg = (
                f"LPIPS ({self.net}) needs pictures of at least {smallest} x {smallest}, got "
                f"{predicted.shape[-2]} x {predicted.shape[-1]}; score larger ones"
            )
            raise ShapeError(msg)
        if mask is not None:
            predicted = torch.where(mask[:, None], predicted, target)
        if normalize:
            predicted, target = 2 * predicted - 1, 2 * target - 1
        total = torch.zeros_like(predicted[:, 0, 0, 0])
        stages = zip(self._stages(predicted), self._stages(target), strict=True)
        for i, (a, b) in enumerate(stages):
            distance = self.get_submodule(f"lin{i}")((a - b).square())[:, 0]
            if mask is None:
                total = total + distance.mean((1, 2))
            else:
                weight = functional.adaptive_avg_pool2d(mask.to(a.dtype), distance.shape[-2:])
                total = total + (weight * distance).sum((1, 2)) / weight.sum((1, 2))
        return total


def lpips_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of any official file our names.

    Takes torchvision's trunk files (their classifier is left out), the package's head files, whole
    ``lpips.LPIPS`` state dicts, and the ``lpips_criterion`` in Splatt3R's checkpoint.
    """
    inside = {
        n.rpartition("lpips_criterion.")[2]: t for n, t in state.items() if "lpips_criterion." in n
    } or state
    named = {re.sub(r"^net\.slice\d\.", "features.", name): t for name, t in inside.items()}
    kept = re.compile(r"features\.|lin\d\.")
    return {name: tensor for name, tensor in named.items() if kept.match(name)}


def _cached(net: Net) -> list[Path]:
    """Return the trunk and head files in torch's cache, as many as are there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    trunks = sorted(folder.glob(_TRUNKS[net][0]))
    heads = folder / f"{net}.pth"
    return trunks[:1] + ([heads] if heads.is_file() else [])


def load_lpips(net: Net = "alex", weights: Sequence[str | Path] | None = None) -> Lpips:
    """Build the network with official weights.

    Args:
        net: ``alex`` or ``vgg``.
        weights: One or more files that together hold trunk and heads; without it, the files in
            torch's cache (``TORCH_HOME``), where other programs leave them.

    Raises:
        InputError: If a file is missing, or the cache lacks one.
        CheckpointError: If the files are not this network's weights.
    """
    if weights is None:
        weights = _cached(net)
        if len(weights) < 2:
            msg = (
                f"LPIPS ({net}) needs its weights: put torchvision's "
                f"{_TRUNKS[net][1]}.pth and the lpips package's {net}.pth into "
                f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or name the files"
            )
            raise InputError(msg)
    state: dict[str, Tensor] = {}
    for path in weights:
        found = lpips_state(read_weights(path))
        if not found:
            msg = (
                f"expected LPIPS trunk or head weights in {path}, found neither; name "
                f"torchvision's {_TRUNKS[net][1]}.pth and the lpips package's {net}.pth"
            )
            raise CheckpointError(msg)
        state |= found
    model = Lpips(net)
    load_strict(model, state, " and ".join(str(path) for path in weights))
    return model


class LpipsMetric:
    """LPIPS as a named measure; satisfies ``protocols.Metric``."""

    unit = ""
    higher_is_better = False

    def __init__(self, model: Lpips, *, normalize: bool = True) -> None:
        """Wrap a loaded network; the name tells the trunk and, if unusual, the input range."""
        self.name = "lpips" if model.net == "alex" else f"lpips_{model.net}"
        self.name += "" if normalize else "_unnormalized"
        self.model, self.normalize = model, normalize

    @torch.no_grad()
    def __call__(
        self,
        predicted: Float[Tensor, "V 3 H W"],
        target: Float[Tensor, "V 3 H W"],
        mask: Bool[Tensor, "V H W"] | None = None,
    ) -> Float[Tensor, " V"]:
        """Return one value a view; one view at a time, to bound memory."""
        model = self.model.to(predicted.device)
        values = []
        for v in range(len(predicted)):
            here = slice(v, v + 1)
            masked = None if mask is None else mask[here]
            values.append(model(predicted[here], target[here], masked, normalize=self.normalize))
        return torch.cat(values) if values else predicted.new_zeros(0)


def find_lpips(net: Net = "alex") -> tuple[LpipsMetric | None, str]:
    """Return the measure if its weights are in torch's cache, else None and the reason."""
    try:
        return LpipsMetric(load_lpips(net)), ""
    except InputError as error:
        return None, str(error)
