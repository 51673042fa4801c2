import re
from pathlib import Path

import pytest

from sightline.backbones import ALIASES, BACKBONES

GUIDE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example: str) -> None:
    exec(example, {})  # noqa: S102 - our own guide


def test_every_name_of_the_guide_exists() -> None:
    rows = GUIDE.partition("## Names")[2].partition("**Weights.**")[0]
    cells = [line.split("|")[1] for line in rows.splitlines() if line.startswith("| `")]
    names = [
        name
        for cell in cells
        for pattern in re.findall(r"`([^`:]+)`", cell)
        for name in spread(pattern)
        if not pattern.startswith("...") and not name.endswith("...")
    ]
    assert len(names) > 40
    assert set(names) <= BACKBONES.keys() | ALIASES.keys()


def spread(pattern: str) -> list[str]:
    """Return what a name with alternatives in braces stands for."""
    found = re.search(r"\{([^}]*)\}", pattern)
    if found is None:
        return [pattern]
    parts = found[1].split(",")
    return [n for part in parts for n in spread(pattern.replace(found[0], part, 1))]
