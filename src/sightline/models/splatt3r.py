"""Splatt3R (Smart et al. 2024): two images to Gaussian splats in one pass.

It is MASt3R with a second DPT that gives every pixel a Gaussian. Names follow
``btsmart/splatt3r``, whose Lightning checkpoints put ``encoder.`` before the network's names.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.models.dust3r import PairNetwork, View, pick_pair_options
from sightline.models.dust3r_heads import HeadOptions, Mode, Result, Start, dpt_adapter, hooks
from sightline.models.mast3r import CatMlpDptHead
from sightline.models.pose_encoding import quaternion_to_matrix
from sightline.nn.opaque import hold
from sightline.nn.options import Device, DType, Number

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic."""


class GaussianHead(CatMlpDptHead):
    """MASt3R's head, and a DPT for offset, scale, rotation, colour and opacity of a Gaussian."""

    def __init__(
        self,
        options: HeadOptions,
        output_mode: str = "pts3d+gaussian+desc24",
        two_confs: bool = True,
        desc_mode: str = "norm",
        desc_conf_mode: Mode | None = None,
        hidden_dim_factor: Number = 4.0,
        sh_degree: int = 1,
        use_offsets: bool = True,
        **kind: Any,
    ) -> None:
        """Create the head.

        Args:
            options: See `HeadOptions`.
            output_mode: Tells the width of the descriptors.
            two_confs: Whether descriptors have their own confidence.
            desc_mode: ``"norm"``.
            desc_conf_mode: By default ``conf_mode``, unlike MASt3R's published network.
            hidden_dim_factor: Width of the descriptor MLP.
            sh_degree: Colour coefficients per channel; the original's name, though no degree.
            use_offsets: Move means away from the points.
            kind: ``device`` and ``dtype``.
        """
        super().__init__(
            options, output_mode, two_confs, desc_mode, desc_conf_mode, hidden_dim_factor, **kind
        )
        self.use_offsets = use_offsets
        self.sh_coefficients = sh_degree
        self.splits = [3, 3, 4, 3 * sh_degree, 1]
        self.gaussian_dpt: Any = nn.Module()
        self.gaussian_dpt.dpt = dpt_adapter(options, sum(self.splits), **kind)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with small, nearly transparent Gaussians on the points, as the training did."""
        last = self.gaussian_dpt.get_submodule("dpt.head.4")
        starts = ((0.001, 0.001), (0.00003, -7.0), (1.0, 0.0), (1.0, 0.0), (1.0, -2.0))
        rows = zip(
            last.get_parameter("weight").split(self.splits),
            last.get_parameter("bias").split(self.splits),
            starts,
            strict=True,
        )
        for weight, bias, (gain, value) in rows:
            nn.init.xavier_uniform_(weight, gain)
            nn.init.constant_(bias, value)

    def start(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Start:
        """Return what all parts compute from the encoder's tokens of an image."""
        dpt: Any = self.gaussian_dpt.get_submodule("dpt")
        common = super().start(tokens, height, width)
        return (*common, *dpt.start(tokens, height, width)) if common else ()

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "b n _"]],
        height: int,
        width: int,
        start: Start = (),
    ) -> Result:
        """Return MASt3R's maps and those of the Gaussians, channels last.

        ``means`` (3), ``scales`` (3, positive), ``rotations`` (unit quaternions ``xyzw``), ``sh``
        (3, coefficients) and ``opacities`` (1, in [0, 1]).
        """
        out = super().forward(tokens, height, width, start[:2])
        chosen = [tokens[hook] for hook in hooks(self.options)]
        dpt = self.gaussian_dpt.get_submodule("dpt")
        raw = dpt(chosen, height, width, start[2:]).permute(0, 2, 3, 1)
        offset, scale, rotation, colour, opacity = raw.split(self.splits, dim=-1)
        out["means"] = out["pts3d"].detach()
        if self.use_offsets:
            out["means"] = out["means"] + activate_offset(offset)
        out["scales"] = scale.exp()
        out["rotations"] = rotation / (rotation.norm(dim=-1, keepdim=True) + 1e-8)
        out["sh"] = colour.unflatten(-1, (3, self.sh_coefficients))
        out["opacities"] = opacity.sigmoid()
        return out


class Splatt3R(nn.Module):
    """The network under its checkpoint's names.

    With ``lpips`` the state also holds the weights of the perceptual loss that the checkpoint
    brings along; they are kept and never used.
    """

    def __init__(
        self,
        output_mode: str = "pts3d+gaussian+desc24",
        head_type: str = "gaussian_head",
        two_confs: bool = True,
        desc_mode: str = "norm",
        desc_conf_mode: Mode | None = None,
        hidden_dim_factor: Number = 4.0,
        sh_degree: int = 1,
        use_offsets: bool = True,
        lpips: bool = False,
        *,
        device: Device = None,
        dtype: DType = None,
        **options: Any,
    ) -> None:
        """Create the network; ``options`` are those of `PairNetwork`, the rest of `GaussianHead`."""
        super().__init__()
        if head_type != "gaussian_head":
            msg = f"expected head_type gaussian_head, got {head_type}"
            raise ValueError(msg)
        head = partial(
            GaussianHead,
            output_mode=output_mode,
            two_confs=two_confs,
            desc_mode=desc_mode,
            desc_conf_mode=desc_conf_mode,
            hidden_dim_factor=hidden_dim_factor,
            sh_degree=sh_degree,
            use_offsets=use_offsets,
        )
        options = {"landscape_only": True, **options}
        self.encoder = PairNetwork(head, **options, device=device, dtype=dtype)
        if lpips:
            hold(self, LPIPS_SHAPES, device, dtype)

    def forward(self, view1: View, view2: View) -> tuple[Result, Result]:
        """Predict Gaussians of every pixel of both views, in the camera frame of the first.

        Args:
            view1: As for DUSt3R, and optionally ``original_img [B, 3, H, W]`` in [0, 1], by default
                ``img * 0.5 + 0.5``.
            view2: The same for the second view.

        Returns:
            MASt3R's maps, those of `GaussianHead` with the pixel's colour added to the first
            coefficient, and ``covariances [B, H, W, 3, 3]``; points and means of view 2 are named
            ``..._in_other_view``.
        """
        results = self.encoder(view1, view2)
        for view, result in zip((view1, view2), results, strict=True):
            add_colors(result, view)
        return results


def add_colors(result: Result, view: View) -> None:
    """Complete what `GaussianHead` says with the picture's colours and with covariances.

    Args:
        result: Changed in place: ``sh`` gets the pixel's colour, ``covariances`` are new.
        view: See `Splatt3R.forward`.
    """
    result["covariances"] = covariances(result["scales"], result["rotations"])
    picture = view.get("original_img")
    picture = view["img"] * 0.5 + 0.5 if picture is None else picture
    residual = (picture.permute(0, 2, 3, 1) - 0.5) / SH_C0
    first = result["sh"][..., :1] + residual.unsqueeze(-1)
    result["sh"] = torch.cat((first, result["sh"][..., 1:]), -1)


def activate_offset(xyz: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the direction of ``xyz`` times ``exp(d - 6) - exp(-6)``, almost zero near the origin."""
    distance = xyz.norm(dim=-1, keepdim=True)
    shift = torch.tensor(6.0, device=xyz.device, dtype=xyz.dtype)
    return xyz / distance.clamp(min=1e-8) * ((distance - shift).exp() - (-shift).exp())


def covariances(
    scales: Float[Tensor, "*batch 3"], rotations: Float[Tensor, "*batch 4"]
) -> Float[Tensor, "*batch 3 3"]:
    """Return ``R S S^T R^T`` of scales and quaternions ``xyzw``."""
    matrix = quaternion_to_matrix(rotations, eps=1e-8) * scales.unsqueeze(-2)
    return matrix @ matrix.transpose(-1, -2)


def from_config(config: Mapping[str, Any]) -> Splatt3R:
    """Build a network from a description that uses the constructors' names."""
    return Splatt3R(**pick_pair_options(config, Splatt3R))


PUBLISHED: dict[str, dict[str, Any]] = {
    "splatt3r_v1.0": {"img_size": (512, 512), "lpips": True},
}
"""The published checkpoint and its constructor options."""

_ALEX = {
    "1.0": (64, 3, 11),
    "2.3": (192, 64, 5),
    "3.6": (384, 192, 3),
    "4.8": (256, 384, 3),
    "5.10": (256, 256, 3),
}
LPIPS_SHAPES: dict[str, tuple[int, ...]] = {
    **{f"lpips_criterion.scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")},
    **{
        f"lpips_criterion.net.slice{place}.weight": (out, into, side, side)
        for place, (out, into, side) in _ALEX.items()
    },
    **{f"lpips_criterion.net.slice{place}.bias": (out,) for place, (out, _, _) in _ALEX.items()},
    **{
        f"lpips_criterion.{home}.model.1.weight": (1, out, 1, 1)
        for index, (out, _, _) in enumerate(_ALEX.values())
        for home in (f"lin{index}", f"lins.{index}")
    },
}
"""The loss (LPIPS on AlexNet) that the checkpoint brings along."""
