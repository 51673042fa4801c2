"""Does sightline run with the oldest torch that it allows?

    python benchmarks/oldest_torch.py [--torch 2.4.0] [--work FOLDER] [--tests tests/nn ...]
                                      [--again RESULT] [--json FILE]

Makes an environment with that release (default: the lower bound in ``pyproject.toml``; the build
without CUDA where pip's index has one) and with everything else as ``constraints.txt`` pins it,
installs this checkout there and runs the parts of the test suite in which torch has a say. Outside
CI: where the index has no CPU build, pip fetches several gigabytes of CUDA. Exits with 1 if a test
failed. An environment that is already in the working folder is used as it is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import common

ROOT = Path(__file__).parents[1]
OWN_WARNINGS = ("`torch.cpu.amp.autocast", "You are using `torch.load`")
"""How deprecation warnings begin that old releases of torch raise about their own code: recomputed
gradients, tensors in pickles of the tests. All other warnings stay errors."""
KEPT = ("commit", "date", "failed")
"""Of each call before, when only what had failed there was run again."""
LEFT_OUT = {
    "tests/models/test_compile.py": "one graph of a whole network is asked of the pinned torch; "
    "the compiler of 2.4 stops at sets and at submodules by name",
}
TESTS = ("geometry", "nn", "metrics", "checkpoints", "models", "parity", "splatting", "training")
"""Folders of `tests` that are torch more than anything else."""


def oldest() -> str:
    """Return the lower bound of torch in ``pyproject.toml``, as a release.

    Raises:
        SystemExit: If there is none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        if found := re.fullmatch(r"torch>=(\d+(?:\.\d+)*)", requirement):
            parts = found[1].split(".")
            return ".".join((parts + ["0", "0"])[:3])
    raise SystemExit("pyproject.toml has no dependency torch>=X")


def install(folder: Path, release: str, extra: str) -> Path:
    """Make the environment unless it is there; return its Python.

    Raises:
        SystemExit: If pip cannot install that release.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.is_file() and done.read_text(encoding="utf-8") == release:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    others = folder / "constraints.txt"
    free = re.compile(r"torch(==|\W*$)|sympy==")  # what torch itself pins by its release
    others.write_text("\n".join(x for x in lines if not free.match(x)) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(others)]
    for build in (f"torch=={release}+cpu", f"torch=={release}"):
        if subprocess.run([*pip, build], check=False).returncode == 0:
            break
    else:
        raise SystemExit(f"pip cannot install torch {release} for {sys.version.split()[0]}")
    subprocess.run([*pip, build, "-e", f"{ROOT}[{extra}]"], check=True)
    done.write_text(release, encoding="utf-8")
    return python


def run_tests(python: Path, tests: list[str], report: Path) -> dict[str, Any]:
    """Run pytest there; return the counts and the names of what failed."""
    words = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    words += [f"--deselect={test}" for test in LEFT_OUT]
    words += [f"-Wignore:{text}:FutureWarning" for text in OWN_WARNINGS]
    began = time.perf_counter()
    # The environment's own sightline, not one that the caller's variable names.
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = subprocess.run([*words, *tests], cwd=ROOT, check=False, env=own).returncode
    seconds = time.perf_counter() - began
    if not report.is_file():
        raise SystemExit(f"pytest ended with {code} and wrote no report")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {
        "tests": len(cases),
        "passed": len(cases) - len(bad) - skipped,
        "skipped": skipped,
        "failed": [_address(c) for c in bad],
        "seconds": round(seconds, 1),
        "exit_code": code,
    }


def _address(case: ElementTree.Element) -> str:
    return f"{(case.get('classname') or '').replace('.', '/')}.py::{case.get('name')}"


def merge(earlier: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Put what was run again in the place of what had failed; say what that was."""
    passed, skipped = (earlier[key] + again[key] for key in ("passed", "skipped"))
    calls = [*earlier.get("calls_before", []), {key: earlier[key] for key in KEPT}]
    return {
        "tests": passed + skipped + len(again["failed"]),
        "passed": passed,
        "skipped": skipped,
        "failed": again["failed"],
        "seconds": earlier["seconds"] + again["seconds"],
        "exit_code": again["exit_code"],
        "calls_before": calls,
    }


def main() -> None:
    """Install, test, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--torch", default=oldest(), help="release, such as 2.4.0")
    parser.add_argument("--work", type=Path, help="keep the environment here")
    parser.add_argument("--extra", default="test", help="extra of this package to install")
    parser.add_argument("--tests", nargs="+", default=[f"tests/{name}" for name in TESTS])
    parser.add_argument(
        "--again", type=Path, help="an earlier result: run only what failed there, keep the rest"
    )
    parser.add_argument("--json", type=Path, default=common.RESULTS / "oldest_torch.json")
    args = parser.parse_args()
    earlier: dict[str, Any] = {}
    if args.again:
        earlier = json.loads(args.again.read_text(encoding="utf-8"))
        args.tests = [t for t in earlier["failed"] if t.split("::")[0] not in LEFT_OUT]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.work or Path(scratch) / "environment").absolute()
        python = install(folder, args.torch, args.extra)
        code = "import json, sightline.run as r; print(json.dumps(r.versions()))"
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        shown = subprocess.run(
            [str(python), "-c", code], check=True, capture_output=True, text=True, env=own
        )
        there = json.loads(shown.stdout)
        result = run_tests(python, args.tests, Path(scratch) / "report.xml")
    if earlier:
        args.tests, result = earlier["parts"], merge(earlier, result)
    content = {
        "allowed": oldest(),
        "tried": there["torch"],
        "versions_there": there,
        "parts": args.tests,
        "left_out": LEFT_OUT,
        **result,
    }
    common.write(args.json, content)
    print(f"torch {there['torch']}: {result['passed']} passed, {len(result['failed'])} failed")
    raise SystemExit(bool(result["failed"] or result["exit_code"]))


if __name__ == "__main__":
    main()
