"""`sightline render`: a camera path through a finished scene."""

import sys
from pathlib import Path

from sightline.cli.parser import VerbParser, output_path, record_from
from sightline.options import RenderVerbOptions

EXAMPLES = """\
examples:
  sightline render scene/ --path arc -o arc.mp4
  sightline render scene/ --path spiral --modes rgb,depth,normal --size 640x480 -o spiral.mp4
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser("render", "Render a camera path through a finished scene.", EXAMPLES)
    verb.add_argument("scene", type=str, help="a run folder with splats")
    verb.add_argument("-o", "--output", type=str | None, help="the video to write, .mp4")
    verb.add_record(RenderVerbOptions)
    verb.add_argument("--overwrite", action="store_true", help="replace an existing video")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    options = record_from(RenderVerbOptions, arguments)
    output = output_path(verb, arguments)
    from sightline.cli.progress import ProgressBars
    from sightline.results import open_run

    scene = open_run(Path(arguments.scene))
    with ProgressBars() as bars:
        path = scene.render(
            output,
            trajectory=options.path,
            modes=tuple(m.strip() for m in options.modes.split(",") if m.strip()),
            frames=options.frames,
            fps=options.fps,
            size=options.picture_size(),
            overwrite=arguments.overwrite,
            progress=bars,
        )
    sys.stdout.write(f"{path}\n")
