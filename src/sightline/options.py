"""The options of verbs: torch-free records for Python, the command line, YAML and the app."""

import re
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sightline.errors import InputError

GeometryName = Literal[
    "auto", "colmap", "given", "vggt", "vggt-omega", "dust3r", "mast3r", "splatt3r"
]
EXPORT_NAMES = ("ply", "gs-ply", "splat", "spz", "glb", "colmap", "transforms", "depth", "html")


PathName = Literal["orbit", "spiral", "ellipse", "arc", "lemniscate", "wander", "interpolate"]


def option(default: Any, text: str) -> Any:  # noqa: ANN401
    """Declare an option with its help text, which the command line and the app show."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructOptions:
    """Everything that decides what ``reconstruct`` makes from its inputs.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    geometry: GeometryName = option(
        "auto",
        "where cameras come from: given ones (COLMAP, transforms.json), classical SfM, or a learned "
        "model; auto takes what the input and the machine offer and says why",
    )
    checkpoint: str | None = option(
        None, "weights of a learned geometry model; default: what was downloaded before"
    )
    memory_limit: float | None = option(
        None, "learned geometry: most GB to take; longer inputs are then worked on in parts"
    )
    refine: Literal["none", "ba"] = option(
        "none", "learned geometry: adjust cameras to matched features (robust bundle adjustment)"
    )
    splats: Literal["optimize", "feedforward", "none"] = option(
        "optimize", "how Gaussian splats are made"
    )
    steps: int | None = option(None, "optimisation steps; default: what suits the machine")
    resolution: int | None = option(
        None, "long side in pixels of the pictures that splats are fitted to and scored on"
    )
    test_every: int = option(0, "hold out views 0, K, 2K, ... for scoring; 0 holds out none")
    fps: float | None = option(None, "video: frames a second")
    num_frames: int | None = option(None, "video: this many frames, evenly spread")
    every: int | None = option(None, "video: every K-th frame")
    max_frames: int | None = option(None, "cap on the number of views after selection")
    start: str | None = option(None, "video: first time used, seconds or hh:mm:ss")
    end: str | None = option(None, "video: last time used, seconds or hh:mm:ss")
    select: Literal["sharp", "even"] = option(
        "sharp", "video: the sharpest frame of each window, or exactly evenly spaced frames"
    )
    intrinsics: str | None = option(None, "known intrinsics: fx,fy,cx,cy in pixels, or a file")
    masks: str | None = option(None, "folder of masks, or one mask for all views; 0 is ignored")
    invert_masks: bool = option(False, "masks are 0 where the picture counts")
    alpha: Literal["white", "black", "ignore"] = option(
        "white", "what shows through transparent pixels; ignore drops the alpha plane"
    )
    keep_going: bool = option(False, "skip unreadable files instead of stopping")
    matching: Literal["auto", "exhaustive", "sequential"] = option(
        "auto", "SfM: which pairs of pictures are matched"
    )
    mapper: Literal["incremental", "global"] = option("incremental", "SfM: how views are joined")
    strategy: Literal["default", "mcmc"] | None = option(
        None, "how splats are added and removed; default: what suits the machine"
    )
    max_splats: int | None = option(None, "budget of splats; default: what suits the machine")
    sh_degree: int = option(2, "highest degree of view-dependent colour, 0 to 3")
    exposure: Literal["none", "affine", "bilateral"] = option(
        "affine", "per-photo exposure correction, fitted on training views only"
    )
    refine_poses: bool | None = option(
        None, "improve training poses while fitting splats; default: only those of learned models"
    )
    antialiased: bool = option(False, "fit with the antialiased (mip) rasteriser")
    features: str | None = option(
        None, "carry this backbone's features on splats and points; see sightline features --help"
    )
    features_checkpoint: str | None = option(None, "weights of that backbone")
    seed: int = option(0, "seed of everything random")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the heavy work runs")
    export: str = option("", f"comma-separated formats: {','.join(EXPORT_NAMES)}")

    def __post_init__(self) -> None:
        """Refuse contradictions early, before any work."""
        chosen = [n for n in ("fps", "num_frames", "every") if getattr(self, n) is not None]
        if len(chosen) > 1:
            names = " and ".join(f"--{n.replace('_', '-')}" for n in chosen)
            raise InputError(f"frames are chosen by one rule, got {names}; keep one of them")
        for name, low in (
            ("steps", 1),
            ("resolution", 16),
            ("test_every", 0),
            ("num_frames", 1),
            ("every", 1),
            ("max_frames", 1),
            ("max_splats", 1),
            ("sh_degree", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(
                    f"--{name.replace('_', '-')} must be {low} or more, got {value}; raise it"
                )
        if self.test_every == 1:
            raise InputError("--test-every 1 would hold out every view; use 2 or more, or 0")
        if self.sh_degree > 3:
            raise InputError(f"--sh-degree must be 0 to 3, got {self.sh_degree}; lower it")
        if self.memory_limit is not None and not self.memory_limit > 0:
            raise InputError(
                f"--memory-limit must be above 0 GB, got {self.memory_limit}; raise it"
            )
        if self.fps is not None and not 0 < self.fps < 1000:
            raise InputError(f"--fps must be above 0 and below 1000, got {self.fps}; change it")
        export_names(self.export)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def export_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of export formats.

    Raises:
        InputError: If a format is unknown.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in EXPORT_NAMES:
            raise InputError(
                f'no export format "{name}"; expected some of {",".join(EXPORT_NAMES)}, '
                "comma-separated"
            )
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderVerbOptions:
    """Everything that decides what ``render`` makes of a scene.

    Raises:
        InputError: If one is out of range.
    """

    path: PathName = option(
        "interpolate",
        "the way of the camera: interpolate passes through the photos, arc swings over the side "
        "that they show, orbit goes all the way round, which needs photos from all sides",
    )
    modes: str = option("rgb", "some of rgb,depth,normal")
    frames: int = option(120, "number of frames")
    fps: float = option(30.0, "frames a second")
    size: str | None = option(None, "WIDTHxHEIGHT of a frame of one mode; default: as fitted")

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        self.picture_size()

    def picture_size(self) -> tuple[int, int] | None:
        """Return ``--size`` as width and height.

        Raises:
            InputError: If it is no size.
        """
        if self.size is None:
            return None
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if not match:
            raise InputError(f'--size: expected WIDTHxHEIGHT such as 640x480, got "{self.size}"')
        return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportVerbOptions:
    """Everything that decides what ``export`` writes."""

    to: str | None = option(None, f"some of {','.join(EXPORT_NAMES)}")
    min_confidence: float = option(
        0.0, "leave out this share (percent) of the least certain points"
    )
    colors: Literal["photo", "features"] = option(
        "photo", "of splats and points: as photographed, or the components of --features"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesVerbOptions:
    """Everything but the layers that decides what ``features`` computes.

    Raises:
        InputError: If one is out of range.
    """

    backbone: str | None = option(
        None,
        "a name, hf:REPO_OR_FOLDER, timm:NAME, random:NAME or fused:A+B; "
        "a wrong name lists the closest ones",
    )
    checkpoint: str | None = option(None, "weights: a file, or a folder for hf:")
    resolution: int | None = option(
        None, "long side in pixels of the pictures that are encoded; default: about 512"
    )
    norm: bool = option(True, "apply the model's final norm to every layer")
    fit: Literal["stretch", "pad"] | None = option(
        None, "how pictures come to whole patches; default: what suits the model"
    )
    fps: float | None = option(None, "video: frames a second")
    num_frames: int | None = option(None, "video: this many, evenly spread")
    every: int | None = option(None, "video: every K-th frame")
    max_frames: int | None = option(None, "cap on the number of views")
    seed: int = option(0, "seed of random weights and features")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where it runs")
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "number type of the weights"
    )

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for name, low in (("resolution", 16), ("num_frames", 1), ("every", 1), ("max_frames", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {low} or more, got {value}; raise it")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoVerbOptions:
    """The procedural scene of ``demo``."""

    # Well above 22 dB on the held-out views, and within two minutes on two busy cores.
    steps: int = option(400, "optimisation steps")
    seed: int = option(0, "seed of the scene and of the splats")


def find_config(name: str, kind: str) -> Path:
    """Return a configuration file: a path, or the name of one that comes with sightline.

    ``configs/probe/smoke.yaml``, ``probe/smoke.yaml`` and ``smoke`` all find the shipped one, in a
    checkout and in an installed package alike.

    Args:
        name: What the user gave.
        kind: Folder below ``configs``, such as ``probe``.

    Raises:
        InputError: If there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    tail = Path(*[part for part in path.parts if part not in ("configs", kind, ".", "/")])
    package = Path(str(resources.files("sightline")))
    folders = [root / "configs" / kind for root in (package, package.parents[1])]
    for folder in folders:
        for candidate in (folder / tail, folder / f"{tail}.yaml"):
            if candidate.is_file():
                return candidate
    shipped = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise InputError(
        f"there is no configuration {name}; expected a YAML file, or one of {', '.join(shipped)}"
    )
