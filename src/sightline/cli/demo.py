"""`sightline demo`: a procedural scene from start to end, without input, weights or network."""

import shlex
import tempfile
from pathlib import Path

from sightline.cli.parser import VerbParser
from sightline.options import DemoVerbOptions

DEFAULT_OUTPUT = "sightline-demo"


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser(
        "demo",
        "Render a textured procedural scene with known cameras, hold out every 8th view, fit "
        "splats to the others and write the report. Needs no input, weights or network.",
    )
    verb.add_argument(
        "-o", "--output", type=str, default=DEFAULT_OUTPUT, help="the run folder to write"
    )
    verb.add_record(DemoVerbOptions)
    verb.add_argument("--resume", action="store_true", help="continue the run in -o")
    verb.add_argument("--overwrite", action="store_true", help="replace the run in -o")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    arguments = parser().parse_args(words)
    output = Path(arguments.output)
    from sightline.cli.reconstruct import start
    from sightline.datasets.synthetic import make_scene, write_scene
    from sightline.options import ReconstructOptions
    from sightline.run import RunFolder, is_run

    options = ReconstructOptions(
        geometry="given", test_every=8, steps=arguments.steps, seed=arguments.seed
    )
    resuming = arguments.resume and is_run(output)
    if resuming and RunFolder.open(output).finished("ingest"):
        # The pictures are in the run already.
        start([], output, options, resume=True, as_json=arguments.json)
        return
    with tempfile.TemporaryDirectory(prefix="sightline-demo-") as folder:
        write_scene(make_scene(seed=arguments.seed), Path(folder))
        start(
            [folder],
            output,
            options,
            overwrite=arguments.overwrite or resuming,
            as_json=arguments.json,
            command=shlex.join(["sightline", "demo", *words]),
        )
