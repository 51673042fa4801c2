"""`sightline export`: a finished scene, or one splat or point file, in other tools' formats."""

import sys
from pathlib import Path

from sightline.cli.parser import VerbParser, record_from, require
from sightline.options import ExportVerbOptions, export_names

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
    verb.add_record(ExportVerbOptions)
    verb.add_argument(
        "-o", "--output", type=str | None, help="folder; default: exports/ of the run"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace existing files in -o")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    options = record_from(ExportVerbOptions, arguments)
    formats = export_names(require(options.to, "give the formats with --to", verb.error))
    from sightline.results import export_scene

    paths = export_scene(
        Path(arguments.scene),
        formats,
        folder=None if arguments.output is None else Path(arguments.output),
        min_confidence=options.min_confidence,
        colors=options.colors,
        overwrite=arguments.overwrite,
    )
    for path in paths:
        sys.stdout.write(f"{path}\n")
