"""Fetch one file over https: resumed where it stopped, bounded in size, hashed, renamed when whole."""

import contextlib
import email.message
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sightline import __version__
from sightline.errors import FileFormatError, InputError, OutputError, SightlineError
from sightline.hub.settings import check_address
from sightline.io.atomic import atomic_write_text

Progress = Callable[[str, float, float], None]
"""Called as ``progress(stage, done, total)`` in megabytes; may raise `errors.Cancelled`."""

DOWNLOAD, CHECK = "download MB", "check MB"
"""The stages that progress is told of."""

MAX_BYTES = 64 << 30
"""The largest published file (DINOv3 ViT-7B) has 27 GB."""

CHUNK = 1 << 20
TIMEOUT = 30.0
ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""


class TransferError(SightlineError):
    """A source gave no file; another may.

    Attributes:
        status: The answer's status, 0 where there was none.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        """Keep text and status."""
        super().__init__(text)
        self.status = status


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,  # noqa: ANN401
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_url(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Fetch ``url`` into ``target`` and return its SHA-256.

    What has arrived is kept beside the target as ``.NAME.part``, also when the transfer breaks off
    or is cancelled; the next call goes on from there, unless the file has changed at its source.

    Args:
        url: https, or http on this machine; redirects may lead to such addresses only.
        target: The file to write; it appears only when it is whole.
        sha256: What the file has to hash to.
        progress: Told megabytes, under the stages `DOWNLOAD` and `CHECK`.
        max_bytes: Larger files are refused.

    Raises:
        InputError: The address is not allowed, or the file too large.
        TransferError: The source gives no file; the text says why.
        FileFormatError: The file hashes to something else; it is removed.
        OutputError: The file cannot be written.
    """
    check_address(url)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            _fetch_part(url, part, progress, max_bytes)
            found = hash_file(part, progress)
            if sha256 is not None and found != sha256:
                part.unlink()
                msg = f"expected {url} to have the SHA-256 {sha256}, got {found}; it was removed"
                raise FileFormatError(msg)
            part.replace(target)
            _stamp(part).unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        msg = f"cannot write {target}: {reason}; choose another folder or free some space"
        raise OutputError(msg) from error
    return found


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(8 * CHUNK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(CHECK, done / 1e6, size / 1e6)
    return digest.hexdigest()


def _fetch_part(url: str, part: Path, progress: Progress | None, max_bytes: int) -> None:
    """Bring the part file to its full size, in several attempts if need be."""
    for attempt in range(1, ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _go_on(url, part, progress, max_bytes)
        except (http.client.HTTPException, TransferError, TimeoutError, ConnectionError) as error:
            status = error.status if isinstance(error, TransferError) else 0
            moved = part.exists() and part.stat().st_size > before
            if 400 <= status < 500 or (attempt == ATTEMPTS and not moved):
                raise _explained(url, error) from error
            if attempt == ATTEMPTS:
                msg = f"{url} broke off {ATTEMPTS} times; repeat to go on from where it stopped"
                raise TransferError(msg) from error
            time.sleep(PAUSE * 2 ** (attempt - 1))
        else:
            return


def _go_on(url: str, part: Path, progress: Progress | None, max_bytes: int) -> None:
    """Ask for what is missing and append it."""
    have, stamp = _resumable(part, url)
    headers = {"User-Agent": f"sightline/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": stamp}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_Redirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have and _total(error.headers) == have:
            return  # everything had arrived before
        if error.code == 416:
            part.unlink(missing_ok=True)
            raise TransferError(f"{url} changed at its source", 500) from error
        raise TransferError(f"{url} answered {error.code} {error.reason}", error.code) from error
    except urllib.error.URLError as error:
        raise TransferError(f"{url} could not be reached ({error.reason})") from error
    with answer:
        resumed = answer.status == 206 and _start(answer.headers) == have
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else 0
        _check_room(url, part, total, have, max_bytes)
        known = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        atomic_write_text(_stamp(part), json.dumps({"url": url, "stamp": known}))
        with part.open("ab" if resumed else "wb") as file:
            _copy(answer, file, have, total or max_bytes, total, progress)
    if total and part.stat().st_size < total:
        msg = f"{url} broke off"
        raise ConnectionResetError(msg)


def _copy(
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    limit: int,
    total: int,
    progress: Progress | None,
) -> None:
    while block := answer.read(CHUNK):
        done += len(block)
        if done > limit:
            msg = f"expected at most {limit} bytes, but the source sends more"
            raise InputError(msg)
        file.write(block)
        if progress is not None:
            file.flush()  # a cancelled transfer keeps what has arrived
            progress(DOWNLOAD, done / 1e6, (total or done) / 1e6)


def _check_room(url: str, part: Path, total: int, have: int, max_bytes: int) -> None:
    if total > max_bytes:
        msg = f"expected at most {max_bytes / 1e9:.1f} GB, but {url} has {total / 1e9:.1f} GB"
        raise InputError(msg)
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        msg = (
            f"{url} needs {(total - have) / 1e9:.1f} GB, but {part.parent} has {free / 1e9:.1f} GB "
            "free; choose another folder or free some space"
        )
        raise OutputError(msg)


def _explained(url: str, error: Exception) -> TransferError:
    status = error.status if isinstance(error, TransferError) else 0
    reasons = {
        401: "asks for a sign-in",
        403: "refuses access",
        404: "has no such file",
        410: "has no such file any more",
        429: "asks to wait; try again later",
    }
    if status in reasons:
        return TransferError(f"{url} {reasons[status]} ({status})", status)
    if isinstance(error, TransferError):
        return error
    return TransferError(f"{url} broke off ({type(error).__name__})")


def _stamp(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resumable(part: Path, url: str) -> tuple[int, str]:
    """Return how much has arrived of the same file, and what identifies it at its source."""
    try:
        known = json.loads(_stamp(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    # A weak tag does not promise the same bytes.
    same = isinstance(known, dict) and known.get("url") == url
    stamp = str(known.get("stamp") or "") if same else ""
    return (0, "") if not stamp or stamp.startswith("W/") else (size, stamp)


def _start(headers: email.message.Message) -> int | None:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total(headers: email.message.Message) -> int | None:
    found = re.match(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep a second process from writing the same part file."""
    if os.name == "nt":  # no advisory locks there
        yield
        return
    import fcntl

    lock = part.with_name(f"{part.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another process is fetching {part.name[1:-5]} into {part.parent}; wait for it"
            raise InputError(msg) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
