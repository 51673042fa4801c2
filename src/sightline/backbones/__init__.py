"""Any vision model as a `Backbone`: pictures in, features on the patch grid out.

Names are looked up in `BACKBONES`; every function of sightline takes the object, so a backbone of
your own needs no name: four attributes and a method ``extract`` will do, see ``docs/backbones.md``.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sightline.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from sightline.backbones.grid import pixel_positions
    from sightline.protocols import Backbone

__all__ = [
    "ALIASES",
    "BACKBONES",
    "PREFIXES",
    "Entry",
    "check_name",
    "create_backbone",
    "pixel_positions",
]


class Entry(NamedTuple):
    """Where a backbone comes from.

    Attributes:
        factory: Module below this package and function that takes a `request.Request`.
        source: Name of the network in `sightline.models`, or repository; empty for none.
    """

    factory: str
    source: str = ""


_DINOV2 = [f"dinov2_vit{size}14{kind}" for size in "sblg" for kind in ("", "_reg")]
_DINOV3 = [
    f"dinov3_vit{size}" for size in ("s16", "s16plus", "b16", "l16", "l16plus", "h16plus", "7b16")
]
_UNPUBLISHED = ["dinov3_vitg16", "dinov3_vitl14"]
_CONVNEXT = [f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large")]
_CROCO = ["CroCo"] + [
    f"CroCo_V2_ViT{size}" for size in ("Base_SmallDecoder", "Base_BaseDecoder", "Large_BaseDecoder")
]
_SAM2 = [
    f"sam{version}_hiera_{size}"
    for version in ("2", "2.1")
    for size in ("tiny", "small", "base_plus", "large")
]
_DUST3R = "DUSt3R_ViTLarge_BaseDecoder_512_dpt"
_MAST3R = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"

BACKBONES: dict[str, Entry] = {
    **{name: Entry("networks:dinov2", name) for name in _DINOV2},
    **{name: Entry("networks:dinov3", name) for name in _DINOV3 + _UNPUBLISHED},
    **{
        f"{name}_sat493m": Entry("networks:dinov3_satellite", name)
        for name in ("dinov3_vitl16", "dinov3_vit7b16")
    },
    **{name: Entry("networks:convnext", name) for name in _CONVNEXT},
    **{name.lower(): Entry("networks:croco", name) for name in _CROCO},
    "dust3r": Entry("networks:pair_encoder", _DUST3R),
    "dust3r_decoder": Entry("networks:pair_decoder", _DUST3R),
    **{
        f"dust3r_{name}": Entry("networks:pair_encoder", f"DUSt3R_ViTLarge_BaseDecoder_{name}")
        for name in ("224_linear", "512_linear")
    },
    "mast3r": Entry("networks:pair_encoder", _MAST3R),
    "mast3r_decoder": Entry("networks:pair_decoder", _MAST3R),
    "splatt3r": Entry("networks:pair_encoder", "splatt3r_v1.0"),
    "splatt3r_decoder": Entry("networks:pair_decoder", "splatt3r_v1.0"),
    "vggt": Entry("networks:aggregator", "vggt_1b"),
    "vggt_frame": Entry("networks:aggregator_frame", "vggt_1b"),
    "vggt_global": Entry("networks:aggregator_global", "vggt_1b"),
    "vggt_encoder": Entry("networks:vggt_encoder", "vggt_1b"),
    "vggt_omega": Entry("networks:aggregator", "vggt_omega_1b_512"),
    "vggt_omega_encoder": Entry("networks:omega_encoder", "vggt_omega_1b_512"),
    **{name: Entry("networks:sam2", name) for name in _SAM2},
    **{name: Entry("remapped:dino", name) for name in ("dino_vits16", "dino_vits8")},
    **{name: Entry("remapped:dino", name) for name in ("dino_vitb16", "dino_vitb8")},
    **{f"ibot_vit{size}16": Entry("remapped:dino", f"ibot_vit{size}16") for size in "sbl"},
    "radio": Entry("remapped:radio", "radio"),
    "stable_diffusion": Entry("diffusion:stable_diffusion", "stabilityai/stable-diffusion-2-1"),
    "zero123": Entry("diffusion:zero123", "kxic/zero123-xl"),
    "iuv": Entry("controls:iuv"),
    "iuvrgb": Entry("controls:iuvrgb"),
    "random": Entry("controls:random"),
}
"""Every backbone that has a name of its own. A factory's module is imported when it is asked for."""

ALIASES: dict[str, str] = {
    "dinov3_small": "dinov3_vits16",
    "dinov3_small_plus": "dinov3_vits16plus",
    "dinov3_base": "dinov3_vitb16",
    "dinov3_large": "dinov3_vitl16",
    "dinov3_huge_plus": "dinov3_vith16plus",
    "dinov3_giant": "dinov3_vitg16",
    "dinov3_vitl16_reg": "dinov3_vitl16",
    "dinov3_7b": "dinov3_vit7b16",
    "dinov3_vitl14_reg": "dinov3_vitl14",
    "vggt_aggregator": "vggt",
    "vggt_decoder": "vggt",
    "vggt_e": "vggt_encoder",
    "vggt_d": "vggt",
    "vggt_df": "vggt_frame",
    "vggt_dg": "vggt_global",
    "dust3r_encoder": "dust3r",
    "mast3r_encoder": "mast3r",
    "splatt3r_encoder": "splatt3r",
    "dinov2_b14": "dinov2_vitb14",
    "dinov2_b14_reg": "dinov2_vitb14_reg",
    "dinov2_l14": "dinov2_vitl14",
    "dino_b16": "dino_vitb16",
    "ibot_b16": "ibot_vitb16",
    "ibot_l16": "ibot_vitl16",
    "ibot_b16_in22k": "ibot_vitb16",
    "ibot_l16_in22k": "ibot_vitl16",
    "dift": "stable_diffusion",
    "clip_b16": "hf:openai/clip-vit-base-patch16",
    "clip_b16_laion": "hf:laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "clip_l14": "hf:openai/clip-vit-large-patch14-336",
    "siglip_b16": "hf:google/siglip-base-patch16-384",
    "siglip_l16": "hf:google/siglip-large-patch16-384",
    "siglip2_b16": "hf:google/siglip2-base-patch16-384",
    "siglip2_l16": "hf:google/siglip2-large-patch16-384",
    "mae_b16": "hf:facebook/vit-mae-base",
    "mae_l16": "hf:facebook/vit-mae-large",
    "deit_b16": "hf:facebook/deit-base-patch16-224",
    "deit3_b16": "timm:deit3_base_patch16_384",
    "deit3_l16": "timm:deit3_large_patch16_384",
    "clip_convnext": "timm:convnext_base.clip_laion2b",
    "clip_convnext_augreg": "timm:convnext_base.clip_laion2b_augreg",
    "convnext_fcmae": "timm:convnextv2_base.fcmae_ft_in22k_in1k_384",
    "convnext_in22k": "timm:convnext_base.fb_in22k",
    "sam_base": "hf:facebook/sam-vit-base",
    "sam_large": "hf:facebook/sam-vit-large",
    "midas_l16": "hf:Intel/dpt-large",
}
"""Other names of the same, among them those of Feat2GS's table."""

PREFIXES: dict[str, Entry] = {
    "hf": Entry("hf:transformers_model"),
    "timm": Entry("timm_models:timm_model"),
    "fused": Entry("fused:fused"),
}
"""``PREFIX:REST`` -> factory, whose source is the rest. ``random:NAME`` draws weights for NAME."""

_DTYPES = ("float32", "float16", "bfloat16")


def create_backbone(
    name: str,
    checkpoint: "str | Path | None" = None,
    device: "torch.device | str" = "auto",
    dtype: "torch.dtype | str" = "float32",
    *,
    seed: int = 0,
    **options: Any,  # those of NetworkBackbone
) -> "Backbone":
    """Return a frozen image encoder by name; see `sightline.protocols.Backbone`.

    Nothing is downloaded unless ``checkpoint`` is an address. Pictures go in as RGB in [0, 1] of
    any size; how they come to the network's size is the backbone's ``fit``, and `pixel_positions`
    tells where patches lie.

    Args:
        name: One of `BACKBONES` or `ALIASES`; ``hf:REPO_OR_FOLDER`` (extra ``hf``); ``timm:NAME``;
            ``random:NAME`` for drawn weights; ``fused:A+B`` for channels side by side.
        checkpoint: A file of weights (a folder for ``hf:``), a URL or ``REPO_ID/FILENAME``; for
            ``fused:`` one for each part, separated by commas. Without it published weights are
            taken from the cache.
        device: ``"auto"`` takes a GPU where there is one.
        dtype: Number type of the weights.
        seed: Of random weights and of the control ``random``.
        options: ``norm=False`` leaves out the final norm, ``fit="pad"`` pads pictures instead of
            stretching them, ``chunk=N`` encodes N views at a time, ``project=True`` sends every
            token of a CLIP through its final norm and the projection of its class token.

    Raises:
        UnknownNameError: There is no such backbone.
        CheckpointError: Weights are missing or do not fit.
        InputError: An option or the device cannot be had, or weights are given where none go.
        MissingExtraError: An optional package is not installed.

    >>> import torch
    >>> backbone = create_backbone("iuvrgb", device="cpu")  # the control: position and colour
    >>> (features,) = backbone.extract(torch.rand(2, 3, 24, 32), layers=[-1])
    >>> features.patches.shape
    torch.Size([2, 6, 24, 32])
    """
    import torch

    from sightline.backbones.request import Request

    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise UnknownNameError("number type", dtype, _DTYPES)
    kind: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'no device "{device}"; use auto, cpu or cuda') from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"torch finds no CUDA device on this machine for {device}; use cpu")
    given, drawn = name, False
    while given.startswith("random:"):
        given, drawn = given.removeprefix("random:"), True
    entry = _find(given)
    known = ("norm", "fit", "chunk", "project")
    unknown = options.keys() - set(known)
    if unknown:
        raise UnknownNameError("option of backbones", min(unknown), known)
    if options.get("fit", "stretch") not in ("stretch", "pad"):
        raise InputError(f'fit must be "stretch" or "pad", got {options["fit"]!r}; change it')
    module, function = entry.factory.split(":")
    if "project" in options and module != "hf":
        raise InputError(f"{name} has no projection of its tokens; leave project out")
    drawn_alone = drawn and module in ("networks", "remapped", "timm_models")
    if checkpoint is not None and (drawn_alone or module == "controls"):
        raise InputError(f"{name} takes no weights, got the checkpoint {checkpoint}; leave it out")
    request = Request(
        name=given,
        source=entry.source,
        checkpoint=checkpoint,
        device=place,
        dtype=kind,
        random=drawn,
        seed=seed,
        options=options,
    )
    return getattr(import_module(f"sightline.backbones.{module}"), function)(request)


def check_name(name: str) -> None:
    """Say whether `create_backbone` knows a name, before anything is built.

    Raises:
        UnknownNameError: There is no such backbone.
    """
    while name.startswith("random:"):
        name = name.removeprefix("random:")
    entry = _find(name)
    if entry.factory == PREFIXES["fused"].factory:
        for part in entry.source.split("+"):
            check_name(part.strip())


def _find(name: str) -> Entry:
    plain = name.lower().replace("-", "_")
    name = ALIASES.get(plain, name)
    prefix, _, rest = name.partition(":")
    if rest and prefix in PREFIXES:
        return PREFIXES[prefix]._replace(source=rest)
    plain = name.lower().replace("-", "_")
    # A published network's own name stands for the first backbone that is made of it.
    by_source = {e.source.lower(): e for e in reversed(BACKBONES.values()) if e.source}
    entry = BACKBONES.get(plain) or by_source.get(plain)
    if entry is None:
        known = [*BACKBONES, *ALIASES, *(f"{p}:..." for p in (*PREFIXES, "random"))]
        raise UnknownNameError("backbone", name, known, "docs/backbones.md")
    return entry


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use (PEP 562)."""
    if name == "pixel_positions":
        return import_module("sightline.backbones.grid").pixel_positions
    msg = f"module 'sightline.backbones' has no attribute {name!r}"
    raise AttributeError(msg)
