"""From a name to a file: the cache first, then every source in turn."""

import contextlib
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from sightline.errors import CheckpointError, InputError, OutputError, UnknownNameError
from sightline.hub import settings
from sightline.hub.catalogue import CATALOGUE, Entry
from sightline.hub.transfer import Progress, TransferError, fetch_url, hash_file
from sightline.io.atomic import atomic_write_text

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".index.json")
"""How weights files end."""

MAX_SHARDS = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a file of weights; kept beside it as ``NAME.sightline.json``.

    Attributes:
        source: Where it came from.
        sha256: Of its bytes.
        licence: Of the weights, None where it is not known.
        bytes: Its size.
        fetched: When, in UTC.
    """

    source: str
    sha256: str
    licence: str | None
    bytes: int
    fetched: str


def resolve(
    request: str | Path,
    *,
    target_dir: str | Path | None = None,
    revision: str = "main",
    progress: Progress | None = None,
) -> Path:
    """Return the local file of some weights, fetched if it is not there yet.

    Args:
        request: A local file or folder, a name of the `CATALOGUE`, ``REPO_ID/FILENAME`` of the
            Hugging Face hub, or a URL.
        target_dir: Put the file there instead of into the cache.
        revision: Branch, tag or commit of a repository.
        progress: Told megabytes.

    Raises:
        InputError: There is no such file, or the address is not allowed.
        UnknownNameError: There is no such name.
        CheckpointError: The weights cannot be fetched; the text says what to do.
    """
    folder = None if target_dir is None else Path(target_dir).expanduser()
    text = str(request)
    if text in CATALOGUE:
        entry = CATALOGUE[text]
        return _from_sources(entry.name, entry.sources, entry, folder, revision, progress)
    if "://" in text:
        source = _hub_source(text) or settings.check_address(text)
        return _from_sources(text, (source,), None, folder, revision, progress)
    local = Path(request).expanduser()
    if local.exists():
        return local
    if isinstance(request, str) and _is_hub_name(text):
        return _from_sources(text, (f"hf:{text}",), None, folder, revision, progress)
    if isinstance(request, Path) or text.endswith(SUFFIXES) or os.sep in text:
        msg = f"expected a weights file, a name, a URL or REPO_ID/FILENAME, but {text} is none"
        raise InputError(msg)
    if text.startswith("random:"):
        raise InputError(
            f"{text} is the name of a backbone with drawn weights, not of a weights file; give it "
            "as the backbone"
        )
    raise UnknownNameError("published weights", text, CATALOGUE, "sightline models list")


def cached(name: str) -> Path | None:
    """Return the file of published weights where it is in a cache, without any request."""
    for source in CATALOGUE[name].sources:
        found = _cached(source, "main", None)
        if found is not None:
            return found
    return None


def record_of(path: Path, progress: Progress | None = None) -> Record:
    """Return what is known of a weights file, hashing it where nothing was recorded."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(_record_path(path).read_text(encoding="utf-8"))
        if kept["bytes"] == path.stat().st_size:
            return Record(**kept)
    return _record(path, str(path), None, hash_file(path, progress))


def _from_sources(
    name: str,
    sources: Sequence[str],
    entry: Entry | None,
    folder: Path | None,
    revision: str,
    progress: Progress | None,
) -> Path:
    """Return the first file that a cache or a source gives."""
    for source in sources:
        found = _cached(source, revision, folder)
        if found is not None:
            return found
    if not sources:
        raise CheckpointError(_why(name, entry, []))
    off = settings.offline()
    if off is not None:
        msg = (
            f"{name} is not on this machine and {off} switches the network off; fetch it elsewhere "
            f"with `sightline models download {name} --target-dir DIR` and give the file's path, "
            f"or unset {off}"
        )
        raise CheckpointError(msg)
    failures: list[tuple[str, int]] = []
    for source in sources:
        for place in _places(source):
            try:
                return _get(place, source, entry, folder, revision, progress)
            except TransferError as error:
                failures.append((str(error), error.status))
    raise CheckpointError(_why(name, entry, failures))


def _why(name: str, entry: Entry | None, failures: list[tuple[str, int]]) -> str:
    """Say why no source gave the file, and the steps that would help."""
    page = entry.gated if entry is not None else None
    if page is not None and not failures:
        return (
            f"the weights of {name} have no public address: ask for access at {page}, fetch the "
            "file with the link you are sent, and give its path"
        )
    denied = any(status in {401, 403} for _, status in failures)
    if page is not None and denied:
        return (
            f"the weights of {name} are gated: open {page}, sign in and accept the terms; make a "
            f"token with read access at {settings.HUGGINGFACE}/settings/tokens; set it as HF_TOKEN "
            "(or run `hf auth login`) and repeat, or give the path of a file you have"
        )
    told = "; ".join(text for text, _ in failures)
    remedy = (
        "if it is private or gated, accept its terms in the browser and set HF_TOKEN"
        if denied
        else "check the name and the connection, set SIGHTLINE_MIRRORS, or give a file's path"
    )
    return f"no source gave {name}: {told}; {remedy}"


def _get(
    place: str,
    source: str,
    entry: Entry | None,
    folder: Path | None,
    revision: str,
    progress: Progress | None,
) -> Path:
    licence = entry.licence if entry is not None else None
    if source.startswith("hf:"):
        path = _get_hub(place, source, folder, revision, progress)
        if path.name.endswith(".index.json"):
            _get_shards(path, place, source, folder, revision, progress)
        sha256 = hash_file(path, progress)
    else:
        path = _url_target(source, folder)
        wanted = entry.sha256 if entry is not None else None
        sha256 = fetch_url(place, path, sha256=wanted, progress=progress)
    record = _record(path, source, licence, sha256)
    # A cache may be shared and read-only; then the hash is computed anew whenever it is wanted.
    with contextlib.suppress(OutputError, OSError):
        atomic_write_text(_record_path(path), json.dumps(dataclasses.asdict(record), indent=1))
    return path


def _get_hub(
    place: str, source: str, folder: Path | None, revision: str, progress: Progress | None
) -> Path:
    """Fetch a file of a repository through huggingface_hub, which resumes and caches."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from sightline.hub.bar import bar_class

    repo, file = _split(source)
    try:
        return Path(
            hf_hub_download(
                repo,
                file,
                revision=revision,
                cache_dir=settings.hub_cache(),
                local_dir=folder,
                endpoint=place,
                # The user's token is for the hub; a mirror has no business with it.
                token=None if place == settings.endpoint() else False,
                tqdm_class=bar_class(progress),
            )
        )
    except GatedRepoError as error:
        raise TransferError(f"{repo} at {place} is gated", 403) from error
    except RevisionNotFoundError as error:
        raise TransferError(f"{repo} at {place} has no revision {revision}", 404) from error
    except RepositoryNotFoundError as error:
        raise TransferError(f"{repo} is private or does not exist at {place}", 401) from error
    except LocalEntryNotFoundError as error:
        cause = type(error.__cause__ or error).__name__
        raise TransferError(f"{place} could not be reached or answers wrongly ({cause})") from error
    except EntryNotFoundError as error:
        raise TransferError(f"{repo} at {place} has no file {file}", 404) from error
    except HFValidationError as error:
        msg = f"expected REPO_ID/FILENAME such as owner/name/model.safetensors, got {source[3:]}"
        raise InputError(msg) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        raise TransferError(f"{repo} at {place} answered {status}", status) from error
    except OSError as error:
        raise TransferError(f"{repo} at {place} failed ({str(error)[:200]})") from error


def _get_shards(
    index: Path,
    place: str,
    source: str,
    folder: Path | None,
    revision: str,
    progress: Progress | None,
) -> None:
    """Fetch the files that an index lists, into the same folder."""
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted({str(name) for name in table.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"expected {source[3:]} to map names of tensors to files (weight_map)"
        raise CheckpointError(msg) from error
    if len(names) > MAX_SHARDS or any(PurePosixPath(n).name != n or "\\" in n for n in names):
        msg = f"expected {source[3:]} to name shards beside it, got {names[:1]}"
        raise CheckpointError(msg)
    home = source.rpartition("/")[0]
    for name in names:
        _get_hub(place, f"{home}/{name}", folder, revision, progress)


def _places(source: str) -> list[str]:
    """Return the addresses to try for a source: its own, then those of the mirrors."""
    if source.startswith("hf:"):
        return [settings.endpoint(), *settings.mirrors()]
    parts = urlsplit(source)
    return [source, *(f"{base}/{parts.netloc}{parts.path}" for base in settings.mirrors())]


def _cached(source: str, revision: str, folder: Path | None) -> Path | None:
    if not source.startswith("hf:"):
        path = _url_target(source, folder)
        return path if path.is_file() else None
    repo, file = _split(source)
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            repo, file, cache_dir=settings.hub_cache(), revision=revision
        )
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def _url_target(source: str, folder: Path | None) -> Path:
    """Return where the file of a URL is kept; in the cache its host and path are kept too."""
    parts = urlsplit(source)
    names = [n for n in PurePosixPath(unquote(parts.path)).parts if n not in {"/", "..", "."}]
    safe = [re.sub(r"[^\w.+=@-]", "_", name)[:150] for name in names]
    if not safe or not safe[-1].strip("._"):
        msg = f"expected the URL of a file, got {source}"
        raise InputError(msg)
    if folder is not None:
        return folder / safe[-1]
    host = re.sub(r"[^\w.-]", "_", parts.netloc)
    return settings.cache_folder().joinpath("weights", host, *safe)


def _hub_source(url: str) -> str | None:
    """Return the source of a page or file address of the hub, or None for any other URL."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname not in {"huggingface.co", "hf.co"}:
        return None
    found = re.fullmatch(r"/([^/]+/[^/]+)/(?:resolve|blob)/main/(.+)", unquote(parts.path))
    return f"hf:{found[1]}/{found[2]}" if found else None


def _is_hub_name(text: str) -> bool:
    parts = text.split("/")
    return len(parts) >= 3 and all(p not in {"", ".", ".."} for p in parts) and "\\" not in text


def _split(source: str) -> tuple[str, str]:
    owner, name, file = source.removeprefix("hf:").split("/", 2)
    return f"{owner}/{name}", file


def _record(path: Path, source: str, licence: str | None, sha256: str) -> Record:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    size = path.stat().st_size
    return Record(source=source, sha256=sha256, licence=licence, bytes=size, fetched=now)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sightline.json")
