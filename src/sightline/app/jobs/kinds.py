"""What can be run as a job: one entry a verb, made of the same records of options as its command.

A new verb is one entry in `KINDS`. Options that name a file are roles: a request gives uploads,
results of jobs, or weights that the server lists, and never a path.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sightline.app.jobs.options import (
    BankOptions,
    DownloadOptions,
    EvaluateOptions,
    GridOptions,
    LayerOptions,
    LiftOptions,
)
from sightline.errors import InputError, UnknownNameError
from sightline.options import (
    DemoVerbOptions,
    ExportVerbOptions,
    FeaturesVerbOptions,
    ReconstructOptions,
    RenderVerbOptions,
    export_names,
)
from sightline.preparation.options import PrepareOptions
from sightline.probing.options import DemoOptions
from sightline.segmentation.options import EncoderOptions, MaskOptions, ReferenceOptions
from sightline.training.settings import TRAINERS, path_names

FileKind = Literal["picture", "video", "weights", "text", "scene"]
"""What an upload is, by its content: `uploads.kind_of`."""
Lane = Literal["device", "side", "network"]
"""``device``: the queue of the CPU or of the GPU that ``--device`` names; ``side``: short work that
runs beside it; ``network``: downloads."""

Made = Literal["scene", "grid"]
"""What jobs make that others work on: a run folder with a scene, or a grid of probes."""

_PICTURES: tuple[FileKind, ...] = ("picture", "video", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """An option that names a file or a folder.

    Attributes:
        shape: ``file`` for one file, ``folder`` for any number of files in a folder.
        kinds: What the files may be.
        text: What it is for.
        example: What a command to copy names where no file is chosen yet.
    """

    shape: Literal["file", "folder"] = "file"
    kinds: tuple[FileKind, ...] = ("weights",)
    text: str = ""
    example: str = "FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option that is a plain value.

    Attributes:
        name: As a field of its record.
        hint: The field's type.
        default: A JSON value: of tuples the list.
        text: The help.
    """

    name: str
    hint: Any
    default: Any
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One verb as a job.

    Attributes:
        name: In the API.
        title: For people.
        words: The verb and its sub-verb.
        records: Records of options; building them checks the values.
        roles: Option -> what kind of file it names.
        without: Options that a request may not give.
        required: Options and roles that must be given.
        inputs: What positional inputs may be; nothing where there are none.
        fewest: Positional inputs at least.
        most: Positional inputs at most.
        together: Whether positional inputs are one folder on the command line.
        scene: Whether it works on what another job has made.
        works_on: What that is: the first word, or for a grid, to which it adds, ``-o``.
        output: Name of what ``-o`` gets, below the job's ``output/``; None without one of its own.
        flags: Words that are always there.
        again: Words that are there from the second attempt on.
        resumable: Whether a second attempt keeps what the first has finished.
        continues: Whether a finished job may go on with other options, in the same folder.
        lane: Its queue.
        patience: Seconds that a cancelled job has to stop by itself; a second cancel is not patient.
        fresh: Whether the process ends with the job, because it changes its own state.
        finding: Whether exit code 2 with a result on stdout is an answer and no failure.
        stages: Stage -> share of the time, in the order in which they come.
    """

    name: str
    title: str
    words: tuple[str, ...]
    records: tuple[type, ...] = ()
    roles: Mapping[str, Role] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    inputs: tuple[FileKind, ...] = ()
    fewest: int = 0
    most: int = 100_000
    together: bool = False
    scene: Literal["no", "optional", "needed"] = "no"
    works_on: Made = "scene"
    output: str | None = None
    flags: tuple[str, ...] = ()
    again: tuple[str, ...] = ("--overwrite",)
    resumable: bool = False
    continues: bool = False
    lane: Lane = "device"
    patience: float = 0.6
    fresh: bool = False
    finding: bool = False
    stages: Mapping[str, float] = field(default_factory=dict)

    def options(self) -> dict[str, Option]:
        """Return the plain options by name, in the order of the records."""
        found: dict[str, Option] = {}
        for record in self.records:
            hints = get_type_hints(record)
            for item in dataclasses.fields(record):
                if item.name in self.roles or item.name in self.without:
                    continue
                if _is_mapping(hints[item.name]):  # a network's inner options
                    continue
                found[item.name] = Option(
                    name=item.name,
                    hint=hints[item.name],
                    default=list(item.default) if isinstance(item.default, tuple) else item.default,
                    text=item.metadata.get("help", ""),
                )
        return found

    def check(self, values: Mapping[str, Any], given: Sequence[str]) -> None:
        """Build the records, so that their own rules speak.

        Args:
            values: Plain options whose types are right already.
            given: The roles that files were given for.

        Raises:
            InputError: If a value is out of range, or something needed is absent.
        """
        for name in self.required:
            if name not in given and values.get(name) in (None, ""):
                what = "file" if name in self.roles else "value"
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{self.name} needs a {what} for {flag}; give one")
        for record in self.records:
            names = {item.name for item in dataclasses.fields(record)}
            hints = get_type_hints(record)
            inside = {
                name: tuple(value) if isinstance(value, list) and _is_tuple(hints[name]) else value
                for name, value in values.items()
                if name in names
            }
            # A record only wants to know that a file is there.
            record(**inside, **{name: "given" for name in given if name in names})
        exports = values.get("to" if self.name == "export" else "export")
        if isinstance(exports, str):
            export_names(exports)


_RECONSTRUCT = {
    "survey": 1.0,
    "read": 2.0,
    "read inputs": 2.0,
    "load": 2.0,
    "features": 6.0,
    "compare": 1.0,
    "matching": 8.0,
    "mapping": 12.0,
    "adjust": 2.0,
    "points": 2.0,
    "pairs": 16.0,
    "geometry": 16.0,
    "loops": 2.0,
    "align": 8.0,
    "refine": 3.0,
    "tracks": 2.0,
    "read pictures": 1.0,
    "splats": 60.0,
    "evaluate": 3.0,
    "encode": 4.0,
    "lift": 4.0,
}
_CHECKPOINT = Role(text="weights of the model")
_MASKERS = {"checkpoint": _CHECKPOINT, "sam": Role(text="weights of SAM 2 or 2.1")}
_BANK = Role(
    kinds=("weights",), text="the memory bank that segment-fit wrote", example="bank.safetensors"
)

_ALL = (
    Kind(
        name="reconstruct",
        title="Reconstruct",
        words=("reconstruct",),
        records=(ReconstructOptions,),
        roles={
            "masks": Role(shape="folder", kinds=("picture",), text="masks named like the pictures"),
            "intrinsics": Role(kinds=("text",), text="a file of known intrinsics"),
            "checkpoint": _CHECKPOINT,
            "features_checkpoint": Role(text="weights of the backbone of --features"),
        },
        inputs=(*_PICTURES, "scene"),  # a transforms.json may name the points of its scene
        fewest=1,
        output="scene",
        flags=("--json",),
        again=("--resume",),
        resumable=True,
        stages=_RECONSTRUCT,
    ),
    Kind(
        name="demo",
        title="Built-in example",
        words=("demo",),
        records=(DemoVerbOptions,),
        output="scene",
        flags=("--json",),
        again=("--resume",),
        resumable=True,
        stages={"read inputs": 1.0, "read pictures": 1.0, "splats": 90.0, "evaluate": 4.0},
    ),
    Kind(
        name="render",
        title="Render a video",
        words=("render",),
        records=(RenderVerbOptions,),
        scene="needed",
        output="video.mp4",
        stages={"render": 1.0},
    ),
    Kind(
        name="export",
        title="Export",
        words=("export",),
        records=(ExportVerbOptions,),
        required=("to",),
        scene="optional",
        inputs=("scene",),
        most=1,
        output="exports",
        lane="side",
    ),
    Kind(
        name="features",
        title="Features",
        words=("features",),
        records=(FeaturesVerbOptions, LayerOptions),
        roles={"checkpoint": _CHECKPOINT},
        required=("backbone",),
        inputs=_PICTURES,
        fewest=1,
        output="features",
        flags=("--json",),
        stages={"survey": 1.0, "read": 1.0, "encode": 10.0},
    ),
    Kind(
        name="prepare",
        title="Prepare data",
        words=("prepare",),
        records=(PrepareOptions,),
        roles={"metadata_json": Role(kinds=("text",), text="what you know of the files")},
        without=("cluster",),
        inputs=_PICTURES,
        fewest=1,
        output="data",
        flags=("--json",),
        again=(),
        resumable=True,
        lane="side",
        stages={"hash": 1.0, "measure ranges": 2.0, "prepare": 10.0},
    ),
    Kind(
        name="segment-fit",
        title="Build a memory bank",
        words=("segment", "fit"),
        records=(ReferenceOptions, EncoderOptions, MaskOptions),
        roles={
            "references": Role(
                shape="folder",
                kinds=("picture", "text"),
                text="a sub-folder of pictures a class, or pictures and one JSON of marks",
                example="marked/",
            ),
            "negatives": Role(
                shape="folder", kinds=("picture", "text"), text="what was wrongly found"
            ),
            "selection": Role(kinds=("text",), text="JSON of chosen annotation ids"),
            **_MASKERS,
        },
        without=("images",),
        required=("references",),
        output="bank.safetensors",
        flags=("--json",),
        stages={"references": 1.0},
    ),
    Kind(
        name="segment-predict",
        title="Find objects",
        words=("segment", "predict"),
        records=(BankOptions, MaskOptions),
        roles={"bank": _BANK, **_MASKERS},
        required=("bank",),
        inputs=("picture",),
        fewest=1,
        output="found",
        flags=("--json",),
        stages={"predict": 1.0},
    ),
    Kind(
        name="segment-evaluate",
        title="Score a memory bank",
        words=("segment", "evaluate"),
        records=(EvaluateOptions, BankOptions, MaskOptions),
        roles={
            "dataset": Role(
                shape="folder",
                kinds=("picture", "text"),
                text="a COCO file and its pictures, or a COCO folder",
                example="annotated/",
            ),
            "bank": _BANK,
            **_MASKERS,
        },
        required=("dataset", "bank"),
        output="scores",
        flags=("--json",),
        stages={"predict": 1.0},
    ),
    Kind(
        name="segment-lift",
        title="Lift masks onto splats",
        words=("segment", "lift"),
        records=(LiftOptions, BankOptions, MaskOptions),
        roles={
            "masks": Role(shape="folder", kinds=("picture",), text="masks named like the views"),
            "bank": _BANK,
            **_MASKERS,
        },
        scene="needed",
        output="objects",
        flags=("--json",),
        stages={"predict": 4.0, "lift masks": 4.0, "render objects": 2.0},
    ),
    Kind(
        name="probe-demo",
        title="Probe, step by step",
        words=("probe", "demo"),
        records=(DemoOptions,),
        roles={
            "checkpoint": Role(text="weights of the feature"),
            "geometry_checkpoint": Role(text="weights of the geometry"),
        },
        inputs=("picture", "text", "scene"),
        fewest=2,
        output="probe",
        flags=("--json",),
        again=(),
        resumable=True,
        continues=True,
        stages={
            "load": 1.0,
            "pairs": 8.0,
            "align": 4.0,
            "encode": 4.0,
            "probe": 60.0,
            "video": 20.0,
        },
    ),
    Kind(
        name="probe-run",
        title="Grid of probes",
        words=("probe", "run"),
        records=(GridOptions,),
        required=("features",),
        inputs=("picture", "text", "scene"),
        fewest=2,
        together=True,
        output="grid",
        flags=("--json",),
        again=(),
        resumable=True,
        stages={"grid": 1.0},
    ),
    Kind(
        name="probe-report",
        title="Report of a grid",
        words=("probe", "report"),
        scene="needed",
        works_on="grid",
        flags=("--json",),
        again=(),
        lane="side",
    ),
    Kind(
        name="models-check",
        title="Check weights",
        words=("models", "check"),
        inputs=("weights",),
        fewest=1,
        most=1,
        flags=("--json",),
        again=(),
        lane="side",
        finding=True,
    ),
    Kind(
        name="models-download",
        title="Download weights",
        words=("models", "download"),
        records=(DownloadOptions,),
        flags=("--json",),
        again=(),
        resumable=True,
        lane="network",
        stages={"download": 20.0, "check": 1.0},
    ),
)


def _train_kinds() -> list[Kind]:
    """Return one kind for each trainer, from its own record of options."""
    kinds = []
    for name, trainer in TRAINERS.items():
        record = getattr(import_module(f"{trainer.package}.settings"), trainer.settings)
        texts = {item.name: item.metadata.get("help", "") for item in dataclasses.fields(record)}
        roles = {path: _training_role(name, path, texts[path]) for path in path_names(record)}
        kinds.append(
            Kind(
                name=f"train-{name}",
                title=f"Train {_TRAINED[name]}",
                words=("train", name),
                records=(record,),
                roles=roles,
                without=_NOT_TRAINED_WITH,
                required=("data",) if name == "dino" else (),
                output="run",
                flags=("--json",),
                again=("--resume",),
                resumable=True,
                fresh=True,
                patience=5.0,  # a step that is half done cannot be kept
                stages={"train": 1.0},
            )
        )
    return kinds


def _training_role(trainer: str, path: str, text: str) -> Role:
    if "data" not in path:
        return Role(text=text)
    return Role(
        shape="folder",
        kinds=_PICTURES,
        text=_TRAINING_DATA[trainer] if path == "data" else text,
        example="data/",
    )


_TRAINED = {"dino": "DINO", "splatt3r": "Splatt3R", "vggt": "VGGT"}
_TRAINING_DATA = {
    "dino": "pictures (sub-folders are classes), or what Prepare made",
    "splatt3r": "scenes with poses and depth; without any, endless synthetic rooms",
    "vggt": "scenes with poses and depth; without any, endless generated rooms",
}
"""What people may send; on the command line more forms are known."""
_NOT_TRAINED_WITH = ("devices", "nodes", "strategy", "loggers", "num_workers", "compile", "compare")
"""More machines, logs that leave this one, and comparisons are the command line's."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*_ALL, *_train_kinds())}
"""Name -> kind."""


def _is_tuple(hint: Any) -> bool:  # noqa: ANN401
    return any(get_origin(part) is tuple for part in (hint, *get_args(hint)))


def _is_mapping(hint: Any) -> bool:  # noqa: ANN401
    return any((get_origin(part) or part) in (dict, Mapping) for part in (hint, *get_args(hint)))


def find_kind(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in KINDS:
        raise UnknownNameError("kind of job", name, KINDS)
    return KINDS[name]
