"""Transfers against a server on this machine: resumed, bounded, checked, and honest about failure."""

import hashlib
import os
from pathlib import Path

import pytest

from sightline.errors import Cancelled, FileFormatError, InputError, OutputError
from sightline.hub import TransferError, fetch_url
from sightline.hub.settings import check_address
from tests.hub.server import Site

DATA = os.urandom(3_000_000)
HASH = hashlib.sha256(DATA).hexdigest()


def starts(site: Site) -> list[str | None]:
    return [headers.get("Range") for _, _, headers in site.requests]


def test_a_file_arrives_with_its_hash_and_progress(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA
    told: list[tuple[str, float, float]] = []
    target = tmp_path / "deep" / "w.pth"
    found = fetch_url(
        f"{site.url}/w.pth", target, sha256=HASH, progress=lambda *step: told.append(step)
    )
    assert found == HASH
    assert target.read_bytes() == DATA
    assert [path.name for path in target.parent.iterdir()] == ["w.pth"]
    assert ("download MB", 3.0, 3.0) in told
    assert ("check MB", 3.0, 3.0) in told


def test_a_broken_transfer_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA
    site.cut["/w.pth"] = [1_000_000, 500_000]
    fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == DATA
    assert starts(site) == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_cancelled_transfer_is_resumed_by_the_next_call(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA

    def cancel(_: str, done: float, __: float) -> None:
        if done > 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", progress=cancel)
    assert not (tmp_path / "w.pth").exists()
    have = (tmp_path / ".w.pth.part").stat().st_size
    assert 1_000_000 < have < len(DATA)
    fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", sha256=HASH)
    assert starts(site) == [None, f"bytes={have}-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = bytes(2_000_000)
    site.cut["/w.pth"] = [1_000_000] * 4
    site.ranges = False
    with pytest.raises(TransferError, match="repeat to go on|broke off"):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth")
    site.files["/w.pth"] = DATA
    site.ranges = True
    fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", sha256=HASH)
    assert (tmp_path / "w.pth").read_bytes() == DATA


def test_everything_may_have_arrived_before(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA

    def cancel(stage: str, _: float, __: float) -> None:
        if stage == "check MB":
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", progress=cancel)
    fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", sha256=HASH)
    assert starts(site)[-1] == f"bytes={len(DATA)}-"


def test_a_wrong_hash_is_refused_and_nothing_stays(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA
    with pytest.raises(FileFormatError, match=f"SHA-256 {'0' * 64}, got {HASH}"):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", sha256="0" * 64)
    assert not list(tmp_path.glob("**/*w.pth*.part"))
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize(
    ("status", "text", "tries"),
    [
        (401, r"asks for a sign-in \(401\)", 1),
        (403, r"refuses access \(403\)", 1),
        (404, r"has no such file \(404\)", 1),
        (429, "asks to wait", 1),
        (500, "answered 500", 4),
    ],
)
def test_refusals(status: int, text: str, tries: int, site: Site, tmp_path: Path) -> None:
    site.status["/w.pth"] = (status, {})
    with pytest.raises(TransferError, match=text) as error:
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth")
    assert error.value.status == status
    assert len(site.requests) == tries


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.hub.transfer.PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(TransferError, match="could not be reached"):
        fetch_url("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")


def test_sizes_are_bounded(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA
    with pytest.raises(InputError, match=r"expected at most 0.0 GB"):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", max_bytes=1000)
    assert not (tmp_path / "w.pth").exists()
    site.claimed = 1 << 55
    with pytest.raises(OutputError, match="free"):
        fetch_url(f"{site.url}/w.pth", tmp_path / "w.pth", max_bytes=1 << 60)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/w.pth", "file:///etc/passwd", "ftp://example.org/w", "https://", "x", ""],
)
def test_only_https_or_this_machine(url: str) -> None:
    with pytest.raises(InputError, match="expected an https address"):
        check_address(url)


def test_redirects_lead_to_allowed_addresses_only(site: Site, tmp_path: Path) -> None:
    site.files["/w.pth"] = DATA
    site.redirects["/here"] = f"{site.url}/w.pth"
    fetch_url(f"{site.url}/here", tmp_path / "w.pth", sha256=HASH)
    for number, bad in enumerate(("file:///etc/passwd", "http://example.org/w.pth")):
        site.redirects["/there"] = bad
        with pytest.raises((InputError, TransferError)):
            fetch_url(f"{site.url}/there", tmp_path / f"{number}.pth")
        assert not (tmp_path / f"{number}.pth").exists()
    site.redirects["/round"] = f"{site.url}/round"
    with pytest.raises(TransferError):
        fetch_url(f"{site.url}/round", tmp_path / "round.pth")


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site.files["/w.pth"] = DATA
    with pytest.raises(OutputError, match="cannot write"):
        fetch_url(f"{site.url}/w.pth", tmp_path / "file" / "w.pth")
