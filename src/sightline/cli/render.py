"""`sightline render`: a camera path through a finished scene."""

import re
import sys
from pathlib import Path
from typing import Literal

from sightline.cli.parser import VerbParser, output_path

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
    verb.add_argument(
        "--path",
        type=Literal["orbit", "spiral", "ellipse", "arc", "lemniscate", "wander", "interpolate"],
        default="interpolate",
        help="the way of the camera: interpolate passes through the photos, arc swings over the side "
        "that they show, orbit goes all the way round, which needs photos from all sides",
    )
    verb.add_argument("--modes", type=str, default="rgb", help="some of rgb,depth,normal")
    verb.add_argument("--frames", type=int, default=120, help="number of frames")
    verb.add_argument("--fps", type=float, default=30.0, help="frames a second")
    verb.add_argument("--size", type=str | None, metavar="WxH", help="default: as fitted")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing video")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    size = None
    if arguments.size is not None:
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", arguments.size)
        if not match:
            verb.error(f'--size: expected WIDTHxHEIGHT such as 640x480, got "{arguments.size}"')
        size = (int(match[1]), int(match[2]))
    output = output_path(verb, arguments)
    from sightline.cli.progress import ProgressBars
    from sightline.results import open_run

    scene = open_run(Path(arguments.scene))
    with ProgressBars() as bars:
        path = scene.render(
            output,
            trajectory=arguments.path,
            modes=tuple(m.strip() for m in arguments.modes.split(",") if m.strip()),
            frames=arguments.frames,
            fps=arguments.fps,
            size=size,
            overwrite=arguments.overwrite,
            progress=bars,
        )
    sys.stdout.write(f"{path}\n")
