"""Shared by all tests: fixed seeds, two threads, where the real photos and golden values are."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
# No test reaches for the network or for weights that this machine happens to have.
os.environ |= {"SIGHTLINE_OFFLINE": "1", "SIGHTLINE_CACHE": "no-cache", "HF_HUB_CACHE": "no-cache"}
# huggingface_hub would read it once, at import, and then refuse the tests' own server too.
os.environ.pop("HF_HUB_OFFLINE", None)

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("sightline", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("sightline")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        action="append",
        type=Path,
        default=None,
        help="folder of golden families; may be given several times",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos beside the checkout; their licences keep them out of the repository."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("the shared photo sets are not beside this checkout")
    return data
