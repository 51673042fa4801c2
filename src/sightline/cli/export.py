"""`sightline export`: a finished scene, or one splat or point file, in other tools' formats."""

import sys
from pathlib import Path
from typing import Literal

from sightline.cli.parser import VerbParser, require
from sightline.options import EXPORT_NAMES, export_names

EXAMPLES = """\
examples:
  sightline export scene/ --to spz,colmap
  sightline export scene/ --to html
  sightline export scene/ --to gs-ply --colors features
  sightline export splats.ply --to splat -o converted/
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser("export", "Write a finished scene in the formats of other tools.", EXAMPLES)
    verb.add_argument("scene", type=str, help="a run folder, or a .ply, .splat, .spz or .glb file")
    verb.add_argument("--to", type=str | None, help=f"some of {','.join(EXPORT_NAMES)}")
    verb.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="PCT",
        help="leave out this share (percent) of the least certain points",
    )
    verb.add_argument(
        "--colors",
        type=Literal["photo", "features"],
        default="photo",
        help="of splats and points: as photographed, or the components of --features",
    )
    verb.add_argument(
        "-o", "--output", type=str | None, help="folder; default: exports/ of the run"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace existing files in -o")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    formats = export_names(require(arguments.to, "give the formats with --to", verb.error))
    from sightline.results import export_scene

    paths = export_scene(
        Path(arguments.scene),
        formats,
        folder=None if arguments.output is None else Path(arguments.output),
        min_confidence=arguments.min_confidence,
        colors=arguments.colors,
        overwrite=arguments.overwrite,
    )
    for path in paths:
        sys.stdout.write(f"{path}\n")
