from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Site, serving


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Serve files on this machine, with every cache in a temporary folder."""
    for name in ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "SIGHTLINE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SIGHTLINE_MIRRORS", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sightline.hub.transfer.PAUSE", 0.001)
    with serving() as served:
        yield served
