"""The old Python interface of no-time-to-train: the same argument names, on our segmenter.

Configuration dictionaries are checked: a key that nobody reads is refused by name.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sightline.errors import InputError, UnknownNameError
from sightline.segmentation.encoder import COLOUR, Encoder, create_encoder
from sightline.segmentation.matching import AmgOptions, MatchOptions
from sightline.segmentation.memory import MemoryBank
from sightline.segmentation.proposals import GraphProposer, Proposer
from sightline.segmentation.references import Reference
from sightline.segmentation.segmenter import FewShotSegmenter, Picture, SegmentOptions
from sightline.types import InstanceMasks

log = logging.getLogger(__name__)

Config = Mapping[str, Any]

_SIZES = {"small": "s", "base": "b", "large": "l", "giant": "g"}
ENCODERS = {
    **{f"dinov2_{size}": f"dinov2_vit{s}14" for size, s in _SIZES.items()},
    **{f"dinov2_{size}_reg": f"dinov2_vit{s}14_reg" for size, s in _SIZES.items()},
    "dinov3_small": "dinov3_vits16",
    "dinov3_small_plus": "dinov3_vits16plus",
    "dinov3_base": "dinov3_vitb16",
    "dinov3_large": "dinov3_vitl16",
    "dinov3_giant": "dinov3_vitg16",
    "dinov3_huge_plus": "dinov3_vith16plus",
    "dinov3_7b": "dinov3_vit7b16",
    **{f"dinov3_convnext_{s}": f"dinov3_convnext_{s}" for s in ("tiny", "small", "base", "large")},
    COLOUR: COLOUR,
}
"""``encoder_cfg.name`` -> backbone."""

INFER_KEYS = (
    *("points_per_side", "testing_point_bs", "iou_thr", "nms_thr", "num_out_instance", "kmeans_k"),
    *("n_pca_components", "cls_num_per_mask", "with_negative_refs", "negative_score_thr"),
)
ENCODER_KEYS = ("name", "img_size", "patch_size")
BANK_KEYS = ("enable", "category_num", "length", "length_negative")


def check_keys(given: Config | None, known: Sequence[str], where: str) -> dict[str, Any]:
    """Return a copy of a dictionary whose keys are all known.

    Raises:
        InputError: It is no dictionary.
        UnknownNameError: A key is unknown.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"expected keys and values under {where}, got {type(given).__name__}")
    for key in given:
        if key not in known:
            raise UnknownNameError(f"key of {where}", str(key), known)
    return dict(given)


def open_old_encoder(
    encoder_cfg: Config, encoder_ckpt_path: str | None, *, norm: bool = True
) -> Encoder:
    """Return the encoder of an ``encoder_cfg``; an empty checkpoint path draws its weights.

    Raises:
        UnknownNameError: There is no such encoder or key.
        InputError: ``patch_size`` is not the encoder's, or ``dinov3_giant`` has no checkpoint.
    """
    config = check_keys(encoder_cfg, ENCODER_KEYS, "encoder_cfg")
    name = str(config.get("name", "dinov2_large")).lower()
    if name not in ENCODERS:
        kind = "DINOv3 model" if name.startswith("dinov3") else "encoder"
        raise UnknownNameError(kind, name, ENCODERS)
    size = config.get("img_size")
    backbone = ENCODERS[name]
    if not encoder_ckpt_path and name != COLOUR:
        if name == "dinov3_giant":
            raise InputError(
                "dinov3_giant has no public weights: give encoder_ckpt_path, or use "
                "dinov3_huge_plus, the largest published one below 7B"
            )
        log.warning("no encoder_ckpt_path: %s has random weights, which is only a control", name)
        backbone = f"random:{backbone}"
    encoder = create_encoder(
        backbone,
        encoder_ckpt_path or None,
        size=None if size is None else int(size),
        norm=norm,
    )
    patch = config.get("patch_size")
    if patch is not None and int(patch) != encoder.backbone.patch_size:
        raise InputError(
            f"encoder_cfg.patch_size must be {encoder.backbone.patch_size} for {name}, got {patch}"
        )
    return encoder


def open_old_sam(sam2_cfg_file: str, sam2_ckpt_path: str | None) -> Any:  # noqa: ANN401
    """Return SAM 2 by its configuration's name; None without a checkpoint.

    Raises:
        UnknownNameError: There is no such configuration.
    """
    from sightline import models
    from sightline.models.sam2 import CONFIG_NAMES

    name = sam2_cfg_file.replace("\\", "/").rsplit("/", 1)[-1]
    if name not in CONFIG_NAMES:
        raise UnknownNameError("SAM 2 configuration", name, CONFIG_NAMES)
    if not sam2_ckpt_path:
        log.warning("no sam2_ckpt_path: masks come from superpixels instead of SAM 2")
        return None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.load(CONFIG_NAMES[name], sam2_ckpt_path, device=device)
    return model.eval().requires_grad_(False)


class _Baseline:
    """What both old classes share.

    Attributes:
        segmenter: Does the work; `FewShotSegmenter` has more to offer.
        memory_bank_cfg: As given.
        class_names: As given; names come from the references otherwise.
    """

    def __init__(
        self,
        segmenter: FewShotSegmenter,
        memory_bank_cfg: Config | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.segmenter = segmenter
        self.memory_bank_cfg = check_keys(memory_bank_cfg, BANK_KEYS, "memory_bank_cfg")
        self.class_names = class_names

    @property
    def bank(self) -> MemoryBank | None:
        """The references, once filled."""
        return self.segmenter.bank

    def fill_memory(self, references: Sequence[Reference]) -> None:
        """Add references to the bank.

        Raises:
            InputError: A class gets more of them than ``memory_bank_cfg.length``.
        """
        filled = self.segmenter.fit(references)
        length = self.memory_bank_cfg.get("length")
        assert filled.bank is not None
        if length is not None and int(filled.bank.counts.max()) > int(length):
            raise InputError(
                f"expected at most {length} references a class (memory_bank_cfg.length), got "
                f"{int(filled.bank.counts.max())}; raise it or give fewer"
            )
        self.segmenter = filled

    def fill_memory_neg(self, references: Sequence[Reference]) -> None:
        """Add negative references to the bank."""
        self.segmenter = self.segmenter.fit([], references)

    def load_memory(self, bank: MemoryBank) -> None:
        """Use a bank that was saved."""
        self.segmenter = self.segmenter.with_bank(bank)

    def predict(self, images: Sequence[Picture]) -> list[InstanceMasks]:
        """Return the instances of each picture."""
        return self.segmenter.predict(images)


class Sam2MatchingBaseline_noAMG(_Baseline):
    """The default model: SAM 2 on a grid of points."""

    def __init__(
        self,
        sam2_cfg_file: str = "sam2_hiera_l.yaml",
        sam2_ckpt_path: str | None = None,
        sam2_infer_cfgs: Config | None = None,
        encoder_cfg: Config | None = None,
        encoder_ckpt_path: str | None = None,
        memory_bank_cfg: Config | None = None,
        dataset_name: str = "coco",
        dataset_imgs_path: str | None = None,
        class_names: Sequence[str] | None = None,
        online_vis: bool = False,
        vis_thr: float = 0.5,
    ) -> None:
        """Take the old arguments; see ``docs/segmentation.md``."""
        infer = check_keys(sam2_infer_cfgs, INFER_KEYS, "sam2_infer_cfgs")
        model = open_old_sam(sam2_cfg_file, sam2_ckpt_path)
        proposer: Proposer = GraphProposer()
        if model is not None:
            from sightline.segmentation.sam import PointProposer

            proposer = PointProposer(
                model=model,
                points_per_side=int(infer.get("points_per_side", 32)),
                point_batch=int(infer.get("testing_point_bs", 256)),
                iou_thr=float(infer.get("iou_thr", 0.4)),
            )
        match = MatchOptions(
            nms_thr=float(infer.get("nms_thr", 0.5)),
            num_out_instance=int(infer.get("num_out_instance", 100)),
            cls_num_per_mask=int(infer.get("cls_num_per_mask", 1)),
        )
        encoder = open_old_encoder(encoder_cfg or {}, encoder_ckpt_path)
        options = SegmentOptions(match=match)
        super().__init__(
            FewShotSegmenter(encoder, proposer, options=options), memory_bank_cfg, class_names
        )
        self.kmeans_k = int(infer.get("kmeans_k", 4))
        self.n_pca_components = int(infer.get("n_pca_components", 3))
        self.with_negative_refs = bool(infer.get("with_negative_refs", False))
        self.dataset_name, self.dataset_imgs_path = dataset_name, dataset_imgs_path
        self.online_vis, self.vis_thr = online_vis, vis_thr

    def load_memory(self, bank: MemoryBank) -> None:
        """Use a bank that was saved; its negatives count only with ``with_negative_refs``."""
        if not self.with_negative_refs and len(bank.negatives):
            import torch

            nothing = bank.negatives.select(torch.zeros(0, dtype=torch.int64))
            bank = replace(bank, negatives=nothing)
        super().load_memory(bank)


class Sam2MatchingBaseline(_Baseline):
    """The AMG model: SAM 2's automatic masks, every class against every mask."""

    def __init__(
        self,
        sam2_cfg_file: str = "sam2_hiera_l.yaml",
        sam2_ckpt_path: str | None = None,
        sam2_amg_cfg: Config | None = None,
        encoder_cfg: Config | None = None,
        encoder_ckpt_path: str | None = None,
        memory_bank_cfg: Config | None = None,
        dataset_name: str = "coco",
        dataset_imgs_path: str | None = None,
        class_names: Sequence[str] | None = None,
        online_vis: bool = False,
        vis_thr: float = 0.5,
    ) -> None:
        """Take the old arguments; see ``docs/segmentation.md``."""
        from sightline.segmentation.sam import AutomaticMasks

        known = tuple(f.name for f in fields(AutomaticMasks) if f.name != "model")
        amg = check_keys(sam2_amg_cfg, known, "sam2_amg_cfg")
        model = open_old_sam(sam2_cfg_file, sam2_ckpt_path)
        proposer: Proposer = GraphProposer()
        if model is not None:
            proposer = AutomaticMasks(model=model, **amg)
        encoder = open_old_encoder(encoder_cfg or {}, encoder_ckpt_path, norm=False)
        options = SegmentOptions(model="amg", amg=AmgOptions(num_out_instance=100))
        super().__init__(
            FewShotSegmenter(encoder, proposer, options=options), memory_bank_cfg, class_names
        )
        self.kmeans_k, self.n_pca_components, self.with_negative_refs = 4, 3, False
        self.dataset_name, self.dataset_imgs_path = dataset_name, dataset_imgs_path
        self.online_vis, self.vis_thr = online_vis, vis_thr


MODELS = {
    "matching_baseline_noamg": Sam2MatchingBaseline_noAMG,
    "matching_baseline": Sam2MatchingBaseline,
}
"""``model_cfg.name`` in lower case -> class."""
