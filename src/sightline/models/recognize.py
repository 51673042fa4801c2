"""Which network a file belongs to, from the names and shapes of its tensors alone.

Every family has names that no other has, and a reader that turns shapes into constructor options.
What shapes do not tell (heads of attention, which layers a head reads) comes from the published
network where the file is one, and is otherwise taken by the rule stated in `Recognition.assumed`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sightline.checkpoints import Report, State, compare
from sightline.checkpoints.match import CHUNK, PREFIXES, strip_prefix
from sightline.hub import CATALOGUE
from sightline.models.layouts import to_official
from sightline.models.networks import builder_of, table_of
from sightline.models.published import Published
from sightline.models.sizes import READERS, Options, Shapes, has


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """What a file is.

    Attributes:
        family: One of `sightline.models.networks.FAMILIES`.
        names: Published networks with exactly these tensors; empty for another size.
        options: Constructor options.
        assumed: Options that the tensors do not tell and that are no published ones.
        layout: Whose names the file uses: ``official``, ``transformers``, ``timm``.
        filled: Tensors that the layout leaves out and that were put back.
        report: Comparison with the network of these options.
    """

    family: str
    names: tuple[str, ...]
    options: Options
    assumed: tuple[str, ...]
    layout: str
    filled: tuple[str, ...]
    report: Report

    @property
    def title(self) -> str:
        """The network in words."""
        if self.names:
            return " or ".join(self.names)
        sizes = {k: v for k, v in self.options.items() if isinstance(v, int) and "_dim" in k}
        told = ", ".join(f"{name} {value}" for name, value in sizes.items())
        return f"{self.family} of a size of its own" + (f" ({told})" if told else "")


def recognize(weights: Mapping[str, Tensor]) -> Recognition | None:
    """Return what some weights are, or None when they are of no family known here."""
    official = to_official(_on_meta(weights))
    found = _family(official.weights)
    if found is None:
        return None
    family, shapes = found
    try:
        options, assumed = READERS[family](shapes)
        model: nn.Module = _build(family, options)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, TypeError, RuntimeError):
        return _broken(family, official.weights)
    report = compare(model, official.weights)
    names = KNOWN.get(digest(model.state_dict()), ()) if report.strict else ()
    if names:
        options, assumed = _published(names[0]), ()
    return Recognition(
        family=family,
        names=names,
        options=options,
        assumed=assumed,
        layout=official.layout,
        filled=official.filled,
        report=report,
    )


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a short digest of names and shapes."""
    rows = sorted(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in state.items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def explain(weights: Mapping[str, Tensor], asked: str = "") -> str:
    """Return in words why weights do not fit what was asked for."""
    found = recognize(weights)
    wanted = f", and {asked} was asked for" if asked else ""
    if found is not None and found.report.strict:
        return f"these are weights of {found.title}{wanted}"
    if found is not None:
        near = _nearest(found.family, to_official(_on_meta(weights)).weights)
        return f"these are weights of {near or found.title}, changed or incomplete"
    for mark, what in FOREIGN.items():
        if any(mark in name for name in weights):
            return f"these are weights of {what}{wanted}"
    if re.search(
        r"(qweight|weight_scale|weight_format|\.scales|absmax|quant_state)", " ".join(weights)
    ):
        return "these weights are quantised; use the original ones"
    return f"these are weights of another network{wanted}"


FOREIGN = {
    "vision_model.encoder.layers": "CLIP or SigLIP of transformers (use an hf: backbone)",
    "visual.transformer.resblocks": "an OpenAI or OpenCLIP model (use an hf: backbone)",
    "vision_encoder.layers": "SAM of transformers (use an hf: backbone)",
    "image_encoder.neck.0": "the first SAM (use an hf: backbone)",
    "student.dino_head": "a DINO training without its backbone",
    "vggt_model.": "a language model with VGGT inside",
    "lm_head.": "a language model",
    "unet.": "a diffusion model",
    "gaussians": "a scene, not a network",
}
"""Part of a name -> whose weights have it."""

MARKS: dict[str, tuple[str, ...]] = {
    "splatt3r_fused": (
        "encoder.downstream_head1.gaussian_dpt.dpt.head.4.weight",
        "fusion.adapters.*",
    ),
    "splatt3r": ("encoder.downstream_head1.gaussian_dpt.dpt.head.4.weight",),
    "mast3r": ("downstream_head1.head_local_features.fc1.weight", "dec_blocks2.0.norm1.weight"),
    "dust3r": ("downstream_head1.*", "dec_blocks2.0.norm1.weight"),
    "croco": ("dec_blocks.0.cross_attn.projq.weight", "prediction_head.weight"),
    "vggt_omega": ("aggregator.camera_token", "aggregator.inter_frame_blocks.0.norm1.weight"),
    "vggt": ("aggregator.camera_token", "aggregator.frame_blocks.0.norm1.weight"),
    "sam2": ("image_encoder.trunk.patch_embed.proj.weight", "sam_mask_decoder.iou_token.weight"),
    "dinov3_convnext": ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    "dinov3": ("cls_token", "rope_embed.periods", "blocks.0.attn.qkv.weight"),
    "dinov2": ("cls_token", "pos_embed", "mask_token", "blocks.0.attn.qkv.weight"),
}
"""Family -> names that its files have; the first family with all of them is the one."""


def _family(weights: State) -> tuple[str, Shapes] | None:
    for prefix in PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        plain = {CHUNK.sub(r"\1", name): tensor for name, tensor in inside.items()}
        for names in (inside, plain):
            for family, marks in MARKS.items():
                if all(has(names, mark) for mark in marks):
                    return family, {n: tuple(t.shape) for n, t in names.items()}
    return None


def _on_meta(weights: Mapping[str, Tensor]) -> State:
    return {name: tensor.to("meta") for name, tensor in weights.items()}


def _nearest(family: str, weights: State) -> str:
    """Return the published network that shares nine of ten tensors with a file, or nothing."""
    best, score = "", 0.9
    for entry in CATALOGUE.values():
        if entry.family == family:
            wanted = network_class(family)(**_published(entry.name), device="meta").state_dict()
            given = strip_prefix(weights, wanted)[0]
            same = sum(n in given and given[n].shape == t.shape for n, t in wanted.items())
            share = same / max(len(wanted), len(given))
            if share > score:
                best, score = entry.name, share
    return best


def _build(family: str, options: Options) -> nn.Module:
    return network_class(family)(**options, device="meta")


def network_class(family: str) -> Callable[..., nn.Module]:
    """Return the class of a family's networks."""
    if family in {"dinov2", "dinov3"}:
        import sightline.models.dinov2
        import sightline.models.dinov3

        return getattr(sightline.models, family).DinoVisionTransformer
    if family == "dinov3_convnext":
        from sightline.models.dinov3_convnext import ConvNeXt

        return ConvNeXt
    return builder_of(family)


def _published(name: str) -> Options:
    entry = CATALOGUE[name]
    found = table_of(entry.family)[entry.network]
    options = dict(found.options if isinstance(found, Published) else found)
    if name.endswith("_sat493m"):
        options["untie_global_and_local_cls_norm"] = True
    return options


def _broken(family: str, weights: State) -> Recognition:
    """Return a family whose file has shapes that no network of it can have."""
    missing = tuple(mark for mark in MARKS[family] if not has(weights, mark))
    report = Report(
        network=family, wanted=0, given=len(weights), missing=missing or ("sizes",), held={}
    )
    return Recognition(
        family=family,
        names=(),
        options={},
        assumed=(),
        layout="official",
        filled=(),
        report=report,
    )


KNOWN: dict[str, tuple[str, ...]] = {
    "3b30ca126bccd7a0": ("dinov2_vits14",),
    "2870ab902a81faa7": ("dinov2_vits14_reg",),
    "b9acaa75b0d5e573": ("dinov2_vitb14",),
    "7fb64316cbabc58c": ("dinov2_vitb14_reg",),
    "514a83589bde2412": ("dinov2_vitl14",),
    "dc9a22f8357039c7": ("dinov2_vitl14_reg",),
    "fcc13cb6238eab7f": ("dinov2_vitg14",),
    "ba01a9a661a2eaaa": ("dinov2_vitg14_reg",),
    "16f675a72e3714d4": ("dinov3_vits16",),
    "b54b73e7419bc1c0": ("dinov3_vits16plus",),
    "266f1e8d81333a8b": ("dinov3_vitb16",),
    "c1a85e8fded237a4": ("dinov3_vitl16",),
    "0625ae4761c4706c": ("dinov3_vitl16_sat493m",),
    "4fb9fba8cfbb97ea": ("dinov3_vitl16plus",),
    "05cd6209c9bdd3eb": ("dinov3_vith16plus",),
    "824e277733422db8": (
        "dinov3_vit7b16",
        "dinov3_vit7b16_sat493m",
    ),
    "bc5e427b9bbbd5c6": ("dinov3_convnext_tiny",),
    "ec49bfd6ba78b4ba": ("dinov3_convnext_small",),
    "ac71c57d7e3e1e2b": ("dinov3_convnext_base",),
    "53bea0bb01f2e7a3": ("dinov3_convnext_large",),
    "39349ad7d73fb76f": ("CroCo",),
    "764b526a49998a25": ("CroCo_V2_ViTBase_SmallDecoder",),
    "0be8da7eaf08a26d": ("CroCo_V2_ViTBase_BaseDecoder",),
    "27413adf4f10a42b": ("CroCo_V2_ViTLarge_BaseDecoder",),
    "c51cb1aa936e8d7c": (
        "DUSt3R_ViTLarge_BaseDecoder_224_linear",
        "DUSt3R_ViTLarge_BaseDecoder_512_linear",
    ),
    "0ed357fd82ce23d8": ("DUSt3R_ViTLarge_BaseDecoder_512_dpt",),
    "5273fffaf31bf7f0": ("MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",),
    "37a53451d2fa471e": ("splatt3r_v1.0",),
    "75eaafb79d32979b": (
        "vggt_1b",
        "vggt_1b_commercial",
    ),
    "0ed69a52300c8729": ("vggt_omega_1b_512",),
    "c5ef8a7401ae038b": ("vggt_omega_1b_256_text",),
    "8f656ac26e870b41": ("sam2_hiera_tiny",),
    "7e5f9d3d6099de9e": ("sam2_hiera_small",),
    "0da3ee56516065b3": ("sam2_hiera_base_plus",),
    "11c4512af4a0183a": ("sam2_hiera_large",),
    "5a31f53548be1d30": ("sam2.1_hiera_tiny",),
    "30f7030432d1687e": ("sam2.1_hiera_small",),
    "cf1e236598a9fe86": ("sam2.1_hiera_base_plus",),
    "b38bb6c453cb2b40": ("sam2.1_hiera_large",),
}
"""Digest of names and shapes -> published networks that have them."""
