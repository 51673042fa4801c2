"""How long sightline takes to start: import, help, and the help of a verb.

    python benchmarks/startup.py [--repeats 10] [--json FILE]

Each call is a Python of its own, in turns with one that does nothing (``python -c pass``); what that
one takes is given beside, for the difference is what sightline costs. Reported are the fastest and
the median wall seconds and CPU seconds. ``holds`` compares the fastest with the targets: 0.1 seconds
for the import beyond Python's own start, without torch; 0.5 seconds for ``sightline --help``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

CALLS = {
    "python -c pass": ["-c", "pass"],
    "import sightline": ["-c", "import sightline"],
    "sightline --help": ["-m", "sightline", "--help"],
    "sightline demo --help": ["-m", "sightline", "demo", "--help"],
    "sightline reconstruct --help": ["-m", "sightline", "reconstruct", "--help"],
}
NOTHING = "python -c pass"


def measure(words: list[str]) -> tuple[float, float]:
    """Run a Python; return its wall and CPU seconds."""
    began, busy = time.perf_counter(), common.cpu_seconds()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, common.cpu_seconds() - busy


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "startup.json")
    args = parser.parse_args()
    for words in CALLS.values():  # fills the caches of compiled modules and of the disk
        measure(words)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CALLS}
    for _ in range(args.repeats):
        for name, words in CALLS.items():
            seconds[name].append(measure(words))
    calls: dict[str, Any] = {}
    for name, rows in seconds.items():
        wall, busy = ([row[i] for row in rows] for i in (0, 1))
        calls[name] = {
            "fastest_s": round(min(wall), 4),
            "median_s": round(statistics.median(wall), 4),
            "cpu_s": round(min(busy), 4),
        }
        calls[name]["beyond_python_s"] = round(
            calls[name]["fastest_s"] - calls[NOTHING]["fastest_s"], 4
        )
    code = "import sys, sightline; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    content = {
        "repeats": args.repeats,
        "calls": calls,
        "import_loads_torch": loaded.stdout.strip() == b"True",
        "holds": calls["import sightline"]["beyond_python_s"] < 0.1
        and calls["sightline --help"]["fastest_s"] < 0.5
        and loaded.stdout.strip() == b"False",
    }
    print(json.dumps(content, indent=1))
    common.write(args.json, content)


if __name__ == "__main__":
    main()
