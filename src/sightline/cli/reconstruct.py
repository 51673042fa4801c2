"""`sightline reconstruct`: photos, a folder or a video to a scene."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.cli.parser import VerbParser, output_path, record_from
from sightline.options import ReconstructOptions

if TYPE_CHECKING:
    from sightline.results import Run

EXAMPLES = """\
examples:
  sightline reconstruct photos/ -o scene/
  sightline reconstruct clip.mp4 -o scene/ --num-frames 60 --export spz,colmap
  sightline reconstruct photos/ -o scene/ --resolution 480 --test-every 8
  sightline reconstruct photo.jpg -o scene/ --geometry vggt --checkpoint vggt.safetensors
  sightline reconstruct monday/ tuesday/ -o scenes/ --each
  sightline reconstruct -o scene/ --resume
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser(
        "reconstruct",
        "Turn photos, a folder, a video, a COLMAP model or a transforms.json into a 3D scene.",
        EXAMPLES,
    )
    verb.add_inputs("photos, folders, globs, videos, COLMAP models or transforms.json files")
    verb.add_argument("-o", "--output", type=str | None, help="the run folder to write")
    verb.add_record(ReconstructOptions)
    verb.add_argument(
        "--each", action="store_true", help="make one scene of every INPUT, in OUTPUT/NAME"
    )
    verb.add_argument("--resume", action="store_true", help="continue the run in -o")
    verb.add_argument("--overwrite", action="store_true", help="replace the run in -o")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    inputs = getattr(arguments, "inputs", [])
    if not inputs and not arguments.resume:
        verb.error("give at least one photo, folder or video")
    if not inputs and arguments.each:
        verb.error("--each --resume needs the inputs again, to know which runs there are")
    options = record_from(ReconstructOptions, arguments)
    start(
        inputs,
        output,
        options,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        as_json=arguments.json,
        each=arguments.each,
        command=shlex.join(["sightline", "reconstruct", *words]),
    )


def start(
    inputs: list[str],
    output: Path,
    options: ReconstructOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    each: bool = False,
    command: str | None = None,
) -> None:
    """Reconstruct with progress bars and print where the result is, or where the results are."""
    from sightline.cli.progress import ProgressBars
    from sightline.cli.session import SESSION
    from sightline.pipeline import reconstruct, reconstruct_each

    with ProgressBars() as bars:

        def live(numbers: dict[str, float]) -> None:
            bars.note(
                "splats",
                f"loss {numbers['loss']:.4f}  {numbers['psnr']:.2f} dB  "
                f"{numbers['splats']:,.0f} splats",
            )

        common = {
            "resume": resume,
            "overwrite": overwrite,
            "progress": bars,
            "on_step": live,
            **options.as_dict(),
        }
        if each:
            results = reconstruct_each(inputs, output, **common)
        else:
            kept = SESSION.loaded
            results = [reconstruct(inputs, output, command=command, loaded=kept, **common)]
    for result in results:
        _show(result, as_json=as_json)


def _show(result: "Run", *, as_json: bool) -> None:
    for warning in result.warnings:
        sys.stderr.write(f"note: {warning}\n")
    if as_json:
        sys.stdout.write(json.dumps(result.summary(), ensure_ascii=False) + "\n")
        return
    sys.stderr.write(result.sentence() + "\n")
    for path in result.products():
        sys.stdout.write(f"{path}\n")
