"""The raw, trainable form of splats."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.types import Gaussians

NAMES = ("means", "scales", "quats", "opacities", "sh")
"""The parameters, in the order in which they are stored."""

_LOWEST = 1e-6
"""Opacities this close to 0 or 1 are moved away from it before their logit is taken."""


class GaussianParams(nn.Module):
    """Splats as an optimiser sees them: every value is free, and nothing is activated.

    Attributes:
        means: Centres, [N 3].
        scales: Natural logarithm of the standard deviations, [N 3].
        quats: Orientations ``wxyz`` of any length, [N 4].
        opacities: Logit of the opacity, [N].
        sh: Spherical-harmonic coefficients, [N K 3]; kept whole because joining the constant and
            the other bands anew at each step costs more than a learning rate for each.

    A different type from :class:`sightline.types.Gaussians`, so that raw and activated values
    cannot be confused.
    """

    means: nn.Parameter
    scales: nn.Parameter
    quats: nn.Parameter
    opacities: nn.Parameter
    sh: nn.Parameter

    def __init__(
        self,
        means: Float[Tensor, "N 3"],
        scales: Float[Tensor, "N 3"],
        quats: Float[Tensor, "N 4"],
        opacities: Float[Tensor, " N"],
        sh: Float[Tensor, "N K 3"],
    ) -> None:
        """Keep raw values."""
        super().__init__()
        if round(sh.shape[1] ** 0.5) ** 2 != sh.shape[1]:
            msg = f"sh must be [N, K, 3] with K = 1, 4, 9 or 16, got {list(sh.shape)}; add bands"
            raise ShapeError(msg)
        for name, value in zip(NAMES, (means, scales, quats, opacities, sh), strict=True):
            setattr(self, name, nn.Parameter(value.detach().clone().contiguous()))

    def __len__(self) -> int:
        """Return the number of splats."""
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Highest degree of the spherical harmonics."""
        return round(self.sh.shape[1] ** 0.5) - 1

    @property
    def sh0(self) -> Float[Tensor, "N 1 3"]:
        """The constant band; a view."""
        return self.sh[:, :1]

    @property
    def shN(self) -> Float[Tensor, "N M 3"]:
        """All other bands; a view."""
        return self.sh[:, 1:]

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in NAMES}

    @torch.no_grad()
    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over other rows; the old parameters are dropped."""
        for name in NAMES:
            setattr(self, name, nn.Parameter(tensors[name].detach().contiguous()))

    @torch.no_grad()
    def select(self, rows: Int64[Tensor, " M"]) -> None:
        """Keep ``rows``, in that order; a row may occur more than once."""
        self.replace({name: value[rows] for name, value in self.tensors().items()})

    def activate(self, *, antialiased: bool = False) -> Gaussians:
        """Return positive scales, opacities in [0, 1] and unit quaternions, with gradients."""
        return Gaussians(
            means=self.means,
            quats=nn.functional.normalize(self.quats, dim=-1),
            scales=self.scales.exp(),
            opacities=self.opacities.sigmoid(),
            sh=self.sh,
            antialiased=antialiased,
        )

    @classmethod
    def from_gaussians(cls, gaussians: Gaussians) -> "GaussianParams":
        """Return the raw form of splats.

        Scales of zero become the smallest positive float, and opacities of 0 and 1 are moved
        inwards by 1e-6, since their raw values would be infinite.
        """
        tiny = torch.finfo(gaussians.scales.dtype).tiny
        return cls(
            means=gaussians.means,
            scales=gaussians.scales.clamp_min(tiny).log(),
            quats=gaussians.quats,
            opacities=torch.logit(gaussians.opacities, eps=_LOWEST),
            sh=gaussians.sh,
        )
