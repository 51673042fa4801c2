"""Write ``docs/benchmarks.md`` from the committed results: every claim, losses included."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, busy
from benchmarks.figures import everything
from benchmarks.registry import BENCHMARKS, Benchmark

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SOURCE = "../benchmarks"
INTRO = """# Benchmarks

Every claim with its number, the script that measures it and the result as that script wrote it. A row
says **no** where a claim does not hold. This page is made of the results (`python -m benchmarks page`);
nothing on it is typed by hand.

```sh
python -m benchmarks list                 # all claims, what they need and how long they take
python -m benchmarks all --data photos/   # what this machine can run, one after another
python -m benchmarks pairs startup        # some of them
```

`all` needs nothing beside the checkout; rows with photos run where `--data` has them. Each benchmark is
a process of its own with two threads. Where the full form of a row takes too long for `all`, a short one
does less of the same work and has its own file under `results/short/`, so that it never replaces a full
result. A machine is *busy* when more was to run than it has cores: seconds of such a run mean little,
ratios stand, since both sides took turns.
"""


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results there are, by name of the row."""
    return {
        row.name: json.loads(path.read_text(encoding="utf-8"))
        for row in BENCHMARKS
        if (path := folder / f"{row.name}.json").is_file()
    }


def machine_of(result: dict[str, Any]) -> str:
    """Name processor, cores, GPU and whether others computed."""
    machine = result["machine"]
    name = re.sub(r"\(R\)|\(TM\)| Processor| CPU", "", machine["processor"]).strip()
    words = [machine.get("gpu") or f"{name}, {machine['cores']} cores"]
    return ", ".join(words + ["busy"] * busy(machine))


def _row(row: Benchmark, result: dict[str, Any], place: str) -> str:
    held = "–" if row.holds is None else "yes" if row.holds(result) else "**no**"
    cells = [row.claim, row.figure(result), held, machine_of(result), result["date"][:10]]
    links = [
        f"[{row.script}]({SOURCE}/{row.script})",
        f"[JSON]({SOURCE}/{place}/{row.name}.json)",
    ]
    return "| " + " | ".join([*cells, *links]) + " |"


def page(
    full: dict[str, dict[str, Any]],
    short: dict[str, dict[str, Any]],
    whole: dict[str, Any] | None = None,
) -> str:
    """Return the page: a table a group, the short forms, the run of ``all``, what is missing."""
    head = "| claim | figure | holds | machine | date | script | result |\n|---|---|---|---|---|---|---|"
    parts = [INTRO.strip()]
    for group in dict.fromkeys(row.group for row in BENCHMARKS):
        rows = [row for row in BENCHMARKS if row.group == group and row.name in full]
        if rows:
            table = "\n".join([head, *(_row(row, full[row.name], "results") for row in rows)])
            parts.append(f"## {group}\n\n{table}")
    rows = [row for row in BENCHMARKS if row.name in short]
    if rows:
        table = "\n".join([head, *(_row(row, short[row.name], "results/short") for row in rows)])
        parts.append(
            f"## Short forms\n\nWhat `all` ran of rows whose full form takes longer.\n\n{table}"
        )
    if whole:
        where = f"{machine_of(whole)}, {whole['date'][:10]}, [JSON]({SOURCE}/results/all.json)"
        parts.append(f"The last run of `all`: {everything(whole)} ({where}).")
    missing = [row for row in BENCHMARKS if row.name not in full]
    if missing:
        lines = "\n".join(
            f"- {row.claim} ([{row.script}]({SOURCE}/{row.script}), "
            f"needs {', '.join(row.needs) or 'time'})"
            for row in missing
        )
        parts.append(f"## Not measured yet in full\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def current() -> str:
    """Return the page of the committed results."""
    whole = RESULTS / "all.json"
    return page(
        read_results(),
        read_results(RESULTS / "short"),
        json.loads(whole.read_text(encoding="utf-8")) if whole.is_file() else None,
    )


def write_page() -> None:
    """Write the page into the docs."""
    PAGE.write_text(current(), encoding="utf-8")
    print(f"wrote {PAGE}")
