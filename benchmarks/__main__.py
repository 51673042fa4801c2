"""All benchmarks behind one command.

    python -m benchmarks list
    python -m benchmarks all [--data FOLDER] [--results FOLDER] [--threads 2]
    python -m benchmarks NAME ... [--short] [--data FOLDER] [--reference PATH] [--results FOLDER]
    python -m benchmarks gpu
    python -m benchmarks page

``all`` runs every CPU benchmark whose needs are met, one after another, each in a process of its own,
goes on after a failure, and exits with 1 if one failed. FOLDER of ``--data`` holds photo sets by name
(``fox/``, ``clothing/``, ...). Results go to ``benchmarks/results`` unless ``--results`` says otherwise.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.page import write_page
from benchmarks.registry import BENCHMARKS, Benchmark

HERE = Path(__file__).parent
ROOT = HERE.parent


def unmet(row: Benchmark, data: Path | None, reference: Path | None) -> list[str]:
    """Return the needs of a row that this machine and these options do not meet."""
    missing = []
    for need in row.needs:
        kind, _, name = need.partition(":")
        met = {
            "data": lambda name=name: data is not None and (data / name).is_dir(),
            "reference": lambda: reference is not None,
            "extra": lambda name=name: importlib.util.find_spec(name) is not None,
            "gpu": _has_gpu,
        }[kind]
        if not met():
            missing.append(need)
    return missing


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def words_of(row: Benchmark, short: bool, places: dict[str, str]) -> list[str]:
    """Return the command of a row's form."""
    script, *arguments = shlex.split(row.short if short else row.run)
    return [sys.executable, str(HERE / script), *(a.format(**places) for a in arguments)]


def run(row: Benchmark, short: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Run one row in a process of its own; return what became of it."""
    json = args.results / ("short" if short else "") / f"{row.name}.json"
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(args.threads)
    )
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    form = "short" if short else "full"
    print(f"\n== {row.name} ({form} form, about {row.short_minutes if short else row.minutes} min)")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        places = {
            "json": str(json),
            "results": str(common.RESULTS),
            "data": str(args.data),
            "reference": str(args.reference),
            "scratch": f"{scratch}/out",
        }
        done = subprocess.run(
            words_of(row, short, places),
            cwd=ROOT,
            check=False,
            env=os.environ | threads | {common.FORM: form, "PYTHONPATH": path},
        )
    return {
        "name": row.name,
        "form": form,
        "exit_code": done.returncode,
        "seconds": round(time.perf_counter() - began, 1),
    }


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what ``all`` runs here, and write what became of it."""
    missing = {row.name: unmet(row, args.data, args.reference) for row in BENCHMARKS}
    left_out = {name: f"needs {', '.join(needs)}" for name, needs in missing.items() if needs}
    left_out |= {row.name: "run it by name" for row in BENCHMARKS if not row.in_all}
    began = time.perf_counter()
    ended: list[dict[str, Any]] = []
    for row in BENCHMARKS:
        if row.name in left_out:
            continue
        ended.append(run(row, bool(row.short), args))
        minutes = round((time.perf_counter() - began) / 60, 2)
        content = {"threads": args.threads, "minutes": minutes, "ended": ended}
        common.write(args.results / "all.json", content | {"left_out": left_out})
    return ended


def show(ended: list[dict[str, Any]]) -> None:
    """Print one line a benchmark."""
    print(f"\n{'benchmark':26s} {'form':6s} {'seconds':>8s}  outcome")
    for row in ended:
        outcome = "ok" if row["exit_code"] == 0 else f"FAILED ({row['exit_code']})"
        print(f"{row['name']:26s} {row['form']:6s} {row['seconds']:8.1f}  {outcome}")
    failed = sum(row["exit_code"] != 0 for row in ended)
    minutes = sum(row["seconds"] for row in ended) / 60
    print(f"{len(ended)} benchmarks in {minutes:.1f} minutes, {failed} failed")


def show_list() -> None:
    """Print the registry."""
    for row in BENCHMARKS:
        where = f"{row.minutes_in_all():g} min in all" if row.in_all else f"{row.minutes:g} min"
        needs = ", ".join(row.needs) or "nothing"
        print(f"{row.name}  ({where}; needs {needs}; {row.script})\n    {row.claim}")


def main() -> None:
    """List, run, or write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="list|all|page|NAME")
    parser.add_argument("--short", action="store_true", help="short forms, where there are")
    parser.add_argument("--data", type=Path, help="folder of photo sets")
    parser.add_argument("--reference", type=Path, help="checkout of the original")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in ("data", "reference", "results"):
        if value := getattr(args, name):
            setattr(args, name, value.absolute())
    rows = {row.name: row for row in BENCHMARKS}
    if args.names == ["list"]:
        show_list()
        return
    if args.names == ["page"]:
        write_page()
        return
    if args.names == ["all"]:
        ended = run_all(args)
    else:
        if unknown := [name for name in args.names if name not in rows]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(rows)}")
        for name in args.names:
            if missing := unmet(rows[name], args.data, args.reference):
                parser.error(f"{name} needs {', '.join(missing)}")
        ended = [
            run(rows[name], args.short and bool(rows[name].short), args) for name in args.names
        ]
    show(ended)
    raise SystemExit(any(row["exit_code"] for row in ended))


if __name__ == "__main__":
    main()
