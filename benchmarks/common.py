"""What every benchmark writes into its JSON: when, where, on what, and how it was called."""

import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.run import versions

RESULTS = Path(__file__).parent / "results"
FORM = "SIGHTLINE_BENCHMARK_FORM"
"""Environment variable of `python -m benchmarks`: ``full`` or ``short``."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
"""What scripts take unless they are told; `python -m benchmarks --threads` sets it."""
_LOAD = os.getloadavg() if hasattr(os, "getloadavg") else None


def header() -> dict[str, Any]:
    """Return date, machine, versions, commit, form and command."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "src"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": _LOAD,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }
    if gpu := _gpu():
        machine["gpu"] = gpu
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine | {"busy": busy(machine)},
        "versions": versions(),
        "commit": commit + ("+" if dirty else ""),
        "form": os.environ.get(FORM, "full"),
        "command": [_without_folders(word) for word in sys.argv],
    }


def busy(machine: dict[str, Any]) -> bool:
    """Return whether others computed too: more was to run than there are cores, before or after.

    Absolute times of such a run mean little; ratios of interleaved sides stand.
    """
    loads = [machine[key][0] for key in ("load_before", "load") if machine.get(key)]
    return max(loads, default=0) > machine["cores"] + 0.5


def _without_folders(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a script that did not import it measured nothing there
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that ended, all threads."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def power_law(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Fit ``value = factor * size ** exponent`` by least squares of the logarithms.

    Returns:
        ``exponent``, ``factor``, and ``spread``: the root mean square of the logarithms' residuals.
    """
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
    offset = mean_y - exponent * mean_x
    rest = [b - offset - exponent * a for a, b in zip(x, y, strict=True)]
    return {
        "exponent": round(exponent, 3),
        "factor": math.exp(offset),
        "spread": round(math.sqrt(sum(r * r for r in rest) / len(rest)), 3),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header(), **content}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
