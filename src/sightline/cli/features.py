"""`sightline features`: what a vision model sees in photos or a video, as arrays and pictures."""

import json
import re
import sys
from collections.abc import Sequence

from sightline.cli.parser import VerbParser, output_path, record_from, require
from sightline.options import FeaturesVerbOptions

EXAMPLES = """\
examples:
  sightline features photos/ -o features/ --backbone dinov2_vits14 --checkpoint dinov2_vits14.pth
  sightline features clip.mp4 -o features/ --backbone hf:models/siglip2 --num-frames 16
  sightline features photos/ -o features/ --backbone random:dinov2_vits14 --layers 5 11
  sightline features photos/ -o features/ --backbone iuvrgb
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser(
        "features",
        "Encode photos or videos with a vision model: features.npz and PCA pictures.",
        EXAMPLES,
    )
    verb.add_inputs("photos, folders, globs or videos")
    verb.add_argument("-o", "--output", type=str | None, help="the folder to write")
    verb.add_record(FeaturesVerbOptions)
    verb.add_argument(
        "--layers",
        type=int | str,
        nargs="+",
        default=[-1],
        metavar="L",
        help="layers from 0, or from the end (-1 is the last); several are put side by side",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace the features in -o")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(_joined(words))
    output = output_path(verb, arguments)
    name = require(arguments.backbone, "give the vision model with --backbone", verb.error)
    inputs = getattr(arguments, "inputs", [])
    if not inputs:
        verb.error("give at least one photo, folder or video")
    options = record_from(FeaturesVerbOptions, arguments)
    layers = _layers(arguments.layers, verb)
    from sightline.backbones import create_backbone
    from sightline.backbones.extract import check_output, write_features
    from sightline.cli.progress import ProgressBars
    from sightline.io.frames import FrameOptions

    check_output(output, inputs, overwrite=arguments.overwrite)
    chosen = {"norm": options.norm, "fit": options.fit}
    backbone = create_backbone(
        name,
        options.checkpoint,
        options.device,
        options.dtype,
        seed=options.seed,
        **{option: value for option, value in chosen.items() if value is not None},
    )
    frames = FrameOptions(
        **{
            option: getattr(options, option)
            for option in ("fps", "num_frames", "every", "max_frames")
        }
    )
    with ProgressBars() as bars:
        paths = write_features(
            inputs,
            output,
            backbone,
            layers=layers,
            resolution=options.resolution,
            frames=frames,
            overwrite=arguments.overwrite,
            progress=bars,
        )
    if arguments.json:
        found = {"features": str(paths[0]), "pca": [str(path) for path in paths[1:]]}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        return
    for path in paths[:1] + [path.parent for path in paths[1:2]]:
        sys.stdout.write(f"{path}\n")


def _joined(words: Sequence[str]) -> list[str]:
    """Join ``--layers -4,-1`` by an equals sign; the second word would be taken for an option."""
    joined = []
    for word in words:
        if joined and joined[-1] == "--layers" and re.fullmatch(r"-\d+(,-?\d+)+", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _layers(given: Sequence[int | str], verb: VerbParser) -> list[int]:
    """Return layers that are given one by one, or joined by commas."""
    words = [part for word in given for part in str(word).split(",")]
    for word in words:
        if not re.fullmatch(r"-?\d{1,4}", word):
            verb.error(f'--layers: expected whole numbers, got "{word}"; give such as -4 -1')
    return [int(word) for word in words]
