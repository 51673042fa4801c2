"""The options of ``segment``: torch-free records for the command line, YAML and Python."""

from dataclasses import dataclass
from typing import Literal

from sightline.errors import InputError
from sightline.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """What features are made of."""

    backbone: str = option(
        "dinov2_vitl14", "features: a backbone (docs/backbones.md), or colour: no weights needed"
    )
    checkpoint: str | None = option(None, "weights of the backbone")
    size: int | None = option(None, "side in pixels of encoded pictures; default: 37 patches")
    layers: str = option("-1", "layers of the backbone, comma-separated; joined when several")
    debias: int = option(0, "remove this many positional directions (DINOv3); 0 is off")

    def layer_numbers(self) -> tuple[int, ...]:
        """Return the layers as numbers.

        Raises:
            InputError: They are none.
        """
        try:
            return tuple(int(part) for part in self.layers.split(","))
        except ValueError as error:
            raise InputError(
                f'--layers: expected numbers such as -1 or 5,11, got "{self.layers}"'
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """What proposes masks and how they are matched."""

    sam: str | None = option(None, "weights of SAM 2 or 2.1; without, masks come from superpixels")
    proposals: Literal["auto", "graph", "points", "amg", "dense"] = option(
        "auto",
        "masks: superpixels, SAM 2 on a grid of points, SAM 2's automatic masks, or dense matching; "
        "auto takes points with --sam, else superpixels",
    )
    matching: Literal["default", "amg"] = option("default", "the matching model")
    points_per_side: int = option(32, "SAM 2: points a side of the grid")
    num_out_instance: int = option(100, "instances a picture at most")
    nms_thr: float = option(0.5, "IoU above which the worse of two boxes of a class goes")
    iou_thr: float = option(0.4, "SAM 2 points: least predicted IoU")
    unknown: Literal["off", "drop", "keep"] = option(
        "off", "instances below their class's calibrated threshold"
    )
    batch: int = option(4, "pictures encoded at a time")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where networks run")

    def __post_init__(self) -> None:
        """Refuse contradictions before any work."""
        for name in ("points_per_side", "num_out_instance", "batch"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be 1 or more, got {getattr(self, name)}; raise it")
        if self.proposals in ("points", "amg") and self.sam is None:
            raise InputError(
                f"--proposals {self.proposals} needs SAM 2: give its weights with --sam"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions:
    """Which objects are learned."""

    references: str | None = option(
        None, "COCO file, JSON of marks, COCO folder, or folder of a sub-folder a class"
    )
    images: str | None = option(None, "picture folder of a COCO file; default: beside it")
    selection: str | None = option(None, "JSON of chosen annotation ids, as sampling writes it")
    shots: int | None = option(None, "references a class, sampled as published; default: all")
    seed: int = option(42, "seed of the sampling")
    source: Literal["coco", "lvis", "voc"] = option("coco", "how unclear objects are treated")
    classes: str | None = option(None, "only these: names with commas, or a named list")
    negatives: str | None = option(None, "what was taken for a class by mistake, as references")

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.shots is not None and self.shots < 1:
            raise InputError(f"--shots must be 1 or more, got {self.shots}; raise it")
