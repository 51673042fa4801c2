"""`sightline probe`: which vision model knows 3D, measured by novel views read from its features."""

import json
import sys
from pathlib import Path
from typing import Any

from sightline.cli.parser import VerbParser, record_from
from sightline.errors import UnknownNameError
from sightline.probing.options import DemoOptions

STEPS = ("run", "report", "demo")
DEFAULT_OUTPUT = "sightline-probe"
OVERVIEW = """\
usage: sightline probe run|report|demo ... (sightline probe STEP --help tells more)

  run     a grid of scenes, features, modes and seeds, interrupted and extended at will
  report  one HTML page, CSV and LaTeX of a grid
  demo    photos to splats read from features, and a video

examples:
  sightline probe run --config configs/probe/smoke.yaml -o smoke/
  sightline probe run photos/ --protocol fast --features "[iuvrgb, random]" -o out/
  sightline probe report -o smoke/
  sightline probe demo photos/ -o demo/ --feature iuvrgb --geometry colmap
"""


def run_parser() -> VerbParser:
    """Return the parser of ``probe run``."""
    verb = VerbParser(
        "probe run",
        "Run a grid of probes. What is finished stays finished: run the same command again after "
        "an interruption, or with more scenes, features or seeds.",
    )
    verb.add_inputs("scenes besides those of the file: photos, a workspace or a transforms.json")
    verb.add_argument("-o", "--output", type=str | None, help="folder of results")
    verb.add_argument("--protocol", type=str, default="sightline-1", help="feat2gs-v1, ...")
    verb.add_argument("--changes", type=dict[str, Any], default={}, help="of the protocol's fields")
    verb.add_argument("--scenes", type=list[Any], default=[], help="paths, or mappings")
    verb.add_argument("--datasets", type=list[Any], default=[], help="mappings: name, root, scenes")
    verb.add_argument("--features", type=list[Any], default=[], help="names, A+B, or mappings")
    verb.add_argument("--modes", type=list[str], default=["G"], help="some of G T A Gft Tft Aft")
    verb.add_argument("--seeds", type=list[int], default=[0], help="whole numbers")
    verb.add_argument("--geometry", type=str, default="auto", help="where points come from")
    verb.add_argument("--geometry-options", type=dict[str, Any], default={}, help="by estimator")
    verb.add_argument("--baseline", type=bool, default=False, help="also fit InstantSplat")
    verb.add_argument(
        "--probes", type=list[str], default=[], help="some of depth normals correspondence"
    )
    verb.add_argument(
        "--videos", type=list[str], default=[], help="camera paths to render, or gallery"
    )
    verb.add_argument(
        "--video-modes", type=list[str], default=["rgb"], help="some of rgb depth normal"
    )
    verb.add_argument("--maps", type=bool, default=False, help="write the authors' error maps")
    verb.add_argument("--score", type=bool, default=True, help="keep test views")
    verb.add_argument("--lpips", type=list[str], default=[], help="files of weights, or none")
    verb.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    verb.add_argument("--retries", type=int, default=1, help="of a failed task")
    verb.add_argument("--workers", type=int, default=1, help="processes that share the cores")
    verb.add_argument("--cluster", type=str | None, help="run on Ray: auto or an address")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def report_parser() -> VerbParser:
    """Return the parser of ``probe report``."""
    verb = VerbParser("probe report", "Write the report of a grid.")
    # With the grid's own file one command line serves run and report.
    verb.add_argument("-o", "--output", type=str | None, help="folder of results")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def demo_parser() -> VerbParser:
    """Return the parser of ``probe demo``."""
    verb = VerbParser(
        "probe demo",
        "Photos to a cloud and features, features to splats, splats to a video. Each step is kept; "
        "the same command continues.",
    )
    verb.add_inputs("two or more photos, a folder, a COLMAP workspace or a transforms.json")
    verb.add_argument("-o", "--output", type=str | None, help="folder of results")
    verb.add_record(DemoOptions)
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run one step."""
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(OVERVIEW)
        if not words:
            sys.exit(2)
        return
    if words[0] not in STEPS:
        raise UnknownNameError("step of probe", words[0], STEPS, "sightline probe --help")
    {"run": _run, "report": _report, "demo": _demo}[words[0]](words[1:])


def _config_path(words: list[str]) -> tuple[list[str], Path | None]:
    """Find the file after ``--config``, also among those that come with sightline."""
    from sightline.probing.config import find_config

    for index, word in enumerate(words):
        flag, joined, name = word.partition("=")
        if flag != "--config":
            continue
        rest = words[index + 1 :] if joined else words[index + 2 :]
        name = name if joined else "".join(words[index + 1 : index + 2])
        path = find_config(name)
        return [*words[:index], "--config", str(path), *rest], path
    return words, None


def _run(typed: list[str]) -> None:
    words, file = _config_path(typed)
    verb = run_parser()
    arguments = verb.parse_args(words)
    from sightline.probing.config import config_from

    names = [n for n in vars(arguments) if n not in _OURS]
    values = {name: getattr(arguments, name) for name in names}
    # Absolute, so that the file's folder does not matter to them.
    inputs = [str(Path(path).expanduser().absolute()) for path in getattr(arguments, "inputs", [])]
    values["scenes"] = [*inputs, *(values["scenes"] or ())]
    # Paths in a file are relative to it; those on the command line to where one stands.
    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in words}
    folder = None if file is None else file.resolve().parent
    config = config_from(values, folder, here=given)
    output = Path(arguments.output or DEFAULT_OUTPUT)
    from sightline.cli.probe_table import LiveTable
    from sightline.probing.grid import run_grid
    from sightline.probing.report import write_report

    with LiveTable(output) as table:
        outcome = run_grid(
            config,
            output,
            on_event=table.event,
            progress=table.progress,
            cluster=arguments.cluster,
        )
    report = write_report(output, command=_command("run", typed))
    result = {
        "output": str(output),
        "report": str(report),
        "done": len(outcome.done),
        "kept": len(outcome.kept),
        "failed": outcome.failed,
    }
    sys.stdout.write(json.dumps(result) + "\n" if arguments.json else f"{report}\n")
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        sys.stderr.write(
            f"sightline probe: {len(outcome.failed)} tasks failed ({first}); see "
            f"{output / 'failed'} and run again\n"
        )
        sys.exit(1)


_OURS = ("inputs", "output", "config", "cluster", "json", "debug")


def _report(words: list[str]) -> None:
    # A grid's own file may be given; only -o matters here.
    rest, file = _config_path(words)
    if file is not None:
        at = rest.index("--config")
        rest = [*rest[:at], *rest[at + 2 :]]
    arguments = report_parser().parse_args(rest)
    from sightline.probing.report import write_report

    output = Path(arguments.output or DEFAULT_OUTPUT)
    report = write_report(output, command=_command("report", words))
    sys.stdout.write(
        json.dumps({"report": str(report)}) + "\n" if arguments.json else f"{report}\n"
    )


def _demo(words: list[str]) -> None:
    verb = demo_parser()
    arguments = verb.parse_args(words)
    inputs = getattr(arguments, "inputs", [])
    if not inputs:
        verb.error("give two or more photos, or a folder")
    from sightline.cli.progress import ProgressBars
    from sightline.probing.demo import run_demo

    options = record_from(DemoOptions, arguments)
    output = Path(arguments.output or DEFAULT_OUTPUT)
    with ProgressBars() as bars:
        command = _command("demo", words)
        result = run_demo(inputs, output, options, progress=bars, command=command)
    if arguments.json:
        plain = {name: str(value) for name, value in result.items()}
        sys.stdout.write(json.dumps(plain) + "\n")
    else:
        sys.stdout.writelines(f"{path}\n" for path in result.values())


def _command(step: str, words: list[str]) -> str:
    import shlex

    return shlex.join(["sightline", "probe", step, *words])
