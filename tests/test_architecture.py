"""The house rules that a machine can check: import direction, no side effects, lazy start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "sightline"
LEVELS = [
    {"errors"},
    {"types", "options"},
    {"protocols", "geometry"},
    {"io", "nn"},
    {"checkpoints", "hub", "run"},
    {"metrics"},
    {"models"},
    {"backbones", "datasets", "preparation"},
    {"reconstruction"},
    {"splatting"},
    {"segmentation"},
    {"report"},
    {"training"},
    {"probing"},
    {"results"},
    {"pipeline"},
    {"app"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}


def home(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Top-level names below ``sightline`` that a file imports, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
            if node.module == "sightline":
                names = [f"sightline.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("sightline.")}
    return found - {"__version__"}


FILES = sorted(p for p in SRC.rglob("*.py") if p.parent != SRC or p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_one_way(path: Path) -> None:
    own = home(path)
    assert own in RANK, f"{own} has no place in LEVELS"
    for other in imports(path):
        assert other in RANK, f"{path.name} imports unknown sightline.{other}"
        assert other == own or RANK[other] < RANK[own], f"{own} must not import {other}"


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_lazy() -> None:
    heavy = ("torch", "numpy", "cv2", "numba", "pycolmap", "PIL", "viser")
    code = f"import sys, sightline; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom sightline.cli import main\n"
        "try:\n    main(['reconstruct', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'cv2', 'numba', 'pycolmap') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    run_python(code)


def test_imports_have_no_side_effects() -> None:
    modules = sorted(
        ".".join(("sightline", *p.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
        for p in FILES
        if p.name != "__main__.py"
    )
    code = (
        "import importlib, logging, os, random, warnings\n"
        "import numpy, torch\n"
        "import cv2, fastapi, jsonargparse, numba, scipy.spatial, PIL.Image, pycolmap\n"
        "import rich.progress\n"
        "def state():\n"
        "    return (dict(os.environ), logging.root.level, list(logging.root.handlers),\n"
        "            list(warnings.filters), torch.get_num_threads(), torch.get_default_dtype(),\n"
        "            torch.random.get_rng_state().sum().item(), random.getstate(),\n"
        "            torch.backends.cudnn.benchmark, torch.is_grad_enabled())\n"
        "before = state()\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert state() == before, name\n"
        "import sys\n"
        "extras = ('viser', 'gradio', 'pi_heif', 'gsplat', 'lightning', 'transformers', 'ray',\n"
        "          'torchvision', 'timm')\n"
        "found = [m for m in extras if m in sys.modules]\n"
        "assert not found, found\n"
    )
    run_python(code)


def test_torchvision_and_timm_are_never_imported() -> None:
    for path in [*SRC.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & {"torchvision", "timm"}, path
