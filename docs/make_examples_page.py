"""Write `examples.md`, one section for each file of `examples/`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page() -> str:
    """Return the page: title, first sentence and code of every numbered example."""
    intro = (
        "Each file runs as it is, on data that it makes; give it your own on the command line. "
        "The test suite runs all of them."
    )
    parts = ["# Examples", intro]
    for path in sorted((ROOT / "examples").glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        title = doc.split("\n")[0].rstrip(".")
        parts.append(f"## {path.stem}\n\n{title}.")
        parts.append(f"```{{literalinclude}} ../examples/{path.name}\n:language: python\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "examples.md").write_text(page(), encoding="utf-8")
