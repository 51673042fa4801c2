"""`sightline prepare`: pictures, rasters and videos of any kind into one data set."""

import json
import sys
from typing import TYPE_CHECKING

from sightline.cli.parser import VerbParser, output_path, record_from
from sightline.preparation.options import PrepareOptions

if TYPE_CHECKING:
    from sightline.preparation.prepare import Planned, Prepared

EXAMPLES = """\
examples:
  sightline prepare photos/ clip.mp4 -o data/ --size 512 --mode crop --val-split 0.1
  sightline prepare thermal/ -o data/ --keep-16bit
  sightline prepare scene.tif -o data/ --bands 3,2,1 --tile 512 --overlap 64
  sightline prepare photos/ -o data/ --dry-run

The same command again goes on where it was stopped; what is finished is not done twice.
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser(
        "prepare",
        "Bring pictures, infrared, thermal, depth, satellite rasters and videos into one form.",
        EXAMPLES,
    )
    verb.add_inputs("pictures, rasters, videos, folders, globs, COLMAP models, transforms.json")
    verb.add_argument("--input-dir", type=str | None, help="one more input, as a named option")
    verb.add_argument("-o", "--output", "--output-dir", type=str | None, help="the folder to write")
    verb.add_record(PrepareOptions)
    verb.add_argument(
        "--dry-run", action="store_true", help="say what would be done, write nothing"
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="replace what was prepared in -o before"
    )
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    inputs = [*getattr(arguments, "inputs", [])]
    if arguments.input_dir is not None:
        inputs.append(arguments.input_dir)
    if not inputs:
        verb.error("give at least one picture, folder or video")
    options = record_from(PrepareOptions, arguments)
    from sightline.cli.progress import ProgressBars
    from sightline.preparation.prepare import plan, prepare

    if arguments.dry_run:
        planned, notes = plan(inputs, output, options)
        _say(notes)
        _show_plan(planned, as_json=arguments.json)
        return
    with ProgressBars() as bars:
        result = prepare(inputs, output, options, overwrite=arguments.overwrite, progress=bars)
    _say(result.notes)
    _show(result, as_json=arguments.json)


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _show_plan(planned: "tuple[Planned, ...]", *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"source": p.source, "kind": p.kind, "name": p.name, "records": p.records}
            for p in planned
        ]
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    for one in planned:
        count = "frames" if one.records is None else str(one.records)
        sys.stdout.write(f"{one.kind:<8} {count:>6}  {one.name}  <-  {one.source}\n")
    known = sum(one.records or 0 for one in planned)
    videos = sum(one.kind == "video" for one in planned)
    more = f" and the frames of {videos} videos" if videos else ""
    sys.stderr.write(f"would prepare {known} records{more} of {len(planned)} files\n")


def _show(result: "Prepared", *, as_json: bool) -> None:
    kinds = result.modalities
    if as_json:
        summary = {
            "manifest": str(result.manifest),
            "records": sum(kinds.values()),
            "modalities": kinds,
            "skipped": list(result.skipped),
            "made": result.made,
            "reused": result.reused,
        }
        sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")
        return
    parts = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
    reused = f"; {result.reused} files were finished before" if result.reused else ""
    sys.stderr.write(f"{sum(kinds.values())} records ({parts}){reused}\n")
    sys.stdout.write(f"{result.manifest}\n")
