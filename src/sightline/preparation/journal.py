"""What is finished already, so that a killed run goes on where it stopped.

One JSON object a line. The first says what the folder is made of; the others name a finished source
by a digest of all that decided its outcome. A torn last line, as a kill leaves it, is ignored.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sightline.errors import InputError, OutputError
from sightline.io.manifest import Record
from sightline.preparation.job import Item, Made

JOURNAL = ".prepare.jsonl"
_FORMAT = "sightline-prepare"
_MAX_LINE = 256 << 20


class Journal:
    """The journal of one output folder; use it in a ``with`` statement."""

    def __init__(self, output: Path, header: Mapping[str, Any]) -> None:
        """Read what is there.

        Args:
            output: The folder; its journal may be missing.
            header: Inputs and options.

        Raises:
            InputError: If the folder holds something else, or was made from something else.
        """
        self._path = output / JOURNAL
        self._header = {"format": _FORMAT, **json.loads(json.dumps(header))}
        self._file: IO[bytes] | None = None
        self._places: dict[str, int] = {}
        self.ranges: dict[str, Any] = {}
        self.added: set[str] = set()
        """Keys that were added since it was opened."""
        if not self._path.exists():
            if output.is_dir() and any(output.iterdir()):
                raise InputError(
                    f"{output} is not empty and holds no prepared data; choose another folder "
                    "with -o"
                )
            return
        self._read(output)

    def __enter__(self) -> "Journal":  # noqa: PYI034
        """Open the file for what comes."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torn = _is_torn(self._path)
            self._file = self._path.open("a+b")
            try:
                _lock(self._file, self._path.parent)
            except InputError:
                self._file.close()
                raise
            if torn:
                self._file.write(b"\n")
            if self._file.seek(0, os.SEEK_END) == 0:
                self._add(self._header)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"cannot write {self._path}: {reason}; choose another -o") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def add(self, key: str, made: Made) -> None:
        """Note that a source is finished."""
        items = [
            {
                "record": {k: v for k, v in asdict(item.record).items() if v is not None},
                "files": list(item.files),
                "sums": list(item.sums),
                "look": f"{item.look:016x}",
                "sharpness": item.sharpness,
            }
            for item in made.items
        ]
        self._places[key] = self._add({"key": key, "items": items, "notes": list(made.notes)})
        self.added.add(key)

    def __contains__(self, key: str) -> bool:
        """Say whether a source is finished."""
        return key in self._places

    def read(self, key: str) -> Made:
        """Return what became of a finished source.

        Read from the file, so that a million records need not be held.
        """
        assert self._file is not None
        self._file.seek(self._places[key])
        return _made(json.loads(self._file.readline()))

    def add_ranges(self, key: str, ranges: Mapping[str, Any]) -> None:
        """Keep what was measured on pictures of all sequences."""
        self.ranges = {"key": key, "ranges": dict(ranges)}
        self._add({"ranges_of": key, "ranges": dict(ranges)})

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all finished sources, former ones included."""
        return tuple(self._places)

    def _add(self, row: Mapping[str, Any]) -> int:
        """Write a line; return where it begins."""
        assert self._file is not None
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"cannot write {self._path}: {reason}; free some space") from error
        return place

    def _read(self, output: Path) -> None:
        with self._path.open("rb") as file:
            first, place = True, 0
            while line := file.readline(_MAX_LINE):
                try:
                    row = json.loads(line)
                    if first:
                        self._compare(output, row)
                        first = False
                    elif "key" in row:
                        _made(row)  # a damaged one counts as missing
                        self._places[row["key"]] = place
                    elif "ranges_of" in row:
                        self.ranges = {"key": row["ranges_of"], "ranges": row["ranges"]}
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    pass  # a torn line: that source is prepared again
                place += len(line)

    def _compare(self, output: Path, found: Mapping[str, Any]) -> None:
        if found == self._header:
            return
        before, now = (row.get("options", {}) for row in (found, self._header))
        changed = [name for name in now if before.get(name) != now[name]]
        what = (
            f"--{changed[0].replace('_', '-')} {before.get(changed[0])}, now {now[changed[0]]}"
            if changed
            else f"other inputs ({', '.join(map(str, found.get('inputs', []))) or 'unknown'})"
        )
        raise InputError(
            f"{output} was prepared with {what}; choose another -o, or start it again with "
            "--overwrite"
        )


def _is_torn(path: Path) -> bool:
    """Say whether a file's last line has no end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _lock(file: IO[bytes], output: Path) -> None:
    """Refuse a folder that another process writes to; the system drops the lock with the process.

    Raises:
        InputError: If it does.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another sightline prepare is writing to {output}; wait for it, or choose another -o"
        ) from error
    except OSError:
        return  # some network file systems have none


def _made(row: Mapping[str, Any]) -> Made:
    names = {f.name for f in fields(Record)}
    return Made(
        items=tuple(
            Item(
                record=Record(**{k: v for k, v in item["record"].items() if k in names}),
                files=tuple(item["files"]),
                sums=tuple(item.get("sums", ())),
                look=int(item["look"], 16),
                sharpness=item["sharpness"],
            )
            for item in row["items"]
        ),
        notes=tuple(row["notes"]),
    )
