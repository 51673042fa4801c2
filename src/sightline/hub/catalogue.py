"""The published weights: whose they are, how large, under which licence, where they come from.

A source is a URL, or ``hf:REPO_ID/FILENAME``. The authors' own place stands first. Facts are from
the authors' repositories and model cards; what they do not state is left out, not guessed.
"""

import dataclasses
from collections.abc import Sequence

APACHE = "Apache-2.0"
CC_BY_NC = "CC BY-NC 4.0 (non-commercial)"
CC_BY_NC_SA = "CC BY-NC-SA 4.0 (non-commercial)"
DINOV3_LICENCE = "DINOv3 License"
FAIR_NC = "FAIR Noncommercial Research License"
VGGT_LICENCE = "VGGT License (commercial use allowed, with an acceptable use policy)"
SPLATT3R_LICENCE = "not stated; built on MASt3R, which is CC BY-NC-SA 4.0 (non-commercial)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One set of published weights.

    Attributes:
        name: What `sightline.models.load` calls it.
        family: The family of networks, see `sightline.models.networks.FAMILIES`.
        network: The network's name where several sets of weights exist for it.
        parameters: Of the network as it runs here.
        sources: Where to get it, in the order tried.
        licence: Of the weights.
        gated: The page where access is asked for; None for weights that anybody may fetch.
        sha256: Of the file, where its authors state one.
    """

    name: str
    family: str
    network: str
    parameters: int
    sources: Sequence[str]
    licence: str
    gated: str | None = None
    sha256: str | None = None

    @property
    def memory(self) -> int:
        """Bytes of the weights in float32."""
        return 4 * self.parameters


_META = "https://dl.fbaipublicfiles.com"
_NAVER = "https://download.europe.naverlabs.com/ComputerVision"
_HF = "https://huggingface.co"


def _dinov2(size: str, parameters: int, registers: int) -> list[Entry]:
    def entry(name: str, file: str, count: int) -> Entry:
        url = f"{_META}/dinov2/dinov2_{size}/{file}_pretrain.pth"
        return Entry(
            name=name,
            family="dinov2",
            network=name,
            parameters=count,
            sources=(url,),
            licence=APACHE,
        )

    base = f"dinov2_{size}"
    return [
        entry(base, base, parameters),
        entry(f"{base}_reg", f"{base}_reg4", parameters + registers),
    ]


def _dinov3(size: str, parameters: int, data: str = "lvd1689m") -> Entry:
    # The .pth files have no public address: Meta mails links after a form is filled in.
    network = f"dinov3_{size}"
    repo = f"facebook/dinov3-{size.replace('_', '-')}-pretrain-{data}"
    return Entry(
        name=network if data == "lvd1689m" else f"{network}_{data}",
        family="dinov3_convnext" if "convnext" in size else "dinov3",
        network=network,
        parameters=parameters,
        sources=(f"hf:{repo}/model.safetensors",),
        licence=DINOV3_LICENCE,
        gated=f"{_HF}/{repo}",
    )


def _naver(name: str, family: str, folder: str, parameters: int, *, hub: bool = False) -> Entry:
    sources = [f"{_NAVER}/{folder}/{name}.pth"]
    if hub:
        sources.append(f"hf:naver/{name}/model.safetensors")
    return Entry(
        name=name,
        family=family,
        network=name,
        parameters=parameters,
        sources=tuple(sources),
        licence=CC_BY_NC_SA,
    )


def _vggt(name: str, file: str, repo: str, licence: str, *, gated: bool = False) -> Entry:
    return Entry(
        name=name,
        family="vggt",
        network="vggt_1b",
        parameters=1_256_537_516,
        sources=(f"hf:facebook/{repo}/{file}",),
        licence=licence,
        gated=f"{_HF}/facebook/{repo}" if gated else None,
    )


def _omega(name: str, parameters: int) -> Entry:
    return Entry(
        name=name,
        family="vggt_omega",
        network=name,
        parameters=parameters,
        sources=(f"hf:facebook/VGGT-Omega/{name}.pt",),
        licence=FAIR_NC,
        gated=f"{_HF}/facebook/VGGT-Omega",
    )


def _sam2(version: str, day: str, size: str, parameters: int) -> Entry:
    name = f"sam{version}_hiera_{size}"
    repo = name.replace("_", "-")
    return Entry(
        name=name,
        family="sam2",
        network=name,
        parameters=parameters,
        sources=(f"{_META}/segment_anything_2/{day}/{name}.pt", f"hf:facebook/{repo}/{name}.pt"),
        licence=APACHE,
    )


_SAM2_SIZES = {
    "tiny": 31_440_721,
    "small": 38_538_577,
    "base_plus": 73_328_401,
    "large": 216_924_865,
}
_ALL = [
    *_dinov2("vits14", 22_056_576, 1536),
    *_dinov2("vitb14", 86_580_480, 3072),
    *_dinov2("vitl14", 304_368_640, 4096),
    *_dinov2("vitg14", 1_136_480_768, 6144),
    _dinov3("vits16", 21_601_152),
    _dinov3("vits16plus", 28_697_472),
    _dinov3("vitb16", 85_669_632),
    _dinov3("vitl16", 303_154_176),
    _dinov3("vitl16", 303_156_224, "sat493m"),
    Entry(
        name="dinov3_vitl16plus",
        family="dinov3",
        network="dinov3_vitl16plus",
        parameters=403_915_776,
        sources=(),
        licence=DINOV3_LICENCE,
        gated="https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/",
    ),
    _dinov3("vith16plus", 840_633_600),
    _dinov3("vit7b16", 6_716_043_264),
    _dinov3("vit7b16", 6_716_043_264, "sat493m"),
    _dinov3("convnext_tiny", 27_820_128),
    _dinov3("convnext_small", 49_454_688),
    _dinov3("convnext_base", 87_566_464),
    _dinov3("convnext_large", 196_230_336),
    _naver("CroCo", "croco", "CroCo", 120_076_288),
    _naver("CroCo_V2_ViTBase_SmallDecoder", "croco", "CroCo", 120_076_288),
    _naver("CroCo_V2_ViTBase_BaseDecoder", "croco", "CroCo", 200_269_824),
    _naver("CroCo_V2_ViTLarge_BaseDecoder", "croco", "CroCo", 417_918_720),
    _naver("DUSt3R_ViTLarge_BaseDecoder_224_linear", "dust3r", "DUSt3R", 532_342_784, hub=True),
    _naver("DUSt3R_ViTLarge_BaseDecoder_512_linear", "dust3r", "DUSt3R", 532_342_784, hub=True),
    _naver("DUSt3R_ViTLarge_BaseDecoder_512_dpt", "dust3r", "DUSt3R", 571_171_208, hub=True),
    _naver(
        "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
        "mast3r",
        "MASt3R",
        688_638_856,
        hub=True,
    ),
    Entry(
        name="splatt3r_v1.0",
        family="splatt3r",
        network="splatt3r_v1.0",
        parameters=729_044_772,
        sources=("hf:brandonsmart/splatt3r_v1.0/epoch=19-step=1200.ckpt",),
        licence=SPLATT3R_LICENCE,
    ),
    _vggt("vggt_1b", "model.safetensors", "VGGT-1B", CC_BY_NC),
    _vggt(
        "vggt_1b_commercial",
        "vggt_1B_commercial.pt",
        "VGGT-1B-Commercial",
        VGGT_LICENCE,
        gated=True,
    ),
    _omega("vggt_omega_1b_512", 1_143_814_185),
    _omega("vggt_omega_1b_256_text", 1_349_473_321),
    *(_sam2("2", "072824", size, count) for size, count in _SAM2_SIZES.items()),
    *(_sam2("2.1", "092824", size, count) for size, count in _SAM2_SIZES.items()),
]
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ALL}
"""Name -> published weights."""
