"""The options of ``sightline train dino``."""

from dataclasses import dataclass
from typing import Any, Literal

from sightline.errors import InputError
from sightline.options import option
from sightline.training.settings import TrainSettings, path_option


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoSettings(TrainSettings):
    """What is distilled, from what, and how; defaults follow DINOv2's and DINOv3's recipes.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    epochs: int | None = option(None, "passes over the pictures; 5 if neither this nor --steps")
    clip: float = option(3.0, "largest norm of the gradients; 0 does not clip")
    data: str | None = path_option(
        None, "folder of pictures (subfolders are classes) or prepared data; or generated:N"
    )
    val_data: str | None = path_option(None, "held-out pictures for validation")
    holdout: float = option(0.0, "share of the pictures that only validation sees")
    label: str | None = option(None, "prepared data: key of the metadata that is the class")
    channels: int = option(3, "3 for colour; else the prepared bands, or 1 for raw thermal counts")
    cache_mb: int = option(1024, "memory for decoded pictures")
    short_side: int = option(0, "pictures are shrunk to this first; 0: twice --global-size")

    model: str = option("dinov3_vits16", "a DINOv2 or DINOv3 ViT, or dinov2_tiny, dinov3_tiny")
    checkpoint: str | None = path_option(None, "weights to start from; default: from scratch")
    model_options: dict[str, Any] | None = option(
        None, "constructor options that replace the model's own"
    )
    drop_path: float = option(0.0, "chance that a block is left out for a picture")

    global_size: int = option(224, "pixels of a global crop")
    local_size: int = option(96, "pixels of a local crop")
    local_crops: int = option(8, "local crops a picture")
    global_scale: tuple[float, float] = option((0.32, 1.0), "area of a global crop, as shares")
    local_scale: tuple[float, float] = option((0.05, 0.32), "area of a local crop, as shares")
    jitter: float = option(1.0, "strength of the colour changes; 0 makes none")
    blur: float = option(2.0, "largest sigma of the blur, pixels")

    prototypes: int = option(65536, "outputs of the heads")
    head_hidden: int = option(2048, "width of the heads")
    head_bottleneck: int = option(256, "width of the heads before the prototypes")
    head_norm: bool | None = option(
        None,
        "weight-normed last layers, which learn from the first step; default: with DINOv2, not "
        "with DINOv3",
    )
    dino_weight: float = option(1.0, "of the loss between crops")
    ibot_weight: float = option(1.0, "of the loss of masked patches")
    koleo_weight: float = option(0.1, "of the spread of features")
    gram_weight: float = option(0.0, "of the Gram anchoring of patches")
    gram_start: float = option(0.5, "step of the first Gram teacher; below 1: share of all steps")
    gram_every: int = option(10000, "steps between Gram teachers")
    gram_updates: int = option(3, "most of them, the first not counted")
    gram_size: int = option(0, "pixels of the Gram teacher's crops; 0: --global-size")
    targets: Literal["sinkhorn", "centering"] = option("sinkhorn", "how the teacher is balanced")
    mask_share: float = option(0.5, "share of the global crops that are masked")
    mask_ratio: tuple[float, float] = option((0.1, 0.5), "masked share of a masked crop's patches")
    momentum: tuple[float, float] = option((0.992, 1.0), "of the teacher, first and last")
    teacher_temp: tuple[float, float] = option((0.04, 0.07), "of the teacher, first and final")
    teacher_warmup: float = option(0.3, "steps to the final one; below 1: share of all steps")
    freeze_last: float = option(0.01, "steps that keep the heads' last layer; below 1: share")
    layer_decay: float = option(0.9, "learning rate from one block to the one before it")
    patch_lr: float = option(0.2, "factor on the patch projection's learning rate")
    weight_decay_end: float | None = option(0.4, "weight decay of the last step, by a cosine")
    scale_lr: Literal["none", "sqrt", "linear"] = option(
        "none", "--lr is of this batch: as it is, of 1024 pictures (sqrt) or of 256 (linear)"
    )

    val_size: int = option(0, "pixels of validation pictures; 0: --global-size")
    knn: int = option(10, "neighbours that vote in validation")
    linear: bool = option(True, "also fit a linear probe in validation")

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any data is read."""
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", 5)
        TrainSettings.__post_init__(self)
        for name in ("holdout", "drop_path", "mask_share"):
            if not 0 <= getattr(self, name) < 1 and not (
                name == "mask_share" and self.mask_share == 1
            ):
                raise InputError(
                    f"--{name.replace('_', '-')} must be a share from 0 to below 1, got "
                    f"{getattr(self, name)}"
                )
        for name in ("global_scale", "local_scale", "mask_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')} must be two shares, the smaller first, got "
                    f"{[low, high]}"
                )
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise InputError(
                    f"--{name.replace('_', '-')} must be {least} or more, got "
                    f"{getattr(self, name)}; raise it"
                )
        if min(self.momentum) < 0 or max(self.momentum) > 1:
            raise InputError(f"--momentum must be two shares, got {list(self.momentum)}")
        if min(self.teacher_temp) <= 0:
            raise InputError(f"--teacher-temp must be above 0, got {list(self.teacher_temp)}")
        if self.val_data is not None and self.holdout:
            raise InputError("--val-data and --holdout exclude each other; keep one of them")
        if self.dino_weight == self.ibot_weight == 0:
            raise InputError("--dino-weight and --ibot-weight are both 0; raise one of them")


_LEAST: dict[str, float] = {
    "channels": 1,
    "cache_mb": 0,
    "short_side": 0,
    "global_size": 8,
    "local_size": 4,
    "local_crops": 0,
    "jitter": 0,
    "blur": 0,
    "prototypes": 2,
    "head_hidden": 1,
    "head_bottleneck": 1,
    "dino_weight": 0,
    "ibot_weight": 0,
    "koleo_weight": 0,
    "gram_weight": 0,
    "gram_start": 0,
    "gram_every": 1,
    "gram_updates": 0,
    "gram_size": 0,
    "teacher_warmup": 0,
    "freeze_last": 0,
    "layer_decay": 0,
    "patch_lr": 0,
    "val_size": 0,
    "knn": 1,
}
