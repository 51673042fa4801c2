"""Every example runs as it is, stays short, and has its place in the docs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    # What an example makes lands in the test's folder.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "an example shows what it did"


def test_the_page_of_examples_is_current() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_examples_page import page
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "examples.md").read_text(encoding="utf-8") == page(), (
        "run python docs/make_examples_page.py"
    )
