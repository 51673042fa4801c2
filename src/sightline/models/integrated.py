"""One model for pictures and for videos: a DINOv3, and VGGT's aggregator behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import InputError, UnknownNameError
from sightline.models.aggregator import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Aggregator,
    check_patches,
    entry,
)
from sightline.models.published import Pretrained
from sightline.nn.options import Device, DType, Number


class DINOv3IntegratedModel(nn.Module):
    """Class and patch tokens of pictures, aggregated features of videos; input in [0, 1]."""

    def __init__(
        self,
        dinov3_model: str = "dinov3_vitl16",
        use_aggregator: bool = True,
        pretrained: Pretrained = False,
        aa_order: Sequence[str] = ("frame", "global"),
        *,
        img_size: int | None = None,
        patch_size: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        n_storage_tokens: int | None = None,
        rope_freq: Number = 100,
        aggregator: Mapping[str, Any] | None = None,
        backbone: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the model.

        Args:
            dinov3_model: Name of the encoder, which fixes its sizes.
            use_aggregator: Whether videos are aggregated.
            pretrained: Weights of the encoder, see `dinov3.build_dinov3`. The aggregator has none.
            aa_order: Which kind of block comes first.
            img_size: Nominal side, a multiple of the patch; by default 32 patches.
            patch_size: Has to be the encoder's; for an explicit description.
            embed_dim: Width of the aggregator, by default the encoder's.
            depth: Blocks of each kind, by default as many as the encoder has.
            num_heads: Heads of each block, by default the encoder's.
            n_storage_tokens: Storage tokens of the encoder. The aggregator's own are an option of
                ``aggregator``, ``num_register_tokens``.
            rope_freq: Base of the aggregator's rotary positions.
            aggregator: Further options of `Aggregator`.
            backbone: Further options of the encoder.
            device: Where to create it.
            dtype: Its number type.

        Raises:
            InputError: Options contradict each other; the text names the nearest valid setting.
        """
        super().__init__()
        from sightline.models.dinov3 import build_dinov3  # which offers this model in turn

        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        options = dict(backbone or {})
        if n_storage_tokens is not None:
            options["n_storage_tokens"] = n_storage_tokens
        encoder: Any = build_dinov3(dinov3_model, pretrained, **options, **kind)
        own = getattr(encoder, "patch_size", None) or 32
        patch = own if patch_size is None else patch_size
        side = 32 * own if img_size is None else img_size
        check_patches(encoder, side, patch)
        self.encoder: nn.Module | None = None if use_aggregator else encoder
        self.aggregator: Aggregator | None = None
        if use_aggregator:
            self.aggregator = Aggregator(
                side,
                patch,
                embed_dim or encoder.embed_dim,
                depth or encoder.n_blocks,
                num_heads or getattr(encoder, "num_heads", 16),
                patch_embed=encoder,
                aa_order=aa_order,
                rope_freq=rope_freq,
                **dict(aggregator or {}),
                **kind,
            )

    @property
    def backbone(self) -> Any:
        """The DINOv3, whose weights are the aggregator's where there is one."""
        return self.encoder if self.aggregator is None else self.aggregator.patch_embed

    def forward(
        self, images: Float[Tensor, "b 3 h w"] | Float[Tensor, "b s 3 h w"]
    ) -> dict[str, Any]:
        """Describe pictures or videos.

        Args:
            images: Pictures ``[B, 3, H, W]`` or videos ``[B, S, 3, H, W]``, in [0, 1].

        Returns:
            For pictures ``cls_token [B, D]`` and ``patch_tokens [B, N, D]``; for videos
            ``features [B, S, P, 2C]``, the aggregator's last entry, and ``patch_start_idx``.
        """
        if images.ndim == 4:
            kind: dict[str, Any] = {"device": images.device, "dtype": images.dtype}
            mean = torch.tensor(IMAGENET_MEAN, **kind).view(3, 1, 1)
            std = torch.tensor(IMAGENET_STD, **kind).view(3, 1, 1)
            features = self.backbone.forward_features((images - mean) / std)
            return {
                "cls_token": features["x_norm_clstoken"],
                "patch_tokens": features["x_norm_patchtokens"],
            }
        if self.aggregator is None:
            msg = (
                "expected pictures [B, 3, H, W], got a video; build the model with "
                "use_aggregator=True, or join the first two axes"
            )
            raise InputError(msg)
        layers, start = self.aggregator(images, keep=[self.aggregator.depth - 1])
        return {"features": entry(layers, -1), "patch_start_idx": start}


def from_config(config: Mapping[str, Any]) -> DINOv3IntegratedModel:
    """Build the model from a description, such as the files in ``configs/models``.

    ``model.backbone`` holds ``dinov3_model, pretrained, img_size, patch_size, embed_dim, depth,
    num_heads, n_storage_tokens``; ``model.aggregator`` holds ``enabled, aa_order, rope_freq`` and
    any other option of `Aggregator`.

    Raises:
        UnknownNameError: There is an entry of another name.
        InputError: Entries contradict each other.
    """
    description = config.get("model", config)
    _check("entry of model", description, ("backbone", "aggregator"))
    backbone = dict(description.get("backbone", {}))
    _check("entry of model.backbone", backbone, _BACKBONE)
    aggregator = dict(description.get("aggregator", {}))
    options = {
        name: aggregator.pop(name) for name in ("aa_order", "rope_freq") if name in aggregator
    }
    kind = {name: config[name] for name in ("device", "dtype") if name in config}
    enabled = bool(aggregator.pop("enabled", True))
    return DINOv3IntegratedModel(
        use_aggregator=enabled, aggregator=aggregator, **backbone, **options, **kind
    )


def read_description(name: str | Path) -> dict[str, Any]:
    """Read a description for `from_config`: a YAML file, or the name of one that comes with us.

    ``lightweight``, ``high-performance`` and ``video`` are found in a checkout and in an installed
    package alike.

    Raises:
        InputError: There is no such file, or it holds no description.
    """
    package = Path(__file__).parents[1]
    folders = [root / "configs" / "models" for root in (package, package.parents[1])]
    shipped = {file.stem: file for folder in folders for file in folder.glob("*.yaml")}
    path = Path(name).expanduser()
    if not path.is_file():
        if str(name) not in shipped:
            msg = f"expected a YAML file or one of {', '.join(sorted(shipped))}, got {name}"
            raise InputError(msg)
        path = shipped[str(name)]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"expected YAML in {path}, got something else: {first}") from error
    if not isinstance(content, dict):
        raise InputError(f"expected an entry named model in {path}, got {type(content).__name__}")
    return content


_BACKBONE = (
    "dinov3_model",
    "pretrained",
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "n_storage_tokens",
)


def _check(kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)
