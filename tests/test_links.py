"""Links inside README and docs lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing, f"{page.name}: {missing}"


def test_every_package_has_its_page() -> None:
    folder = ROOT / "docs" / "packages"
    packages = {p.parent.name for p in (ROOT / "src" / "sightline").glob("*/__init__.py")}
    pages = {p.stem for p in folder.glob("*.md")} - {"index"}
    assert packages <= pages, f"packages without a page: {sorted(packages - pages)}"
    listed = set((folder / "index.md").read_text(encoding="utf-8").split())
    assert pages <= listed, f"pages that nothing leads to: {sorted(pages - listed)}"
