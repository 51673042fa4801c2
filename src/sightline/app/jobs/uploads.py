"""What users send: bounded, looked at, kept under random names, each user's apart.

A file counts as what its content says. Its own name is only ever used inside a job's ``inputs/``,
cleaned, because names carry meaning there (masks are named like their pictures).
"""

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sightline.app.jobs.kinds import FileKind
from sightline.app.jobs.request import NotFound
from sightline.errors import FileFormatError, InputError, SightlineError
from sightline.io.atomic import atomic_write_text
from sightline.io.decoding import HEAD_BYTES, MAX_PIXELS, check_pixels, image_format, open_plugin
from sightline.io.video import is_video

_ID = re.compile(r"[0-9a-f]{32}")
_NOTE = "upload.json"
_MOST_JSON = 64 << 20
_TEXT_SUFFIXES = (".json", ".txt", ".bin", ".yaml", ".yml", ".csv")
_MODEL_SUFFIXES = (".bin", ".txt")
"""Of COLMAP models, whose binary files have no mark."""
_WEIGHTS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")
_EVERY = 32 << 20
"""Bytes between two looks at the limits on a user and on the disk, while a file comes in."""
_CLEAN_EVERY = 600.0
_SCENES = {".ply": (b"ply",), ".spz": (b"\x1f\x8b", b"NGSP"), ".glb": (b"glTF",), ".splat": ()}


class TooLarge(SightlineError):
    """An upload is above a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """Bounds on what one user may send.

    Attributes:
        file_bytes: Of one file, weights included.
        owner_bytes: Of all files of a user that no job has taken.
        owner_files: How many of those.
        pixels: Of one picture.
        seconds: After which a file that no job took is removed.
        spare_bytes: That stay free on the disk.
    """

    file_bytes: int = 16 << 30
    owner_bytes: int = 64 << 30
    owner_files: int = 5000
    pixels: int = MAX_PIXELS
    seconds: float = 24 * 3600.0
    spare_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file that a user has sent."""

    id: str
    owner: str
    name: str
    """Cleaned; may have folders (``nuts/a.jpg``)."""
    kind: FileKind
    size: int
    created: float

    def as_dict(self) -> dict[str, Any]:
        """Return what its owner may see."""
        return {"id": self.id, "name": self.name, "kind": self.kind, "size": self.size}


class Uploads:
    """The store of uploads below a folder."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        """Take a folder, which is made, and remove what was left half-sent or too long."""
        self.folder = folder
        self.limits = limits
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[str, Upload] = {}
        self._cleaned = 0.0
        for place in folder.iterdir():
            try:
                note = json.loads((place / _NOTE).read_text(encoding="utf-8"))
                upload = Upload(**note)
            except (OSError, ValueError, TypeError):
                shutil.rmtree(place, ignore_errors=True)
                continue
            self._known[upload.id] = upload
        self.remove_old()

    def get(self, owner: str, id: str) -> Upload:
        """Return a user's upload.

        Raises:
            NotFound: If the user has none of that id.
        """
        upload = self._known.get(id) if _ID.fullmatch(id) else None
        if upload is None or upload.owner != owner:
            raise NotFound(f"there is no upload {id[:40]!r}; send the file first")
        return upload

    def of(self, owner: str) -> list[Upload]:
        """Return a user's uploads, oldest first."""
        return [u for u in list(self._known.values()) if u.owner == owner]

    def path(self, upload: Upload) -> Path:
        """Return where the content lies."""
        return self.folder / upload.id / "content"

    def remove(self, owner: str, id: str) -> None:
        """Remove a user's upload; jobs that took it keep it.

        Raises:
            NotFound: If the user has none of that id.
        """
        upload = self.get(owner, id)
        self._known.pop(upload.id, None)
        shutil.rmtree(self.folder / upload.id, ignore_errors=True)

    def remove_old(self) -> None:
        """Remove what no job took in time."""
        self._cleaned = time.time()
        limit = time.time() - self.limits.seconds
        for upload in list(self._known.values()):
            if upload.created < limit:
                self.remove(upload.owner, upload.id)

    def begin(self, owner: str, name: str) -> "Incoming":
        """Make room for a file that comes in; `finish` or `abort` it.

        Raises:
            InputError: If the name is none.
            TooLarge: If a limit is reached already.
        """
        clean = clean_name(name)
        if time.time() - self._cleaned > _CLEAN_EVERY:
            self.remove_old()
        self._check_room(owner, 0)
        id = secrets.token_hex(16)
        place = self.folder / id
        place.mkdir(mode=0o700)
        return Incoming(
            id=id,
            owner=owner,
            name=clean,
            file=(place / "content").open("xb"),
            check=lambda size: self._check_room(owner, size),
        )

    def finish(self, incoming: "Incoming") -> Upload:
        """Look at a file that has come in whole, and keep it.

        Raises:
            FileFormatError: If the content is of no kind known here; nothing of it stays.
            TooLarge: If it is above a limit; nothing of it stays.
        """
        place = self.folder / incoming.id
        try:
            incoming.file.close()
            self._check_room(incoming.owner, incoming.size)
            upload = Upload(
                id=incoming.id,
                owner=incoming.owner,
                name=incoming.name,
                kind=kind_of(place / "content", incoming.name, self.limits.pixels),
                size=incoming.size,
                created=time.time(),
            )
            atomic_write_text(place / _NOTE, json.dumps(asdict(upload)))
        except BaseException:
            self.abort(incoming)
            raise
        self._known[upload.id] = upload
        return upload

    def abort(self, incoming: "Incoming") -> None:
        """Remove what has come in so far."""
        incoming.file.close()
        shutil.rmtree(self.folder / incoming.id, ignore_errors=True)

    def adopt(self, owner: str, path: Path, name: str | None = None) -> Upload:
        """Take a copy of a file that already is on this machine (from the page).

        Raises:
            InputError: As `begin` and `finish`.
            TooLarge: As `begin` and `finish`.
        """
        incoming = self.begin(owner, name or path.name)
        try:
            with path.open("rb") as source:
                while block := source.read(1 << 20):
                    incoming.write(block)
        except BaseException:
            self.abort(incoming)
            raise
        return self.finish(incoming)

    def _check_room(self, owner: str, size: int) -> None:
        limits = self.limits
        if size > limits.file_bytes:
            raise TooLarge(f"a file may have up to {limits.file_bytes / 1e9:.1f} GB")
        mine = self.of(owner)
        if len(mine) >= limits.owner_files:
            raise TooLarge(f"up to {limits.owner_files} files may wait for a job; start one")
        if sum(u.size for u in mine) + size > limits.owner_bytes:
            raise TooLarge(
                f"files that wait for a job may have up to {limits.owner_bytes / 1e9:.1f} GB "
                "together; start one, or remove some"
            )
        if shutil.disk_usage(self.folder).free < limits.spare_bytes:
            raise TooLarge("the server's disk is full; free some space there")


@dataclass(slots=True, kw_only=True)
class Incoming:
    """A file while it comes in."""

    id: str
    owner: str
    name: str
    file: BinaryIO
    check: Callable[[int], None]
    """Called with the size so far; raises where a limit is reached."""
    size: int = 0
    checked: int = 0

    def write(self, block: bytes) -> None:
        """Add bytes.

        Raises:
            TooLarge: If a limit is reached.
        """
        self.size += len(block)
        if self.size - self.checked >= _EVERY:
            self.check(self.size)
            self.checked = self.size
        self.file.write(block)


def clean_name(name: str) -> str:
    """Return a relative path of plain characters, at most three folders deep.

    Raises:
        InputError: If nothing of a name is left.
    """
    parts = []
    for part in name.replace("\\", "/").split("/"):
        plain = re.sub(r"[^\w.()+-]+", "_", part, flags=re.ASCII).lstrip(".-")[-100:].lstrip(".-")
        if plain.strip("._"):
            parts.append(plain)
    if not parts:
        raise InputError("a file needs a name of letters and digits, with its suffix")
    return "/".join(parts[-4:])


def kind_of(path: Path, name: str, max_pixels: int) -> FileKind:
    """Tell what a file is by its content, and by its suffix where content has no mark.

    Raises:
        FileFormatError: If it is empty, damaged at first sight, or of no kind known here.
    """
    suffix = Path(name).suffix.lower()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise FileFormatError(f"{name} is empty; send it again")
    picture = image_format(head)
    if picture is not None:
        _check_picture(path, name, picture, max_pixels)
        return "picture"
    if suffix in _SCENES:
        marks = _SCENES[suffix]
        if marks and not head.startswith(marks):
            raise FileFormatError(f"{name} does not begin like a {suffix} file; export it again")
        return "scene"
    if suffix in _WEIGHTS and _is_weights(head, path.stat().st_size):
        return "weights"
    if suffix in _TEXT_SUFFIXES:
        _check_text(path, name, suffix)
        return "text"
    if is_video(path):
        return "video"
    raise FileFormatError(
        f"{name} is no picture, video, scene, text or weights that are read here; convert it first"
    )


def _is_weights(head: bytes, size: int) -> bool:
    """Tell whether bytes begin like a zip, a pickle, an old torch tar or a safetensors file."""
    length = int.from_bytes(head[:8], "little")
    plain = 2 <= length <= size - 8 and head[8:9] == b"{"
    return plain or head.startswith((b"PK\x03\x04", b"\x80"))


def _check_picture(path: Path, name: str, kind: str, max_pixels: int) -> None:
    if kind == "heif":
        return  # its size is only known to the decoder, which has the same limit
    try:
        with path.open("rb") as file, open_plugin(kind, file) as image:
            width, height = image.size
    except SightlineError:
        raise
    except Exception as error:
        if kind == "tiff":
            return  # rasters that only their own reader opens, which has the same limit
        raise FileFormatError(
            f"{name} is damaged ({type(error).__name__}); send it again"
        ) from error
    check_pixels(Path(name), width, height, max_pixels)


def _check_text(path: Path, name: str, suffix: str) -> None:
    size = path.stat().st_size
    if suffix in _MODEL_SUFFIXES and size <= _MOST_JSON * 8:
        return
    if size > _MOST_JSON:
        raise TooLarge(f"{name} may have up to {_MOST_JSON / 1e6:.0f} MB")
    try:
        text = path.read_text(encoding="utf-8")
        if suffix == ".json":
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{name} is not readable as {suffix[1:]}; write it again") from error
