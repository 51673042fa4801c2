"""Public names and their parameters only grow."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_nothing_public_went_away_and_all_is_listed() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_api_surface import FILE, surface
    finally:
        sys.path.pop(0)
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    now = surface()
    gone = {name for name in listed if name not in now}
    assert not gone, f"public names went away: {sorted(gone)}"
    lost = {n: sorted(set(parts) - set(now[n])) for n, parts in listed.items()}
    assert not any(lost.values()), f"parameters or members went away: {lost}"
    assert now == listed, "something new is public: run python docs/make_api_surface.py"
