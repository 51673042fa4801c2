"""`sightline models`: which weights exist, what a file is, and downloads."""

import json
import sys
from pathlib import Path
from typing import Any

from sightline.cli.parser import VerbParser
from sightline.errors import InputError, UnknownNameError

ACTIONS = ("list", "check", "download")
EXAMPLES = """\
examples:
  sightline models list
  sightline models check dinov2_vits14_pretrain.pth
  sightline models download vggt_1b
  sightline models download facebook/sam2.1-hiera-tiny/sam2.1_hiera_tiny.pt --target-dir weights/

environment:
  SIGHTLINE_CACHE    where files from plain URLs are kept; HF_HOME, HF_HUB_CACHE for the hub's
  SIGHTLINE_OFFLINE  1 for no network at all (HF_HUB_OFFLINE does the same)
  HF_ENDPOINT, SIGHTLINE_MIRRORS  other addresses, tried in turn
  HF_TOKEN           for gated weights
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser(
        "models", "Weights: list what exists, check a file, download by name.", EXAMPLES
    )
    verb.add_argument("action", type=str, metavar="{list,check,download}", help="what to do")
    verb.add_argument(
        "what",
        type=str | None,
        nargs="?",
        metavar="FILE|NAME",
        help="check: a file, folder or index; download: a name, REPO_ID/FILENAME or URL",
    )
    verb.add_argument("--repo-id", type=str | None, metavar="OWNER/NAME", help="with --filename")
    verb.add_argument("--filename", type=str | None, metavar="FILE", help="a file of --repo-id")
    verb.add_argument(
        "--target-dir", type=str | None, metavar="DIR", help="put the file there, not in the cache"
    )
    verb.add_argument(
        "--revision", type=str, default="main", help="branch, tag or commit of a repository"
    )
    verb.add_argument("--json", action="store_true", help="print the findings as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    verb = parser()
    arguments = verb.parse_args(words)
    action = arguments.action
    if action not in ACTIONS:
        raise UnknownNameError("action of models", str(action), ACTIONS, "sightline models --help")
    if action == "list":
        _list(as_json=arguments.json)
    elif action == "check":
        if arguments.what is None:
            verb.error("give the file to check: sightline models check FILE")
        _check(arguments.what, as_json=arguments.json)
    else:
        given = (arguments.repo_id, arguments.filename)
        request = arguments.what
        if all(given):
            request = "/".join(given)
        if request is None or (any(given) and not all(given)):
            verb.error("give what to download: NAME, REPO_ID/FILENAME, or --repo-id and --filename")
        _download(request, arguments.target_dir, arguments.revision, as_json=arguments.json)


def _list(*, as_json: bool) -> None:
    from sightline.hub import CATALOGUE, cached

    rows: list[dict[str, Any]] = []
    for entry in CATALOGUE.values():
        found = cached(entry.name)
        rows.append(
            {
                "name": entry.name,
                "family": entry.family,
                "parameters": entry.parameters,
                "memory": entry.memory,
                "licence": entry.licence,
                "gated": entry.gated,
                "sources": list(entry.sources),
                "cached": None if found is None else str(found),
            }
        )
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "parameters", "memory", "cached", "access", "licence", "source"):
        number = title in {"parameters", "memory"}
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    family = ""
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            table.add_row(f"[bold cyan]{family}[/]")
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['memory'] / 1e9:.2f} GB",
            "[green]yes[/]" if row["cached"] else "",
            "[yellow]gated[/]" if row["gated"] else "free",
            row["licence"],
            _home(row["sources"]) or "by mail after a form",
        )
    # A pipe is no screen: nothing is folded there.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _home(sources: list[str]) -> str:
    if not sources:
        return ""
    if sources[0].startswith("hf:"):
        return sources[0].removeprefix("hf:").rpartition("/")[0]
    return sources[0].split("/")[2]


def _check(path: str, *, as_json: bool) -> None:
    from sightline.models.check import check_file

    found = check_file(path)
    plain = found.as_dict()
    if as_json:
        sys.stdout.write(json.dumps(plain, default=str) + "\n")
    else:
        sys.stdout.write(_report(plain))
    if not found.strict:
        raise InputError(f"{path}: {found.verdict}")


def _report(plain: dict[str, Any]) -> str:
    """Return the findings as lines of text."""
    from sightline.checkpoints.read import printable

    kinds = ", ".join(f"{count} {kind}" for kind, count in plain["dtypes"].items())
    inside = f", under {plain['inside']}" if plain["inside"] else ""
    rows = [
        ("file", f"{plain['file']} ({plain['kind']}{inside})"),
        ("tensors", f"{plain['tensors']} ({kinds})"),
        ("numbers", f"{plain['numbers'] / 1e6:.2f} M, {plain['bytes'] / 1e6:.1f} MB"),
        ("family", plain["family"] or "unknown"),
    ]
    if plain["family"]:
        rows.append(("network", ", ".join(plain["names"]) or "a size of its own"))
        if not plain["names"]:
            told = (f"{k}={v}" for k, v in plain["options"].items() if k not in plain["assumed"])
            rows.append(("sizes", ", ".join(told)))
        if plain["assumed"]:
            rows.append(("assumed", ", ".join(plain["assumed"])))
        if plain["layout"] != "official":
            filled = f"; {len(plain['filled'])} tensors put back" if plain["filled"] else ""
            rows.append(("names of", f"{plain['layout']}{filled}"))
        if plain["prefix"]:
            outside = f"; {plain['outside']} tensors without it left out" * bool(plain["outside"])
            rows.append(("prefix", f"{plain['prefix']}{outside}"))
        for group, count in plain["held"].items():
            rows.append(("held", f"{count} tensors of {group}, checked and kept but never used"))
        for key in ("missing", "unexpected", "wrong_shape"):
            names = plain[key]
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                rows.append((key.replace("_", " "), f"{len(names)}: {', '.join(names[:8])}{more}"))
    rows += [("note", note) for note in plain["notes"]]
    rows.append(("verdict", plain["verdict"]))
    # Names come from the file: no control character of theirs reaches the terminal.
    return "".join(f"{name:<12}{printable(text)}\n" for name, text in rows)


def _download(request: str, target: str | None, revision: str, *, as_json: bool) -> None:
    import dataclasses

    from sightline.cli.progress import ProgressBars
    from sightline.hub import CATALOGUE, record_of, resolve

    folder = None if target is None else Path(target)
    with ProgressBars() as bars:
        path = resolve(request, target_dir=folder, revision=revision, progress=bars)
        record = record_of(path, bars) if path.is_file() else None
    licence = CATALOGUE[request].licence if request in CATALOGUE else None
    if licence is not None:
        sys.stderr.write(f"licence of these weights: {licence}\n")
    if as_json and record is not None:
        plain = {"path": str(path), **dataclasses.asdict(record)}
        sys.stdout.write(json.dumps(plain) + "\n")
    else:
        sys.stdout.write(f"{path}\n")
