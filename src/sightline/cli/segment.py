"""`sightline segment`: mark an object once, find it everywhere."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sightline.cli.parser import VerbParser, output_path, record_from, require
from sightline.errors import UnknownNameError
from sightline.segmentation.options import EncoderOptions, MaskOptions, ReferenceOptions

EXAMPLES = """\
examples:
  sightline segment fit --references nuts/ --shots 5 --backbone colour -o bank.safetensors
  sightline segment predict photos/ --bank bank.safetensors -o found/
  sightline segment evaluate --bank bank.safetensors --dataset nuts/ -o scores/
  sightline segment lift scene/ --masks masks/ -o objects/
  sightline segment --config configs/segment/smoke.yaml -o smoke/
  sightline segment test --config staged.yaml --model.test_mode test --ckpt_path bank.ckpt
"""


def run(words: list[str]) -> None:
    """Run a sub-verb, or what a configuration file asks for."""
    if words and words[0] in SUBVERBS:
        SUBVERBS[words[0]](words[1:])
        return
    if words and not words[0].startswith("-"):
        raise UnknownNameError("sub-verb", words[0], SUBVERBS, "sightline segment --help")
    config = _config_of(words)
    if config is not None and _is_staged(config):
        staged(words)
        return
    everything(words)


def _config_of(words: list[str]) -> Path | None:
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
        if word == "--config" and index + 1 < len(words):
            return Path(words[index + 1])
    return None


def _is_staged(config: Path) -> bool:
    """Say whether a configuration file is one of the staged interface."""
    from sightline.segmentation.staged import read_yaml

    return "model" in read_yaml(config)


def _verb(name: str, text: str) -> VerbParser:
    verb = VerbParser(f"segment{name}", text, EXAMPLES)
    verb.add_argument("-o", "--output", type=str | None, help="what to write")
    verb.add_argument("--overwrite", action="store_true", help="replace what is in -o")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def _cluster_option(verb: VerbParser) -> None:
    verb.add_argument(
        "--cluster",
        type=str | None,
        help="spread the work over a Ray cluster that shares the disk: auto, or its address",
    )


def fit(words: list[str]) -> None:
    """Run ``segment fit``."""
    verb = _verb(" fit", "Fill a memory bank from references.")
    for record in (ReferenceOptions, EncoderOptions, MaskOptions):
        verb.add_record(record)
    _cluster_option(verb)
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    references = record_from(ReferenceOptions, arguments)
    require(references.references, "give the references with --references", verb.error)
    encoder, masks = record_from(EncoderOptions, arguments), record_from(MaskOptions, arguments)
    from sightline.cli.progress import ProgressBars
    from sightline.segmentation import tasks

    tasks.check_output(output, arguments.overwrite)
    with ProgressBars() as bars:
        bank = tasks.fit(
            references, encoder, masks, output, cluster=arguments.cluster, progress=bars
        )
    if arguments.json:
        from sightline.segmentation.calibration import reference_report

        rows = [row.as_dict() for row in reference_report(bank)]
        _print_json({"bank": str(output), "classes": list(bank.names), "references": rows})
        return
    sys.stderr.write(
        f"{len(bank.shots)} references of {len(bank.classes)} classes: {', '.join(bank.names)}\n"
    )
    sys.stdout.write(f"{output}\n")


def _bank_options(verb: VerbParser) -> None:
    verb.add_argument("--bank", type=str | None, help="the memory bank that fit wrote")
    verb.add_argument("--checkpoint", type=str | None, help="weights of the bank's backbone")
    verb.add_argument(
        "--vis-thr", type=float, default=0.5, metavar="SCORE", help="least score that is drawn"
    )
    verb.add_record(MaskOptions)
    _cluster_option(verb)


def _open(verb: VerbParser, arguments: Any) -> Any:  # noqa: ANN401
    from sightline.segmentation import tasks
    from sightline.segmentation.memory import MemoryBank

    path = require(arguments.bank, "give the memory bank with --bank", verb.error)
    bank = MemoryBank.load(path)
    masks = record_from(MaskOptions, arguments)
    encoder = tasks.encoder_of(bank, EncoderOptions(checkpoint=arguments.checkpoint), masks.device)
    segmenter = tasks.open_segmenter(encoder, masks, bank)
    return tasks.spread(segmenter, arguments.checkpoint, masks, arguments.cluster)


def predict(words: list[str]) -> None:
    """Run ``segment predict``."""
    verb = _verb(" predict", "Find the bank's classes in pictures.")
    verb.add_inputs("pictures or folders of pictures")
    _bank_options(verb)
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    inputs = require(getattr(arguments, "inputs", None), "give at least one picture", verb.error)
    from sightline.cli.progress import ProgressBars
    from sightline.segmentation import tasks

    files = tasks.list_pictures(inputs)
    tasks.check_output(output, arguments.overwrite)
    segmenter = _open(verb, arguments)
    with ProgressBars() as bars:
        paths = tasks.predict(
            segmenter,
            files,
            output,
            vis_thr=arguments.vis_thr,
            overwrite=arguments.overwrite,
            progress=bars,
        )
    if arguments.json:
        _print_json({"images": len(files), "paths": [str(path) for path in paths]})
        return
    for path in paths:
        sys.stdout.write(f"{path}\n")


def evaluate(words: list[str]) -> None:
    """Run ``segment evaluate``."""
    verb = _verb(" evaluate", "Score a memory bank on annotated pictures.")
    verb.add_argument("--dataset", type=str | None, help="a COCO file or a COCO folder")
    verb.add_argument("--images", type=str | None, help="its pictures; default: beside it")
    verb.add_argument(
        "--keep-references",
        action="store_true",
        help="also score on pictures that references came from",
    )
    _bank_options(verb)
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    dataset = require(arguments.dataset, "give the true objects with --dataset", verb.error)
    from sightline.segmentation import tasks

    tasks.check_output(output, arguments.overwrite)
    segmenter = _open(verb, arguments)
    images = None if arguments.images is None else Path(arguments.images)
    truth, folder = tasks.open_dataset(Path(dataset), images, segmenter.bank)
    scores = _score(
        segmenter,
        truth,
        folder,
        output,
        arguments,
        keep=arguments.keep_references,
    )
    _print_scores(scores, output, as_json=arguments.json)


def _score(
    segmenter: Any,  # noqa: ANN401
    truth: Any,  # noqa: ANN401
    folder: Path,
    output: Path,
    arguments: Any,  # noqa: ANN401
    *,
    keep: bool,
) -> dict[str, Any]:
    from sightline.cli.progress import ProgressBars
    from sightline.segmentation import tasks

    left_out = 0
    if not keep:
        truth, left_out = tasks.without_references(truth, segmenter.bank)
    if left_out:
        sys.stderr.write(f"note: left out {left_out} pictures that references came from\n")
    with ProgressBars() as bars:
        return tasks.evaluate(
            segmenter,
            truth,
            folder,
            output,
            vis_thr=arguments.vis_thr,
            overwrite=arguments.overwrite,
            extra={"left_out": left_out},
            progress=bars,
        )


def lift(words: list[str]) -> None:
    """Run ``segment lift``."""
    verb = _verb(" lift", "Carry the masks of a run's views onto its splats.")
    verb.add_argument("scene", type=str, help="a run folder with splats")
    verb.add_argument("--masks", type=str | None, help="masks named like the views")
    verb.add_argument(
        "--unnumbered",
        action="store_true",
        help="the same value in two mask pictures need not be the same object",
    )
    _bank_options(verb)
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    if (arguments.masks is None) == (arguments.bank is None):
        verb.error("give the masks with --masks, or a memory bank that finds them with --bank")
    from sightline.cli.progress import ProgressBars
    from sightline.pipeline.objects import lift_run

    segmenter = None if arguments.bank is None else _open(verb, arguments)
    with ProgressBars() as bars:
        paths = lift_run(
            Path(arguments.scene),
            output,
            masks=None if arguments.masks is None else Path(arguments.masks),
            segmenter=segmenter,
            numbered=not arguments.unnumbered,
            overwrite=arguments.overwrite,
            progress=bars,
        )
    if arguments.json:
        objects = json.loads((output / "objects.json").read_text(encoding="utf-8"))
        _print_json({"output": str(output), **objects})
        return
    for path in paths:
        sys.stdout.write(f"{path}\n")


def everything(words: list[str]) -> None:
    """Run fit, predict and evaluate on one COCO folder, or on synthetic pictures."""
    verb = _verb("", "Fit, predict and evaluate on one COCO folder, as a configuration file says.")
    verb.add_argument("--data", type=str | None, help="COCO folder: instances.json and images/")
    verb.add_argument(
        "--synthetic", type=int, default=0, metavar="N", help="make N pictures instead of --data"
    )
    verb.add_argument("--vis-thr", type=float, default=0.5, metavar="SCORE", help="least drawn")
    verb.add_record(ReferenceOptions, skip=("references",))
    verb.add_record(EncoderOptions)
    verb.add_record(MaskOptions)
    _cluster_option(verb)
    if words in (["-h"], ["--help"]):
        names = "\n".join(f"  {name:<10}{SUBVERBS[name].__doc__}" for name in SUBVERBS)
        sys.stdout.write(f"sub-verbs (each has its own --help):\n{names}\n\n")
    arguments = verb.parse_args(words)
    output = output_path(verb, arguments)
    if (arguments.data is None) == (arguments.synthetic == 0):
        verb.error("give a COCO folder with --data, or a number of pictures with --synthetic")
    if arguments.synthetic and arguments.synthetic < 3:
        verb.error("--synthetic needs 3 pictures or more")
    from sightline.cli.progress import ProgressBars
    from sightline.segmentation import synthetic, tasks

    tasks.check_output(output, arguments.overwrite)
    data = arguments.data
    if data is None:
        data = str(
            synthetic.write_dataset(output / "data", arguments.synthetic, seed=arguments.seed)
        )
    given = asdict(record_from(ReferenceOptions, arguments))
    references = ReferenceOptions(**{**given, "references": data})
    masks = record_from(MaskOptions, arguments)
    encoder = record_from(EncoderOptions, arguments)
    path = output / "bank.safetensors"
    with ProgressBars() as bars:
        bank = tasks.fit(references, encoder, masks, path, cluster=arguments.cluster, progress=bars)
    segmenter = tasks.open_segmenter(tasks.open_encoder(encoder, masks), masks, bank)
    segmenter = tasks.spread(segmenter, encoder.checkpoint, masks, arguments.cluster)
    images = None if arguments.images is None else Path(arguments.images)
    truth, folder = tasks.open_dataset(Path(data), images, bank)
    scores = _score(segmenter, truth, folder, output / "evaluation", arguments, keep=False)
    _print_scores(scores, output, as_json=arguments.json)


def staged(words: list[str]) -> None:
    """Run one stage of the no-time-to-train interface (``--config`` with a ``model``)."""
    from sightline.cli.progress import ProgressBars
    from sightline.segmentation.staged import run_stage

    with ProgressBars() as bars:
        paths = run_stage(words, progress=bars)
    for path in paths:
        sys.stdout.write(f"{path}\n")


def _print_scores(scores: dict[str, Any], output: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json({"output": str(output), **scores})
        return
    for kind in ("bbox", "segm"):
        row = scores[kind]
        numbers = (row["ap"], row["ap50"], row["ap75"])
        shown = "  ".join("   -" if n is None else f"{n:5.1f}" for n in numbers)
        sys.stderr.write(f"{kind}: AP, AP50, AP75 = {shown}\n")
    miou = scores["semantic"]["miou"]
    sys.stderr.write(f"mIoU = {'-' if miou is None else f'{miou:.1f}'}\n")
    sys.stdout.write(f"{output}\n")


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")


SUBVERBS: dict[str, Callable[[list[str]], None]] = {
    "fit": fit,
    "predict": predict,
    "evaluate": evaluate,
    "lift": lift,
    "test": staged,
}
"""Sub-verb -> what runs it."""
