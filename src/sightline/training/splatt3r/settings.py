"""What a training of Splatt3R can be told; torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.errors import InputError
from sightline.options import option
from sightline.training.settings import TrainSettings, path_option

MODES = {"addition": "add", "sum": "add", "concatenation": "concat", "weighted": "weighted_sum"}
"""Other names of ways to fuse."""
FUSIONS = ("concat", "add", "weighted_sum", "gated", "cross_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splatt3rSettings(TrainSettings):
    """Options of ``sightline train splatt3r``; the defaults of the loss are Splatt3R's own.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    batch_size: int = option(4, "pairs a process works on at once")
    lr: float = option(1e-4, "peak learning rate; Splatt3R itself has 1e-5")
    weight_decay: float = option(0.0, "of AdamW; never on biases, norms and scales")
    clip: float = option(0.5, "largest norm of the gradients; 0 does not clip")
    schedule: Literal["cosine", "step"] = option(
        "cosine", "of the learning rate; step divides it by ten at half time, as Splatt3R does"
    )

    data: str | None = path_option(
        None,
        "CO3D v2, ScanNet++, or a folder of scenes with poses and depth; without it, endless "
        "synthetic rooms",
    )
    data_format: Literal["auto", "co3d", "scannetpp", "posed"] = option("auto", "what data is")
    categories: tuple[str, ...] | None = option(None, "CO3D: some of its categories")
    set_lists: Literal["fewview_train", "manyview_dev"] = option(
        "fewview_train", "CO3D: manyview_dev is what the single-sequence subset has"
    )
    held_out: Literal["test", "val"] = option(
        "test", "CO3D: the part of its set lists that is scored"
    )
    mask_background: Literal["yes", "no", "random"] = option(
        "random", "CO3D: forget the depth of the background"
    )
    overlap: float = option(0.3, "ScanNet++: overlap of the views")
    baseline: float = option(0.5, "synthetic rooms: metres between views, at most")
    resolution: int = option(512, "side of the square pictures, in pixels")
    targets: int = option(3, "views a pair is judged on")
    jitter: bool = option(False, "change the colours of training pictures at random")
    val_pairs: int = option(32, "held-out pairs that are scored")

    checkpoint: str | None = path_option(
        None,
        "weights to start from, a file or the name of published ones: Splatt3R, fused or not, or "
        "MASt3R; without it, drawn ones",
    )
    size: Literal["published", "tiny"] = option("published", "of a network without checkpoint")
    network: Mapping[str, Any] | None = option(
        None, "constructor options that replace those of size"
    )

    backbone: str | None = option(
        None, "backbone to fuse in: a name, see docs/backbones.md; none: plain Splatt3R"
    )
    backbone_checkpoint: str | None = path_option(
        None, "its weights; without --backbone, a DINOv2, DINOv3 or ConvNeXt of any size"
    )
    backbone_seed: int = option(0, "of a random: backbone")
    fusion: str = option("add", f"how features are joined: {', '.join(FUSIONS)}")
    site: Literal["encoder", "decoder", "head"] = option(
        "encoder", "where: before the decoder, after it, or at all four inputs of the heads"
    )
    alignment: Literal["image", "features"] = option(
        "image", "resize the picture so that patches coincide, or the features as first published"
    )
    layer: int = option(-1, "layer of the backbone")
    width: int | None = option(None, "channels of the adapters; default: those of the tokens")

    train: Literal["fusion", "gaussian_head", "fusion+gaussian_head", "all"] = option(
        "fusion",
        "what is trained: the fusion alone (compares backbones fairly), the Gaussian heads, both, "
        "or all but the backbone",
    )
    mse: float = option(1.0, "weight of the squared error of masked pictures")
    perceptual: float = option(0.25, "weight of LPIPS, or of what stands in for it")
    lpips: str = option(
        "auto",
        "auto: LPIPS (AlexNet) if its weights are in torch's cache or in --checkpoint; none: a "
        "substitute; or files of weights, comma-separated",
    )
    points: float = option(0.05, "weight of MASt3R's loss on the points")
    matching: float = option(0.0, "weight of the matching loss inside it; MASt3R has 0.075")
    bounds: float = option(
        0.1,
        "weight of the loss on Gaussians that grow beyond a tenth of their distance; Splatt3R has none",
    )
    point_gradients: bool = option(
        False, "let the pictures' gradient move the points too; Splatt3R stops it"
    )

    compare: tuple[Any, ...] | None = option(
        None, "compare these backbones: names, or mappings of name and options; a run each"
    )
    seeds: tuple[int, ...] | None = option(None, "with --compare: seeds of every backbone's run")

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any data is read."""
        TrainSettings.__post_init__(self)
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {low} or more, got {value}; raise it")
        if self.resolution % 16:
            near = max(1, round(self.resolution / 16)) * 16
            raise InputError(
                f"--resolution must be a multiple of 16, got {self.resolution}; the nearest is "
                f"{near}"
            )
        if self.mode not in FUSIONS:
            raise InputError(
                f"--fusion must be one of {', '.join(FUSIONS)}, got {self.fusion}; change it"
            )
        if not 0 < self.overlap < 1:
            raise InputError(f"--overlap must be between 0 and 1, got {self.overlap}; change it")
        self._check_training()

    def _check_training(self) -> None:
        """Refuse a choice of trained parts that no loss or no backbone goes with."""
        if not (self.mse or self.perceptual):
            raise InputError("--mse and --perceptual are both 0; one has to be positive")
        if self.compare is not None:
            return
        fused = self.fuses or _is_fused(self.checkpoint)
        if "fusion" in self.train and not fused:
            raise InputError(
                f"--train {self.train} needs a backbone to fuse; name one with --backbone, or "
                "choose --train gaussian_head or all"
            )
        if self.train != "gaussian_head" and not (self.points or self.point_gradients):
            raise InputError(
                f"--train {self.train} changes the points, which no loss would hold in place; set "
                "--points above 0 (Splatt3R has 0.05) or --point-gradients"
            )

    @property
    def mode(self) -> str:
        """The way of fusing under its usual name."""
        return MODES.get(self.fusion, self.fusion)

    @property
    def fuses(self) -> bool:
        """Whether a backbone is fused in."""
        return bool(self.backbone or self.backbone_checkpoint)

    def lpips_files(self) -> list[str]:
        """Return the files of weights that were named."""
        return [part.strip() for part in self.lpips.split(",") if part.strip()]


def _is_fused(checkpoint: str | None) -> bool:
    """Return whether a file might be a fused network; what it is, loading tells."""
    return checkpoint is not None and Path(checkpoint).is_file()


_LEAST: dict[str, float] = {
    "overlap": 0,
    "baseline": 0.1,
    "resolution": 32,
    "targets": 1,
    "val_pairs": 1,
    "width": 1,
    "mse": 0,
    "perceptual": 0,
    "points": 0,
    "matching": 0,
    "bounds": 0,
}
