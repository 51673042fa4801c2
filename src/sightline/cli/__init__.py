"""The `sightline` command: a table of verbs; each imports its work when it is called."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sightline import __version__
from sightline.errors import SightlineError, UnknownNameError

VERBS = {
    "reconstruct": "photos, a folder or a video to cameras, points and Gaussian splats",
    "render": "a camera path through a finished scene, as a video",
    "export": "a finished scene in the formats of other tools",
    "view": "a finished scene in the browser",
    "app": "everything in the browser: jobs, results, weights, and an HTTP API",
    "prepare": "pictures, rasters and videos of any kind into one data set with a manifest",
    "segment": "objects marked a few times, found in other pictures",
    "features": "what a vision model sees in photos or a video, as arrays and pictures",
    "models": "weights: what exists, what a file is, downloads",
    "train": "networks that learn from your own data, resumed after any interruption",
    "probe": "which vision model knows 3D, with error bars: a grid of probes and its report",
    "demo": "a procedural scene from start to end: no input, weights or network needed",
    "doctor": "what this machine and this installation can do",
}
"""Verb -> what it is for. The module ``sightline.cli.VERB`` has ``run(arguments) -> None``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and leave with its exit code: 0, 1 failed, 2 usage, 3 cancelled, 4 memory."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        sys.stdout.write(f"sightline {__version__}\n")
        sys.exit(0)
    prepare_process()
    verb, rest = arguments[0], arguments[1:]
    debug = "--debug" in rest
    sys.exit(_run(verb, [word for word in rest if word != "--debug"], debug=debug))


def prepare_process() -> None:
    """Set what libraries read from the environment when they are imported."""
    # Torch's idle OpenMP threads would spin on the cores that our kernels need (a fifth of a step).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # OpenCV warns of every tag of a GeoTIFF that it does not know.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def _run(verb: str, arguments: list[str], *, debug: bool) -> int:
    code, sentence = run_verb(verb, arguments, debug=debug)
    if sentence:
        sys.stderr.write(f"sightline {verb}: {sentence}\n")
    return code


def run_verb(verb: str, arguments: list[str], *, debug: bool = False) -> tuple[int, str]:
    """Run one verb; errors become an exit code and a sentence, unless ``debug`` lets them through.

    Returns:
        The exit code, and what the user is told (nothing where the code is 0).

    Raises:
        SystemExit: Where a parser has shown its help, or has said what is wrong, itself.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if debug:
        logging.getLogger("sightline").setLevel(logging.DEBUG)
    try:
        if verb not in VERBS:
            raise UnknownNameError("verb", verb, VERBS, "sightline --help")
        import_module(f"sightline.cli.{verb}").run(arguments)
    except KeyboardInterrupt:
        return 3, "cancelled; what was finished is kept"
    except SightlineError as error:
        if debug:
            raise
        return error.exit_code, _one_line(str(error))
    except MemoryError as error:
        if debug:
            raise
        remedy = "lower --resolution, --max-frames or --max-splats"
        return 4, _one_line(f"out of memory ({error}); {remedy}")
    except OSError as error:
        if debug:
            raise
        return 1, _one_line(_os_sentence(error))
    except Exception as error:
        if debug:
            raise
        text = f"internal error, {type(error).__name__}: {error}; --debug shows where"
        return 1, _one_line(text)
    return 0, ""


def _os_sentence(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    return f"the system refused{where}: {error.strerror or error}; check space and permissions"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _overview() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"sightline {__version__}: photos and video into 3D\n\n"
        f"usage: sightline VERB ... (sightline VERB --help tells more)\n\n{rows}\n\n"
        "first steps:\n"
        "  sightline demo\n"
        "  sightline reconstruct photos/ -o scene/\n"
    )
