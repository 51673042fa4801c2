"""Write `api_surface.json`: the public names of the modules that the reference describes.

Names and parameters may be added; `tests/test_api_surface.py` fails when one goes away.
"""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
FILE = ROOT / "api_surface.json"


def modules() -> list[str]:
    """Return the modules that the pages in `docs/packages` describe."""
    pages = sorted((ROOT / "docs" / "packages").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return sorted({"sightline", *re.findall(r"automodule:: ([\w.]+)", text)})


def surface() -> dict[str, list[str]]:
    """Return ``module.name`` -> its parameters (functions), fields and methods (classes)."""
    found: dict[str, list[str]] = {}
    for name in modules():
        module = importlib.import_module(name)
        for public in _public(module):
            found[f"{name}.{public}"] = _parts(getattr(module, public))
    return dict(sorted(found.items()))


def _public(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return sorted(set(module.__all__))
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return sorted(own)


def _parts(value: object) -> list[str]:
    if inspect.isclass(value):
        fields = (
            [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        )
        methods = [n for n, v in vars(value).items() if not n.startswith("_") and callable(v)]
        return sorted({*fields, *methods})
    if inspect.isroutine(value):
        return list(inspect.signature(value).parameters)
    return []


if __name__ == "__main__":
    FILE.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")  # noqa: T201
