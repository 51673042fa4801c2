"""What ``sightline train vggt`` lets its user choose; torch-free."""

from dataclasses import dataclass
from typing import Literal

from sightline.errors import InputError
from sightline.options import option
from sightline.training.settings import TrainSettings, path_option


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtSettings(TrainSettings):
    """Options of the trainer; rates and weights are those of VGGT's published training code.

    The network is a small one that a single machine trains; ``configs/train/vggt_1b.yaml`` has the
    published sizes.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    data: str | None = path_option(
        None,
        "CO3D, ScanNet++, a scene with poses and depth, a folder of such scenes, or a run of "
        "sightline reconstruct; default: generated rooms without end",
    )
    paints: Literal["free", "house"] = option(
        "free", "generated rooms: any paint, or walls that keep their hue (learned far sooner)"
    )
    stand: Literal["walk", "orbit"] = option(
        "walk", "generated rooms: cameras anywhere, or on an arc before one corner"
    )
    objects: int = option(8, "generated rooms: most things in a room; half as many at least")
    rays: int = option(2, "generated rooms: rays through a pixel, along each side")
    batch_size: int = option(16, "pictures a process works on at once; scenes are as many as fit")
    lr: float = option(5e-5, "peak learning rate")
    min_lr: float = option(1e-8, "learning rate at the end of the cosine")
    warmup: float = option(0.05, "steps of linear warm-up; below 1: share of all steps")
    weight_decay: float = option(0.05, "of AdamW; never on biases, norms and scales")
    clip: float = option(1.0, "largest norm of the gradients of each part of the network")

    model: Literal["vggt", "omega"] = option("vggt", "VGGT or VGGT-Omega")
    checkpoint: str | None = path_option(
        None, "weights of the whole network to start from; its sizes then count"
    )
    encoder: str = option("dinov3_vits16", "a DINOv2 or DINOv3 network, or conv")
    encoder_checkpoint: str | None = path_option(None, "weights of the encoder to start from")
    encoder_dim: int = option(0, "width of the encoder; 0: its published one, as below")
    encoder_depth: int = option(0, "blocks of the encoder")
    encoder_heads: int = option(0, "attention heads of the encoder")
    patch_size: int = option(0, "pixels a patch; only for encoders trained from scratch")
    embed_dim: int = option(384, "width of the aggregator")
    depth: int = option(12, "pairs of blocks of the aggregator")
    heads: int = option(6, "attention heads of the aggregator")
    registers: int = option(4, "register tokens of a frame")
    features: int = option(64, "channels of the dense heads")
    camera_depth: int = option(4, "blocks of the camera head")
    layer_scale: float = option(0.01, "start of the layer scales of what is not loaded")
    freeze: str = option("", 'what is not trained: comma-separated patterns such as "*aggregator*"')
    encoder_lr_scale: float = option(1.0, "learning rate of the encoder over that of the rest")
    gradient_checkpointing: bool = option(True, "compute blocks again rather than keep them")

    camera_weight: float = option(5.0, "weight of the camera loss; 0 leaves the head out")
    depth_weight: float = option(1.0, "weight of the depth loss; 0 leaves the head out")
    point_weight: float = option(0.0, "weight of the point loss; 0 leaves the head out")
    track_weight: float = option(0.0, "weight of the track loss; 0 leaves the head out")
    depth_gradient: Literal["none", "grad", "grad_conf"] = option("grad", "shape term of depth")
    point_gradient: Literal["none", "normal", "normal_conf"] = option(
        "normal", "shape term of points"
    )
    valid_range: float = option(0.98, "share of the smallest errors that counts")
    track_points: int = option(64, "points tracked in a scene")

    min_frames: int = option(2, "fewest views of a scene")
    max_frames: int = option(8, "most views of a scene; each number is as likely")
    width: int = option(224, "of the views, a multiple of the patch")
    min_aspect: float = option(0.33, "least height over width")
    max_aspect: float = option(1.0, "most height over width")
    min_scale: float = option(0.8, "least share of a picture that is kept")
    max_scale: float = option(1.2, "most; above 1 keeps all")
    jitter: bool = option(True, "change colours, alike in all views of a scene in 3 of 10")

    val_scenes: int = option(32, "samples of the validation")
    val_frames: int = option(4, "views of each; at most --max-frames")

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any data is read."""
        TrainSettings.__post_init__(self)
        if not 2 <= self.min_frames <= self.max_frames <= self.batch_size:
            raise InputError(
                "expected 2 <= --min-frames <= --max-frames <= --batch-size, got "
                f"{self.min_frames}, {self.max_frames} and {self.batch_size}; change one"
            )
        if not 0 < self.min_aspect <= self.max_aspect:
            raise InputError(
                f"expected 0 < --min-aspect <= --max-aspect, got {self.min_aspect} and "
                f"{self.max_aspect}; change one"
            )
        if not 0 < self.min_scale <= self.max_scale:
            raise InputError(
                f"expected 0 < --min-scale <= --max-scale, got {self.min_scale} and "
                f"{self.max_scale}; change one"
            )
        weights = {
            name: getattr(self, f"{name}_weight") for name in ("camera", "depth", "point", "track")
        }
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise InputError(
                "expected loss weights of 0 or more, one of them above, got "
                + ", ".join(f"--{name}-weight {value}" for name, value in weights.items())
            )
        if self.model == "omega" and (self.point_weight or self.track_weight):
            raise InputError(
                "VGGT-Omega has no point and no track head; set --point-weight and --track-weight "
                "to 0, or take --model vggt"
            )
        if self.model == "omega" and not self.encoder.startswith("dinov3"):
            raise InputError(
                f"VGGT-Omega stands on a DINOv3 ViT, got --encoder {self.encoder}; take "
                "dinov3_vitl16 or --model vggt"
            )
        for name in (
            "val_scenes",
            "val_frames",
            "track_points",
            "rays",
            "embed_dim",
            "depth",
            "heads",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be 1 or more; raise it")

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of names that are not trained."""
        return tuple(part.strip() for part in self.freeze.split(",") if part.strip())
