"""The registry of claims, the command that runs them, and the page made of their results."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as command
from benchmarks import common, page
from benchmarks.registry import BENCHMARKS, Benchmark

ROOT = Path(__file__).parents[1]
RESULTS = sorted(common.RESULTS.rglob("*.json"))
HEADER = {
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"processor": "Some(R) Chip Processor", "cores": 2, "load": [0.5, 0.5, 0.5]},
    "versions": {},
    "commit": "abc",
}


def row(**changes: Any) -> Benchmark:
    made = Benchmark("one", "Group", "It works.", "one.py --json {json}", 1, lambda r: r["figure"])
    return replace(made, **changes)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_every_result_says_when_where_and_what(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "machine", "versions", "commit"} <= result.keys()
    assert {"processor", "cores", "load"} <= result["machine"].keys()
    form = "short" if path.parent.name == "short" else "full"
    assert result.get("form", "full") == form
    assert path.stem in {row.name for row in BENCHMARKS} | {"all"}


def test_rows_are_complete() -> None:
    names = [row.name for row in BENCHMARKS]
    assert len(set(names)) == len(names)
    places = dict.fromkeys(("json", "results", "data", "reference", "scratch"), "there")
    for one in BENCHMARKS:
        assert (ROOT / "benchmarks" / one.script).is_file(), one.script
        assert "{json}" in one.run, one.name
        assert not one.short or shlex.split(one.short)[0] == one.script
        assert bool(one.short) == bool(one.short_minutes), one.name
        for short in {False, bool(one.short)}:
            assert "{" not in " ".join(command.words_of(one, short, places))
        if one.in_all and not one.needs:
            assert "{data}" not in one.run
    assert sum(one.minutes_in_all() for one in BENCHMARKS if one.in_all) <= 45


def test_every_script_of_a_claim_has_a_row() -> None:
    package = {"__init__", "__main__", "common", "figures", "page", "registry"}
    scripts = {
        path.name
        for path in (ROOT / "benchmarks").glob("*.py")
        if path.stem not in package and "def main()" in path.read_text(encoding="utf-8")
    }
    assert scripts == {one.script for one in BENCHMARKS}


def test_the_page_is_made_of_the_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.current(), (
        "docs/benchmarks.md is not what the results say; run python -m benchmarks page"
    )


def test_losses_are_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        row(name="won", holds=lambda r: True),
        row(name="lost", claim="It is fast.", holds=lambda r: False),
        row(name="late", claim="Some day.", needs=("gpu",)),
    )
    monkeypatch.setattr(page, "BENCHMARKS", rows)
    busy = HEADER | {"figure": "slow", "machine": HEADER["machine"] | {"load": [9.0, 1.0, 1.0]}}
    ended = [{"name": "won", "exit_code": 0}, {"name": "lost", "exit_code": 1}]
    whole = HEADER | {"minutes": 44.4, "ended": ended}
    text = page.page({"won": HEADER | {"figure": "quick"}, "lost": busy}, {}, whole)
    assert "The last run of `all`: 2 benchmarks in 44 minutes; failed: lost (Some Chip" in text
    assert "| It works. | quick | yes | Some Chip, 2 cores | 2026-01-02 |" in text
    assert "| It is fast. | slow | **no** | Some Chip, 2 cores, busy | 2026-01-02 |" in text
    assert "- Some day. ([one.py](../benchmarks/one.py), needs gpu)" in text


def test_readme_claims_link_to_script_and_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Numbers")[1].split("\n\n", 3)[2]
    lines = table.splitlines()[2:]
    assert len(lines) > 5
    for line in lines:
        script, result = re.findall(r"\]\(benchmarks/([^)]+)\)", line)
        name = Path(result).stem
        assert script in {one.script for one in BENCHMARKS if one.name == name}, line
        assert (common.RESULTS / f"{name}.json").is_file(), line


def test_all_goes_on_after_a_failure_and_keeps_forms_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "good.py").write_text(
        "import os, pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.parent.mkdir(parents=True, exist_ok=True)\n"
        f"path.write_text(os.environ[{common.FORM!r}] + os.environ['OMP_NUM_THREADS'])\n"
    )
    rows = (
        row(name="bad", run="bad.py {json}"),
        row(name="good", run="good.py {json}", short="good.py {json}", short_minutes=1.0),
        row(name="long", run="bad.py {json}", in_all=False),
        row(name="photos", run="bad.py {data} {json}", needs=("data:fox",)),
    )
    monkeypatch.setattr(command, "BENCHMARKS", rows)
    monkeypatch.setattr(command, "HERE", tmp_path)
    results = tmp_path / "results"
    words = ["benchmarks", "all", "--results", str(results), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code
    assert (results / "short" / "good.json").read_text() == "short1"
    assert not (results / "good.json").exists()
    summary = json.loads((results / "all.json").read_text(encoding="utf-8"))
    assert [(e["name"], e["exit_code"]) for e in summary["ended"]] == [("bad", 3), ("good", 0)]
    assert set(summary["left_out"]) == {"long", "photos"}
    assert "2 benchmarks in" in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "good", "--results", str(results)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    assert (results / "good.json").read_text() == "full2"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "unknown: nothing; there are"), ("gpu", "gpu needs gpu")],
)
def test_what_cannot_run_is_named(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", name])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@given(
    st.floats(-3, 3),
    st.floats(1e-3, 1e3),
    st.lists(st.integers(1, 10**6), min_size=2, max_size=6, unique=True),
)
def test_exponents_of_exact_powers(exponent: float, factor: float, sizes: list[int]) -> None:
    found = common.power_law(sizes, [factor * size**exponent for size in sizes])
    assert found["exponent"] == pytest.approx(exponent, abs=6e-4)
    assert found["spread"] < 1e-3


def test_folders_stay_out_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/x.py", "/data/fox", "--json=/tmp/a.json", "--n=2"])
    assert common.header()["command"] == ["x.py", "fox", "--json=a.json", "--n=2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_gpu_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--json", str(tmp_path / "x.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected a CUDA device, found none" in done.stderr
    assert not (tmp_path / "x.json").exists()
