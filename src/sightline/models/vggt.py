"""VGGT (Wang et al. 2025): images to cameras, depth, points and tracks in one pass.

Names, outputs and numbers follow ``facebookresearch/vggt``. Images are RGB in [0, 1]; the world is
the first camera; see `pose_encoding` for the camera's nine numbers.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.models.aggregator import Aggregator, Layers, entry
from sightline.models.dinov2 import DinoVisionTransformer
from sightline.models.published import pick_options
from sightline.models.vggt_track import TrackHead
from sightline.nn.attention import Attention
from sightline.nn.block import Block
from sightline.nn.dpt import TokenFusion, by_frames, frames_at_once
from sightline.nn.drop import DropPath, LayerScale
from sightline.nn.mlp import Mlp, SwiGLUFFN
from sightline.nn.options import Device, DType, Number
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.rope import PositionGetter, RotaryPositionEmbedding2D

__all__ = [
    "VGGT",
    "Aggregator",
    "Attention",
    "Block",
    "CameraHead",
    "DPTHead",
    "DropPath",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "PositionGetter",
    "RotaryPositionEmbedding2D",
    "SwiGLUFFN",
    "TrackHead",
    "from_config",
]

PointActivation = Literal[
    "exp", "norm_exp", "norm", "inv_log", "xy_inv_log", "relu", "sigmoid", "linear"
]
ConfidenceActivation = Literal["expp1", "expp0", "sigmoid"]


class CameraHead(nn.Module):
    """Nine numbers for the camera of every frame, refined a few times.

    See `pose_encoding`; the quaternion is not normalised, fields of view are not negative.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        trunk_depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: Number = 4,
        init_values: Number = 0.01,
        num_iterations: int = 4,
        norm_eps: Number = 1e-5,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the trunk; ``dim_in`` is the width of the aggregator's entries."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.num_iterations = num_iterations
        self.trunk = nn.Sequential(
            *[
                Block(
                    dim_in, num_heads, mlp_ratio, init_values=init_values, norm_layer=norm, **kind
                )
                for _ in range(trunk_depth)
            ]
        )
        self.token_norm = norm(dim_in, **kind)
        self.trunk_norm = norm(dim_in, **kind)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9, **kind))
        self.embed_pose = nn.Linear(9, dim_in, **kind)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim_in, 3 * dim_in, **kind))
        self.adaln_norm = nn.LayerNorm(dim_in, eps=1e-6, elementwise_affine=False)
        self.pose_branch = Mlp(dim_in, dim_in // 2, 9, **kind)

    def forward(
        self, layers: Layers, num_iterations: int | None = None
    ) -> list[Float[Tensor, "b s 9"]]:
        """Return the encoding after every refinement, from the last entry of the aggregator."""
        tokens = entry(layers, -1)[:, :, 0]
        tokens = self.token_norm(tokens)
        encoding: Tensor | None = None
        results = []
        for _ in range(num_iterations or self.num_iterations):
            known = self.empty_pose_tokens if encoding is None else encoding.detach()
            embedded = self.embed_pose(known.expand(*tokens.shape[:2], -1))
            shift, scale, gate = self.poseLN_modulation(embedded).chunk(3, dim=-1)
            x = gate * (self.adaln_norm(tokens) * (1 + scale) + shift) + tokens
            delta = self.pose_branch(self.trunk_norm(self.trunk(x)))
            total = delta if encoding is None else encoding + delta
            results.append(torch.cat((total[..., :7], total[..., 7:].relu()), -1))
            encoding = total
        return results


class DPTHead(TokenFusion):
    """A value and a confidence for every pixel, or features of every second one."""

    def __init__(
        self,
        dim_in: int,
        patch_size: int = 14,
        output_dim: int = 4,
        activation: PointActivation = "inv_log",
        conf_activation: ConfidenceActivation = "expp1",
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
        pos_embed: bool = True,
        feature_only: bool = False,
        down_ratio: int = 1,
        norm_eps: Number = 1e-5,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the head; the last of ``output_dim`` channels is the confidence."""
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim_in, patch_size, features, out_channels, pos_embed, "relu", norm_eps, **kind
        )
        self.down_ratio = down_ratio
        self.activation: PointActivation = activation
        self.conf_activation: ConfidenceActivation = conf_activation
        self.feature_only = feature_only
        self.intermediate_layer_idx = tuple(intermediate_layer_idx)
        middle = features if feature_only else features // 2
        self.scratch.output_conv1 = nn.Conv2d(features, middle, 3, padding=1, **kind)
        if not feature_only:
            self.scratch.output_conv2 = nn.Sequential(
                nn.Conv2d(middle, 32, 3, padding=1, **kind),
                nn.ReLU(),
                nn.Conv2d(32, output_dim, 1, **kind),
            )

    def forward(
        self,
        layers: Layers,
        images: Float[Tensor, "b s 3 h w"],
        patch_start_idx: int,
        frames_chunk_size: int | None = 8,
    ) -> tuple[Tensor, Tensor] | Float[Tensor, "b s c h2 w2"]:
        """Return values ``[B, S, H, W, K]`` and confidence ``[B, S, H, W]``, or features.

        Args:
            layers: The aggregator's entries.
            images: The frames, for their size.
            patch_start_idx: Tokens before the patches.
            frames_chunk_size: Frames that are worked on at a time; None for all.
        """
        height, width = images.shape[-2:]
        chosen = [entry(layers, index) for index in self.intermediate_layer_idx]
        parts = by_frames(
            lambda tokens: self._finish(self.fuse(tokens, height, width), height, width),
            [tokens[:, :, patch_start_idx:] for tokens in chosen],
            frames_chunk_size,
        )
        return parts[0] if self.feature_only else (parts[0], parts[1])

    def _finish(self, x: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        rows, cols = height // self.patch_size, width // self.patch_size
        size = (
            int(rows * self.patch_size / self.down_ratio),
            int(cols * self.patch_size / self.down_ratio),
        )
        x = self.scratch.output_conv1(x)
        x = functional.interpolate(x, size, mode="bilinear", align_corners=True)
        x = self.add_positions(x, width / height)
        if self.feature_only:
            return (x,)
        x = self.scratch.output_conv2(x).permute(0, 2, 3, 1)
        value = activate_value(x[..., :-1], self.activation)
        return value, activate_confidence(x[..., -1], self.conf_activation)


def activate_value(
    x: Float[Tensor, "*batch k"], name: PointActivation
) -> Float[Tensor, "*batch k"]:
    """Turn raw values into points or depth."""
    if name == "inv_log":
        return inverse_log(x)
    if name == "xy_inv_log":
        z = inverse_log(x[..., 2:])
        return torch.cat((x[..., :2] * z, z), -1)
    if name in {"norm", "norm_exp"}:
        distance = x.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        direction = x / distance
        return direction if name == "norm" else direction * distance.expm1()
    plain = {"exp": torch.exp, "relu": torch.relu, "sigmoid": torch.sigmoid}
    return plain[name](x) if name in plain else x


def activate_confidence(
    x: Float[Tensor, "*batch"], name: ConfidenceActivation
) -> Float[Tensor, "*batch"]:
    """Turn raw confidence into ``1 + exp(x)``, ``exp(x)`` or a sigmoid."""
    if name == "sigmoid":
        return x.sigmoid()
    return x.exp() + (1 if name == "expp1" else 0)


def inverse_log(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return ``sign(x) * (exp(|x|) - 1)``."""
    return x.sign() * x.abs().expm1()


class VGGT(nn.Module):
    """The whole network, or the parts of it that are wanted.

    ``aggregator``, ``camera``, ``dpt`` and ``track`` are options of `Aggregator`, `CameraHead`,
    `DPTHead` and `TrackHead` that replace the published ones; ``point`` and ``depth`` are those of
    one dense head only. Only the aggregator's entries that the heads read are kept.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        enable_camera: bool = True,
        enable_point: bool = True,
        enable_depth: bool = True,
        enable_track: bool = True,
        *,
        aggregator: Mapping[str, Any] | None = None,
        camera: Mapping[str, Any] | None = None,
        dpt: Mapping[str, Any] | None = None,
        point: Mapping[str, Any] | None = None,
        depth: Mapping[str, Any] | None = None,
        track: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network; a head that is not enabled has no weights and no outputs."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        width = 2 * embed_dim
        common: dict[str, Any] = {"patch_size": patch_size, **(dpt or {})}
        self.aggregator = Aggregator(
            img_size, patch_size, embed_dim, **dict(aggregator or {}), **kind
        )
        self.camera_head = (
            CameraHead(width, **dict(camera or {}), **kind) if enable_camera else None
        )
        points = {"output_dim": 4, **common, **(point or {})}
        self.point_head = DPTHead(width, **points, **kind) if enable_point else None
        depths = {"output_dim": 2, "activation": "exp", **common, **(depth or {})}
        self.depth_head = DPTHead(width, **depths, **kind) if enable_depth else None
        self.track_head = (
            TrackHead(
                width, patch_size, make_features=DPTHead, dpt=dpt, **dict(track or {}), **kind
            )
            if enable_track
            else None
        )

    def layers_read(self) -> frozenset[int]:
        """Return which entries of the aggregator the enabled heads read."""
        last = self.aggregator.depth - 1
        read = {last} if self.camera_head is not None else set()
        for head in (self.point_head, self.depth_head):
            if head is not None:
                read |= set(head.intermediate_layer_idx)
        if self.track_head is not None:
            read |= set(self.track_head.feature_extractor.intermediate_layer_idx)
        return frozenset(read)

    def forward(
        self,
        images: Float[Tensor, "s 3 h w"] | Float[Tensor, "b s 3 h w"],
        query_points: Float[Tensor, "n 2"] | Float[Tensor, "b n 2"] | None = None,
        *,
        frames_chunk_size: int | Literal["auto"] | None = "auto",
        keep: Collection[int] | None = None,
    ) -> dict[str, Any]:
        """Predict everything that is enabled; heads run in float32.

        Args:
            images: Frames in [0, 1]; without a batch axis one is added.
            query_points: Pixels ``(x, y)`` of the first frame to be tracked.
            frames_chunk_size: Frames that the dense heads work on at a time; None for all, and by
                default as many as suit the device. Results are the same.
            keep: Entries of the aggregator to compute beyond those that heads read.

        Returns:
            ``pose_enc [B, S, 9]`` and ``pose_enc_list``, ``depth [B, S, H, W, 1]`` and
            ``depth_conf [B, S, H, W]``, ``world_points [B, S, H, W, 3]`` and ``world_points_conf``;
            with query points ``track [B, S, N, 2]``, ``vis`` and ``conf`` ``[B, S, N]``; in
            training ``track_list``, the tracks after every refinement, and outside it ``images``.
        """
        frames = images if images.ndim == 5 else images.unsqueeze(0)
        layers, start = self.aggregator(frames, keep=self.layers_read() | frozenset(keep or ()))
        predictions: dict[str, Any] = {}
        step = frames_chunk_size
        if step == "auto":
            height, width = frames.shape[-2:]
            step = frames_at_once(height, width, frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            if self.camera_head is not None:
                predictions["pose_enc_list"] = self.camera_head(layers)
                predictions["pose_enc"] = predictions["pose_enc_list"][-1]
            heads = {"depth": self.depth_head, "world_points": self.point_head}
            for name, head in heads.items():
                if head is not None:
                    value, confidence = head(layers, frames, start, step)
                    predictions[name] = value
                    predictions[f"{name}_conf"] = confidence
            if self.track_head is not None and query_points is not None:
                points = query_points if query_points.ndim == 3 else query_points.unsqueeze(0)
                tracks, visible, confidence = self.track_head(
                    layers, frames, start, query_points=points, frames_chunk_size=step
                )
                predictions |= {"track": tracks[-1], "vis": visible, "conf": confidence}
                if self.training:
                    predictions["track_list"] = tracks
        if not self.training:
            predictions["images"] = frames
        return predictions


def from_config(config: dict[str, Any]) -> VGGT:
    """Build a network from a description with VGGT's sizes and those of its parts."""
    kind = pick_options(config, build_like)
    encoder: dict[str, Any] = {
        name.removeprefix("encoder_"): value
        for name, value in config.items()
        if name.startswith("encoder_")
    }
    encoder["num_heads"] = encoder.pop("heads", config["num_heads"])
    image = {name: config[name] for name in ("img_size", "patch_size", "embed_dim")}
    picked = pick_options(encoder, DinoVisionTransformer)
    encoder = {"init_values": 1.0, **image, **picked, **kind}
    aggregator = pick_options(config, Aggregator)
    for name in (*image, "device", "dtype"):
        aggregator.pop(name, None)
    if config.get("patch_embed", "dinov2") == "dinov2":
        aggregator["patch_embed"] = DinoVisionTransformer(**encoder)
    names = {
        "camera": {
            "trunk_depth": "camera_trunk_depth",
            "num_heads": "camera_heads",
            "mlp_ratio": "camera_mlp_ratio",
            "num_iterations": "camera_iterations",
            "norm_eps": "norm_eps",
        },
        "dpt": {
            "features": "dpt_features",
            "out_channels": "dpt_out_channels",
            "intermediate_layer_idx": "dpt_layers",
            "norm_eps": "norm_eps",
        },
        "track": {
            "features": "track_features",
            "iters": "track_iters",
            "stride": "track_stride",
            "corr_levels": "track_corr_levels",
            "corr_radius": "track_corr_radius",
            "hidden_size": "track_hidden",
            "depth": "track_depth",
            "num_heads": "track_heads",
            "num_virtual_tracks": "track_virtual_tracks",
            "max_scale": "track_max_scale",
            "mlp_ratio": "track_mlp_ratio",
        },
    }
    parts: dict[str, Any] = {
        part: {own: config[theirs] for own, theirs in table.items() if theirs in config}
        for part, table in names.items()
    }
    for part in ("point", "depth"):
        parts[part] = {
            own: config[theirs]
            for own, theirs in (
                ("activation", f"{part}_activation"),
                ("conf_activation", "conf_activation"),
            )
            if theirs in config
        }
    switches = {name: config[name] for name in config if name.startswith("enable_")}
    return VGGT(**image, **switches, aggregator=aggregator, **parts, **kind)


PUBLISHED: dict[str, dict[str, Any]] = {"vggt_1b": {}}
"""The published checkpoint and its constructor options."""


def build_like(device: Device = None, dtype: DType = None) -> None:
    """Name the options that every builder takes."""
