"""`sightline train`: networks that learn from the user's own data."""

import json
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from sightline.cli.parser import VerbParser, record_from
from sightline.errors import InputError, UnknownNameError
from sightline.options import find_config
from sightline.training.settings import TRAINERS, path_names

if TYPE_CHECKING:
    from sightline.training.splatt3r.settings import Splatt3rSettings

OVERVIEW = """\
usage: sightline train {names} ... (sightline train TRAINER --help tells more)

{rows}

examples:
  sightline train dino --config configs/train/dino_smoke.yaml -o smoke/
  sightline train dino --data photos/ --model dinov3_vits16 --checkpoint FILE --epochs 20 -o run/
  sightline train dino -o run/ --config run.yaml --resume
"""


def trainer_parser(name: str) -> VerbParser:
    """Return the parser of one trainer."""
    record, what = _record(name), TRAINERS[name].what
    verb = VerbParser(
        f"train {name}",
        f"Train {what}. A run can be stopped or killed at any time and goes on with --resume.",
        epilog="--dataset-dir is --data; without -o the result is then also put where the scene "
        "builder looks for it, in checkpoints/.",
    )
    verb.add_argument("-o", "--output", type=str | None, help="run folder")
    verb.add_record(record)
    verb.add_argument("--resume", action="store_true", help="go on with the run in -o")
    verb.add_argument("--overwrite", action="store_true", help="replace the run in -o")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Train."""
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<9} {text}" for name, (*_, text) in TRAINERS.items())
        sys.stdout.write(OVERVIEW.format(names="|".join(TRAINERS), rows=rows))
        if not words:
            sys.exit(2)
        return
    if words[0] not in TRAINERS:
        raise UnknownNameError("trainer", words[0], TRAINERS, "sightline train --help")
    _train(words[0], words[1:])


def _train(name: str, typed: list[str]) -> None:
    words = [_renamed(word) for word in typed]
    words, file = _with_config(words)
    verb = trainer_parser(name)
    arguments = verb.parse_args(words)
    record = _record(name)
    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in words}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in given and other not in given:  # what is typed replaces what a file says
            setattr(arguments, other, None)
    if file is not None:
        for key in set(path_names(record)) - given:
            value = getattr(arguments, key)
            if isinstance(value, str) and not value.startswith("generated:"):
                setattr(arguments, key, str(file.resolve().parent / Path(value).expanduser()))
    chosen = record_from(record, arguments)
    builder = arguments.output is None and any(w.startswith("--dataset-dir") for w in typed)
    output = Path(arguments.output or f"sightline-train-{name}")
    if getattr(chosen, "compare", None):
        _compare(chosen, output, typed, arguments)
        return
    from sightline.cli.progress import ProgressBars
    from sightline.run import RunFolder
    from sightline.training.engine import train

    task = getattr(import_module(TRAINERS[name].package), TRAINERS[name].task)(chosen)
    with ProgressBars() as bars:
        train(
            task,
            output,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            progress=bars,
            command=shlex.join(["sightline", "train", name, *typed]),
        )
    state = RunFolder.open(output).state
    exports = [output / path for path in state.get("exports", [])]
    if builder:
        exports += [_copy_for_builder(path, overwrite=arguments.overwrite) for path in exports]
    if arguments.json:
        result = {
            "output": str(output),
            "exports": [str(path) for path in exports],
            "metrics": state["metrics"],
        }
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.writelines(f"{path}\n" for path in [*exports, output / "report.html"])


def _compare(
    chosen: "Splatt3rSettings", output: Path, typed: list[str], arguments: Namespace
) -> None:
    """Train all that ``compare`` lists and write one report."""
    from sightline.cli.progress import ProgressBars
    from sightline.probing.fused import compare

    command = shlex.join(["sightline", "train", "splatt3r", *typed])
    with ProgressBars() as bars:
        report = compare(
            chosen, output, overwrite=arguments.overwrite, progress=bars, command=command
        )
    files = [report, report.with_name("summary.csv"), report.with_name("pairs.csv")]
    if arguments.json:
        result = {"output": str(output), "files": [str(file) for file in files]}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.writelines(f"{file}\n" for file in files)


def _record(name: str) -> type:
    trainer = TRAINERS[name]
    return getattr(import_module(f"{trainer.package}.settings"), trainer.settings)


def _renamed(word: str) -> str:
    """Take the scene builder's name of an option."""
    flag, joined, value = word.partition("=")
    return f"--data{joined}{value}" if flag == "--dataset-dir" else word


def _with_config(words: list[str]) -> tuple[list[str], Path | None]:
    """Find the file after ``--config``, also among those that come with sightline."""
    for index, word in enumerate(words):
        flag, joined, name = word.partition("=")
        if flag == "--config":
            rest = words[index + 1 :] if joined else words[index + 2 :]
            path = find_config(name if joined else "".join(words[index + 1 : index + 2]), "train")
            return [*words[:index], "--config", str(path), *rest], path
    return words, None


def _copy_for_builder(path: Path, *, overwrite: bool) -> Path:
    """Put a checkpoint where the scene builder looks for it."""
    from sightline.io.atomic import atomic_path

    target = Path("checkpoints") / path.name
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; the result is {path}. Move one of them, or --overwrite")
    with atomic_path(target) as tmp:
        shutil.copyfile(path, tmp)
    return target
