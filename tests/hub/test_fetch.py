"""From names to files: catalogue, repositories, URLs, mirrors, caches, gates and no network."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.hub import CATALOGUE, Entry, cached, record_of, resolve
from tests.hub.server import Site

DATA = b"weights" * 1000
HASH = hashlib.sha256(DATA).hexdigest()
REPO = "/owner/name/resolve/main"


@pytest.fixture
def entry(site: Site, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Put weights with two sources into the catalogue."""
    made = Entry(
        name="thing",
        family="dinov2",
        network="thing",
        parameters=1000,
        sources=(f"{site.url}/a/w.pth", f"{site.url}/b/w.pth"),
        licence="Apache-2.0",
    )
    monkeypatch.setitem(CATALOGUE, "thing", made)
    return made


def paths(site: Site) -> list[str]:
    return [path for _, path, _ in site.requests]


def test_a_name_is_fetched_once_and_recorded(site: Site, entry: Entry) -> None:
    site.files["/a/w.pth"] = DATA
    assert cached("thing") is None
    path = resolve("thing")
    assert path.read_bytes() == DATA
    record = record_of(path)
    assert (record.sha256, record.licence, record.bytes) == (HASH, "Apache-2.0", len(DATA))
    assert record.source == entry.sources[0]
    assert json.loads(path.with_name("w.pth.sightline.json").read_text())["sha256"] == HASH
    site.requests.clear()
    assert resolve("thing") == path == cached("thing")
    assert site.requests == []


def test_every_source_is_tried_in_turn(
    site: Site, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_MIRRORS", f"{site.url}/m1, {site.url}/m2")
    host = site.url.removeprefix("http://")
    site.status["/a/w.pth"] = (404, {})
    site.files[f"/m2/{host}/b/w.pth"] = DATA
    assert resolve(entry.name).read_bytes() == DATA
    wanted = ["/a/w.pth", f"/m1/{host}/a/w.pth", f"/m2/{host}/a/w.pth"]
    wanted += ["/b/w.pth", f"/m1/{host}/b/w.pth", f"/m2/{host}/b/w.pth"]
    assert paths(site) == wanted


def test_when_no_source_answers_all_are_named(site: Site, entry: Entry) -> None:
    with pytest.raises(CheckpointError) as error:
        resolve("thing")
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert all(source in text for source in entry.sources)
    assert "SIGHTLINE_MIRRORS" in text


def test_a_target_folder_and_local_files(site: Site, entry: Entry, tmp_path: Path) -> None:
    site.files["/a/w.pth"] = DATA
    path = resolve(entry.name, target_dir=tmp_path / "mine")
    assert path == tmp_path / "mine" / "w.pth"
    assert cached("thing") is None
    assert resolve(path) == path
    assert resolve(str(path.parent)) == path.parent


@pytest.mark.parametrize("variable", ["SIGHTLINE_OFFLINE", "HF_HUB_OFFLINE"])
def test_without_network(
    variable: str, site: Site, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    for request in (entry.name, "owner/name/model.safetensors", f"{site.url}/w.pth"):
        with pytest.raises(CheckpointError, match=f"{variable} switches the network off") as error:
            resolve(request)
        assert "--target-dir" in str(error.value)
    assert site.requests == []
    monkeypatch.setenv(variable, "0")
    site.files["/a/w.pth"] = DATA
    path = resolve("thing")
    monkeypatch.setenv(variable, "1")
    assert resolve("thing") == path


def test_a_file_of_a_repository(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    site.files[f"{REPO}/sub/model.safetensors"] = DATA
    told: list[tuple[str, float, float]] = []
    request = "owner/name/sub/model.safetensors"
    path = resolve(request, progress=lambda *step: told.append(step))
    assert path.read_bytes() == DATA
    assert tmp_path / "hf" in path.parents
    assert ("download MB", 0.007, 0.007) in told
    assert record_of(path).sha256 == HASH
    site.requests.clear()
    assert resolve(request) == path
    assert site.requests == []
    assert resolve(request, target_dir=tmp_path / "mine").read_bytes() == DATA
    assert (tmp_path / "mine" / "sub" / "model.safetensors").is_file()


def test_a_sharded_set_of_a_repository(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    table = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    site.files[f"{REPO}/model.safetensors.index.json"] = json.dumps(table).encode()
    site.files |= {f"{REPO}/{n}.safetensors": DATA for n in (1, 2)}
    path = resolve("owner/name/model.safetensors.index.json")
    assert (path.parent / "2.safetensors").read_bytes() == DATA
    table["weight_map"]["b"] = "../../secret"
    site.files["/owner/bad/resolve/main/x.index.json"] = json.dumps(table).encode()
    with pytest.raises(CheckpointError, match="name shards beside it"):
        resolve("owner/bad/x.index.json")


def test_mirrors_of_the_hub_never_see_the_token(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{site.url}/down")
    monkeypatch.setenv("SIGHTLINE_MIRRORS", f"{site.url}/mirror")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    site.files[f"/mirror{REPO}/w.pt"] = DATA
    assert resolve("owner/name/w.pt").read_bytes() == DATA
    for _, path, headers in site.requests:
        sent = {name.lower(): value for name, value in headers.items()}
        assert ("authorization" in sent) == path.startswith("/down"), path


def test_gated_weights_are_answered_with_the_steps(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    repo = "facebook/dinov3-vits16-pretrain-lvd1689m"
    address = f"/{repo}/resolve/main/model.safetensors"
    for status, code in ((401, "GatedRepo"), (403, "GatedRepo"), (401, "RepoNotFound")):
        site.status[address] = (status, {"X-Error-Code": code})
        with pytest.raises(CheckpointError) as error:
            resolve("dinov3_vits16")
        text = str(error.value)
        assert f"open https://huggingface.co/{repo}" in text
        assert "https://huggingface.co/settings/tokens" in text
        assert "HF_TOKEN" in text
        assert len(text.splitlines()) == 1
    with pytest.raises(CheckpointError, match="no public address: ask for access at https://ai"):
        resolve("dinov3_vitl16plus")


def test_repositories_that_lack_things(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    with pytest.raises(CheckpointError, match=r"owner/name at http.* has no file none.pt"):
        resolve("owner/name/none.pt")
    site.status[f"{REPO}/none.pt"] = (401, {"X-Error-Code": "RepoNotFound"})
    with pytest.raises(CheckpointError, match="private or does not exist"):
        resolve("owner/name/none.pt")
    site.status[f"{REPO}/none.pt"] = (451, {})
    with pytest.raises(CheckpointError, match="no source gave owner/name/none.pt"):
        resolve("owner/name/none.pt")
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    with pytest.raises(InputError, match="expected an https address"):
        resolve("owner/name/none.pt")


@pytest.mark.parametrize("request_", ["./none.pth", "none.pth", "a/b.safetensors", "a/../b/c.pth"])
def test_files_that_do_not_exist(request_: str, tmp_path: Path, site: Site) -> None:
    with pytest.raises(InputError, match="is none"):
        resolve(request_)
    with pytest.raises(InputError, match="is none"):
        resolve(tmp_path / "none")
    assert site.requests == []


def test_unknown_names_have_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="closest: .*dinov2_vits14"):
        resolve("dinov2_vits15")
    with pytest.raises(InputError, match="drawn weights.*give it as the backbone"):
        resolve("random:dinov2_vits14")


def test_the_catalogue_is_sound() -> None:
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert entry.licence
        assert entry.parameters > 1_000_000
        assert entry.sources or entry.gated
        for source in entry.sources:
            assert source.startswith(("https://", "hf:"))
            assert " " not in source
        assert dataclasses.asdict(entry)["gated"] is None or "https://" in str(entry.gated)
