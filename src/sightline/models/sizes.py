"""From shapes to constructor options: how large a network is that a file belongs to.

One reader a family. Each returns the options, and which of them the shapes do not tell.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Options = dict[str, Any]


def has(names: Iterable[str], mark: str) -> bool:
    """Return whether a name is there, or with a star at its end any that begins so."""
    if mark.endswith("*"):
        return any(name.startswith(mark[:-1]) for name in names)
    return mark in names


def _count(shapes: Shapes, before: str, after: str = ".") -> int:
    """Return how many modules a list has."""
    found = [re.match(rf"{re.escape(before)}\.(\d+){re.escape(after)}", name) for name in shapes]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def heads_of(width: int) -> int:
    """Return heads of 64 channels, or the widest below that divide the width into fours."""
    for size in (64, 32, 16, 12, 8, 4):
        if width % size == 0:
            return width // size
    raise ValueError


def _inside(shapes: Shapes, prefix: str) -> Shapes:
    return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def _side(area: int) -> int:
    side = round(area**0.5)
    if side * side != area:
        raise ValueError
    return side


def _dinov2(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    registers = shapes.get("register_tokens", (1, 0, 0))[1]
    fused = "blocks.0.mlp.w12.weight" in shapes
    hidden = shapes["blocks.0.mlp.w3.weight"][1] if fused else shapes["blocks.0.mlp.fc1.weight"][0]
    ratio = hidden / width
    if fused:  # two thirds of the nominal width, rounded up to eights
        ratio = 4.0 if hidden == _up(width * 8 // 3, 8) else (hidden * 3 / 2) / width
    options = {
        "img_size": patch * _side(shapes["pos_embed"][1] - 1),
        "patch_size": patch,
        "in_chans": shapes["patch_embed.proj.weight"][1],
        "embed_dim": width,
        "depth": _count(shapes, "blocks"),
        "num_heads": heads_of(width),
        "mlp_ratio": ratio,
        "ffn_layer": "swiglufused" if fused else "mlp",
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "ffn_bias": f"blocks.0.mlp.{'w3' if fused else 'fc1'}.bias" in shapes,
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in shapes else None,
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
    }
    return options, ("num_heads", "interpolate_antialias", "interpolate_offset")


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _dinov3(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    gated = "blocks.0.mlp.w1.weight" in shapes
    hidden = shapes["blocks.0.mlp.w1.weight" if gated else "blocks.0.mlp.fc1.weight"][0]
    ratio = _gated_ratio(width, hidden) if gated else hidden / width
    options = {
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": _count(shapes, "blocks"),
        "num_heads": width // (4 * shapes["rope_embed.periods"][0]),
        "ffn_layer": "swiglu" if gated else "mlp",
        "ffn_ratio": ratio,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "mask_k_bias": "blocks.0.attn.qkv.bias_mask" in shapes,
        "ffn_bias": f"blocks.0.mlp.{'w1' if gated else 'fc1'}.bias" in shapes,
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "layerscale_init": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "norm_layer": "layernormbf16" if "norm.bias" in shapes else "rmsnorm",
        "n_storage_tokens": shapes.get("storage_tokens", (1, 0, 0))[1],
        "untie_cls_and_patch_norms": "cls_norm.weight" in shapes,
        "untie_global_and_local_cls_norm": "local_cls_norm.weight" in shapes,
        "pos_embed_rope_rescale_coords": 2.0,
    }
    return options, ("norm_eps", "pos_embed_rope_normalize_coords")


def _gated_ratio(width: int, hidden: int) -> float:
    """Return a ratio whose two thirds, rounded up to eights, are the stored width."""
    if hidden % 8:
        raise ValueError
    return next(
        ratio
        for nominal in (hidden * 3 / 2, hidden * 3 / 2 + 1, hidden * 3 / 2 - 1)
        if _up(int(int(width * (ratio := nominal / width)) * 2 / 3), 8) == hidden
    )


def _convnext(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    stages = _count(shapes, "stages")
    options = {
        "in_chans": shapes["downsample_layers.0.0.weight"][1],
        "depths": tuple(_count(shapes, f"stages.{s}") for s in range(stages)),
        "dims": tuple(shapes[f"stages.{s}.0.norm.weight"][0] for s in range(stages)),
    }
    return options, ()


def _croco_sizes(shapes: Shapes) -> Options:
    enc, _, patch, _ = shapes["patch_embed.proj.weight"]
    dec = shapes["decoder_embed.weight"][0]
    options: Options = {
        "patch_size": patch,
        "enc_embed_dim": enc,
        "enc_depth": _count(shapes, "enc_blocks"),
        "enc_num_heads": heads_of(enc),
        "dec_embed_dim": dec,
        "dec_depth": _count(shapes, "dec_blocks"),
        "dec_num_heads": heads_of(dec),
        "mlp_ratio": shapes["enc_blocks.0.mlp.fc1.weight"][0] / enc,
        "norm_im2_in_dec": "dec_blocks.0.norm_y.weight" in shapes,
        "pos_embed": "RoPE100",
    }
    if "enc_pos_embed" in shapes:
        area = shapes["enc_pos_embed"][0]
        rows = next(r for r in range(int(area**0.5), 0, -1) if area % r == 0)
        options |= {"pos_embed": "cosine", "img_size": (patch * rows, patch * (area // rows))}
    return options


def _croco(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    return {"img_size": 224, **_croco_sizes(shapes)}, _PAIR_ASSUMED


_PAIR_ASSUMED = ("enc_num_heads", "dec_num_heads", "img_size")


def _dpt_sizes(shapes: Shapes, home: str) -> Options:
    depth = _count(shapes, "dec_blocks")
    dims = tuple(shapes[f"{home}.act_postprocess.{k}.0.weight"][0] for k in range(4))
    return {
        "feature_dim": shapes[f"{home}.scratch.layer1_rn.weight"][0]
        if f"{home}.scratch.layer1_rn.weight" in shapes
        else shapes[f"{home}.scratch.layer_rn.0.weight"][0],
        "last_dim": shapes[f"{home}.head.2.weight"][0],
        "layer_dims": dims,
        "hooks": (0, depth // 2, depth * 3 // 4, depth),
    }


def _dust3r(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    linear = "downstream_head1.proj.weight" in shapes
    options = {"img_size": 512, **_croco_sizes(shapes), "head_type": "linear" if linear else "dpt"}
    if not linear:
        options["dpt"] = _dpt_sizes(shapes, "downstream_head1.dpt")
    return options, _PAIR_ASSUMED if linear else (*_PAIR_ASSUMED, "dpt.hooks")


def _mast3r(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    options = _croco_sizes(shapes)
    patch = options["patch_size"]
    hidden, width = shapes["downstream_head1.head_local_features.fc1.weight"]
    channels = shapes["downstream_head1.head_local_features.fc2.weight"][0] // patch**2
    options |= {
        "output_mode": f"pts3d+desc{channels - 1}",
        "two_confs": True,
        "desc_conf_mode": ("exp", 0, float("inf")),
        "hidden_dim_factor": hidden / width,
        "dpt": _dpt_sizes(shapes, "downstream_head1.dpt"),
        "img_size": options.get("img_size", 512),
    }
    return options, (*_PAIR_ASSUMED, "dpt.hooks", "two_confs", "desc_conf_mode")


def _splatt3r(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    inner = _inside(shapes, "encoder.")
    options, assumed = _mast3r(inner)
    channels = inner["downstream_head1.gaussian_dpt.dpt.head.4.weight"][0]
    options |= {
        "output_mode": options["output_mode"].replace("+desc", "+gaussian+desc"),
        "desc_conf_mode": None,
        "sh_degree": (channels - 11) // 3,
        "lpips": any(name.startswith("lpips_criterion.") for name in shapes),
    }
    return options, assumed


def _splatt3r_fused(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    plain = {n: s for n, s in shapes.items() if not n.startswith("fusion.")}
    options, assumed = _splatt3r(plain)
    inner = _inside(shapes, "fusion.adapters.")
    views = sorted({name.split(".")[0] for name in inner})
    entries = sorted({int(name.split(".")[1]) for name in inner})
    if views == ["0"] and entries == [0]:
        site = "encoder"
    else:
        site = "decoder" if entries == [options["dec_depth"]] else "head"
    last = _inside(inner, f"0.{entries[-1]}.")
    width = last["out.weight"][1]
    own = all(len({*inner[f"0.{entry}.out.weight"]}) == 1 for entry in entries)
    mode = next((mode for mark, mode in _FUSION_MODES.items() if mark in last), "add")
    extra = last.get("memory.0.weight") or last.get("adapter.dinov2_proj.0.weight", (0, 0))[1:]
    fusion: Options = {
        "mode": mode,
        "site": site,
        # An adapter without a projection takes the second network's channels as they are.
        "extra_dim": extra[0] or width,
        "width": None if own else width,
    }
    if mode == "cross_attention":
        fusion["num_heads"] = 8 if width % 8 == 0 else heads_of(width)
    backbone = _inside(shapes, "fusion.backbone.")
    if backbone:
        family = _family_of_backbone(backbone)
        sizes, unsure = READERS[family](backbone)
        fusion["backbone"] = {"family": family, **sizes}
        if family == "dinov3_convnext":
            fusion["backbone"]["patch_size"] = 16
        assumed = (*assumed, *(f"fusion.backbone.{name}" for name in unsure))
    return options | {"fusion": fusion}, (*assumed, "fusion.layer", "fusion.alignment")


_FUSION_MODES = {
    "query.0.weight": "cross_attention",
    "adapter.output_proj.0.weight": "concat",
    "adapter.gate.weight": "gated",
    "adapter.dinov2_weight": "weighted_sum",
}
"""Part of an adapter -> its mode; one with none of them adds."""


def _family_of_backbone(shapes: Shapes) -> str:
    if "downsample_layers.0.0.weight" in shapes:
        return "dinov3_convnext"
    return "dinov3" if "rope_embed.periods" in shapes else "dinov2"


def read_layers(depth: int) -> tuple[int, ...]:
    """Return which layers dense heads read: the published ones, or four spread evenly."""
    if depth == 24:
        return (4, 11, 17, 23)
    return tuple(max(round((k + 1) * depth / 4) - 1, 0) for k in range(4))


def camera_heads(width: int, multiple: int) -> int:
    """Return the attention heads of a camera head: 16 where they divide its width."""
    return 16 if width % multiple == 0 else heads_of(width)


def _dense(shapes: Shapes, home: str, depth: int) -> Options:
    layers = read_layers(depth)
    return {
        "features": shapes[f"{home}.scratch.layer1_rn.weight"][0],
        "out_channels": tuple(shapes[f"{home}.projects.{k}.weight"][0] for k in range(4)),
        "intermediate_layer_idx": layers,
    }


def _vggt(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    width = shapes["aggregator.camera_token"][-1]
    depth = _count(shapes, "aggregator.frame_blocks")
    encoder, options = _encoder(shapes, width)
    block = _inside(shapes, "aggregator.frame_blocks.0.")
    head = block.get("attn.q_norm.weight", (64,))[0]
    aggregator: Options = {
        **encoder,
        "depth": depth,
        "num_heads": width // head,
        "mlp_ratio": block["mlp.fc1.weight"][0] / width,
        "num_register_tokens": shapes["aggregator.register_token"][2],
        "qk_norm": "attn.q_norm.weight" in block,
    }
    options |= {
        "embed_dim": width,
        "aggregator": aggregator,
        **{f"enable_{part}": has(shapes, f"{part}_head.*") for part in _VGGT_PARTS},
    }
    trunk = _count(shapes, "camera_head.trunk")
    if trunk:
        options["camera"] = {
            "trunk_depth": trunk,
            "num_heads": camera_heads(2 * width, 16),
            "mlp_ratio": shapes["camera_head.trunk.0.mlp.fc1.weight"][0] / (2 * width),
        }
    for part in ("point", "depth"):
        if options[f"enable_{part}"]:
            options[part] = _dense(shapes, f"{part}_head", depth)
            options[part]["output_dim"] = shapes[f"{part}_head.scratch.output_conv2.2.weight"][0]
    if options["enable_track"]:
        options |= _track(shapes, depth)
    return options, ("camera.num_heads", "intermediate_layer_idx", "track.num_heads", "rope_freq")


_VGGT_PARTS = ("camera", "point", "depth", "track")


def _encoder(shapes: Shapes, width: int) -> tuple[Options, Options]:
    """Return options of an aggregator's encoder, and the picture's."""
    inner = _inside(shapes, "aggregator.patch_embed.")
    if "downsample_layers.0.0.weight" in inner:
        sizes, _ = _convnext(inner)
        return {"patch_embed": "dinov3_convnext_tiny", "encoder": sizes}, {
            "img_size": 512,
            "patch_size": 32,
        }
    if "cls_token" not in inner:
        patch = inner["proj.weight"][2]
        return {"patch_embed": "conv"}, {"img_size": 37 * patch, "patch_size": patch}
    third = "rope_embed.periods" in inner
    sizes, _ = (_dinov3 if third else _dinov2)(inner)
    patch = sizes.pop("patch_size")
    side = sizes.pop("img_size", 32 * patch)
    name = "dinov3_vitl16" if third else "dinov2_vitl14_reg"
    if third and patch != 16:
        sizes["patch_size"] = patch
    if not third:
        sizes |= {"interpolate_antialias": True, "interpolate_offset": 0.0, "patch_size": patch}
    encoder = {"patch_embed": name, "encoder": sizes}
    return encoder, {"img_size": side, "patch_size": patch}


def _track(shapes: Shapes, depth: int) -> Options:
    home = "track_head.tracker"
    features = shapes[f"{home}.fmap_norm.weight"][0]
    hidden, inputs = shapes[f"{home}.corr_mlp.fc1.weight"]
    former = f"{home}.updateformer"
    # levels * (2 r + 1)^2 inputs; published networks have a radius of 4, smaller ones less
    radius = next(r for r in (4, 3, 2, 1) if inputs % (2 * r + 1) ** 2 == 0)
    dense = _dense(shapes, "track_head.feature_extractor", depth)
    track = {
        "features": features,
        "corr_levels": inputs // (2 * radius + 1) ** 2,
        "corr_radius": radius,
        "hidden_size": hidden,
        "depth": _count(shapes, f"{former}.time_blocks"),
        "num_heads": 8 if hidden % 8 == 0 else heads_of(hidden),
        "mlp_ratio": shapes[f"{former}.time_blocks.0.mlp.fc1.weight"][0] / hidden,
        "num_virtual_tracks": shapes[f"{former}.virual_tracks"][1],
    }
    dense.pop("features")
    return {"track": track, "dpt": dense}


def _vggt_omega(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    width = shapes["aggregator.camera_token"][-1]
    depth = _count(shapes, "aggregator.frame_blocks")
    encoder, _ = _dinov3(_inside(shapes, "aggregator.patch_embed."))
    patch = encoder.pop("patch_size")
    for name in ("in_chans", "embed_dim"):
        encoder.pop(name)
    encoder["pos_embed_rope_normalize_coords"] = "max"
    cached = read_layers(depth)
    registers = (2, 6, 9, 14, 20) if depth == 24 else ()
    options: Options = {
        "patch_size": patch,
        "embed_dim": width,
        "enable_camera": has(shapes, "camera_head.*"),
        "enable_depth": has(shapes, "dense_head.*"),
        "enable_alignment": has(shapes, "text_alignment_head.*"),
        "aggregator": {
            "depth": depth,
            "num_heads": width // shapes["aggregator.frame_blocks.0.attn.q_norm.weight"][0],
            "mlp_ratio": shapes["aggregator.frame_blocks.0.mlp.fc1.weight"][0] / width,
            "num_register_tokens": shapes["aggregator.register_token"][2],
            "cached_layer_indices": cached,
            "register_attention_block_indices": registers,
            "mask_k_bias": "aggregator.frame_blocks.0.attn.qkv.bias_mask" in shapes,
            "encoder": encoder,
        },
    }
    for part, home in (("camera", "camera_head.trunk"), ("text", f"{_TEXT}.readout_blocks")):
        if f"{home}.0.norm1.weight" in shapes:
            options[part] = {
                "depth": _count(shapes, home),
                "num_heads": camera_heads(2 * width, 64),
                "mlp_ratio": shapes[f"{home}.0.mlp.fc1.weight"][0] / (2 * width),
                "mask_k_bias": f"{home}.0.attn.qkv.bias_mask" in shapes,
            }
    if options["enable_depth"]:
        options["dense"] = _dense(shapes, "dense_head", depth) | {"intermediate_layer_idx": cached}
    return options, (
        "camera.num_heads",
        "cached_layer_indices",
        "register_attention_block_indices",
    )


_TEXT = "text_alignment_head"


def _sam2(shapes: Shapes) -> tuple[Options, tuple[str, ...]]:
    trunk = "image_encoder.trunk"
    widths = [
        shapes[f"{trunk}.blocks.{k}.norm2.weight"][0]
        for k in range(_count(shapes, f"{trunk}.blocks"))
    ]
    stages = tuple(widths.count(width) for width in dict.fromkeys(widths))
    size = next((s for s in _SAM2_SIZES if s["stages"] == stages), None)
    hiera: Options = {
        "embed_dim": widths[0],
        "stages": stages,
        "window_pos_embed_bkg_spatial_size": shapes[f"{trunk}.pos_embed"][2:],
        "mlp_ratio": shapes[f"{trunk}.blocks.0.mlp.layers.0.weight"][0] / widths[0],
    }
    spec = size or {"num_heads": 1, "global_att_blocks": (), "window_spec": (8, 4, 14, 7)}
    hiera |= {k: spec[k] for k in ("num_heads", "global_att_blocks", "window_spec")}
    hiera["window_spec"] = (shapes[f"{trunk}.pos_embed_window"][2], *hiera["window_spec"][1:])
    width = shapes["no_mem_embed"][-1]
    decoder = "sam_mask_decoder"
    video = "maskmem_tpos_enc" in shapes
    options: Options = {
        "hiera": hiera,
        "neck": {"d_model": width, "backbone_channel_list": list(dict.fromkeys(widths))[::-1]},
        "decoder": {
            "depth": _count(shapes, f"{decoder}.transformer.layers"),
            "mlp_dim": shapes[f"{decoder}.transformer.layers.0.mlp.layers.0.weight"][0],
            "multimask": shapes[f"{decoder}.mask_tokens.weight"][0] - 1,
            "iou_head_hidden_dim": shapes[f"{decoder}.iou_prediction_head.layers.0.weight"][0],
        },
        "video": ("2.1" if "no_obj_embed_spatial" in shapes else "2") if video else None,
    }
    return options, ("image_size", "hiera.num_heads", "hiera.global_att_blocks", "decoder.heads")


_SAM2_SIZES: tuple[Options, ...] = (
    {
        "stages": (1, 2, 7, 2),
        "num_heads": 1,
        "global_att_blocks": (5, 7, 9),
        "window_spec": (8, 4, 14, 7),
    },
    {
        "stages": (1, 2, 11, 2),
        "num_heads": 1,
        "global_att_blocks": (7, 10, 13),
        "window_spec": (8, 4, 14, 7),
    },
    {
        "stages": (2, 3, 16, 3),
        "num_heads": 2,
        "global_att_blocks": (12, 16, 20),
        "window_spec": (8, 4, 14, 7),
    },
    {
        "stages": (2, 6, 36, 4),
        "num_heads": 2,
        "global_att_blocks": (23, 33, 43),
        "window_spec": (8, 4, 16, 8),
    },
)

READERS: dict[str, Callable[[Shapes], tuple[Options, tuple[str, ...]]]] = {
    "splatt3r_fused": _splatt3r_fused,
    "splatt3r": _splatt3r,
    "mast3r": _mast3r,
    "dust3r": _dust3r,
    "croco": _croco,
    "vggt_omega": _vggt_omega,
    "vggt": _vggt,
    "sam2": _sam2,
    "dinov3_convnext": _convnext,
    "dinov3": _dinov3,
    "dinov2": _dinov2,
}
"""Family -> shapes to constructor options, and which of them are assumptions."""
