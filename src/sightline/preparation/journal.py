"""What is finished already, so that a killed run goes on where it stopped.

One JSON object a line. The first says what the folder is made of; the others name a finished source
by a digest of all that decided its outcome. A torn last line, as a kill leaves it, is ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from sightline.errors import InputError, OutputError
from sightline.io.manifest import Record
from sightline.preparation.process import Item, Made

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
        self._file: TextIO | None = None
        self.made: dict[str, Made] = {}
        self.ranges: dict[str, Any] = {}
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
            torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
            self._file = self._path.open("a", encoding="utf-8")
            _lock(self._file, self._path.parent)
            if torn:
                self._file.write("\n")
            if self._file.tell() == 0:
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
                "look": f"{item.look:016x}",
                "sharpness": item.sharpness,
            }
            for item in made.items
        ]
        self.made[key] = made
        self._add({"key": key, "items": items, "notes": list(made.notes)})

    def add_ranges(self, key: str, ranges: Mapping[str, Any]) -> None:
        """Keep what was measured on pictures of all sequences."""
        self.ranges = {"key": key, "ranges": dict(ranges)}
        self._add({"ranges_of": key, "ranges": dict(ranges)})

    def files(self) -> set[str]:
        """Return every file that was ever written, relative to the output."""
        return {file for made in self.made.values() for item in made.items for file in item.files}

    def _add(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"cannot write {self._path}: {reason}; free some space") from error

    def _read(self, output: Path) -> None:
        with self._path.open(encoding="utf-8", errors="replace") as file:
            first = True
            while line := file.readline(_MAX_LINE):
                try:
                    row = json.loads(line)
                    if first:
                        self._compare(output, row)
                        first = False
                    elif "key" in row:
                        self.made[row["key"]] = _made(row)
                    elif "ranges_of" in row:
                        self.ranges = {"key": row["ranges_of"], "ranges": row["ranges"]}
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    continue  # a torn line: that source is prepared again

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


def _lock(file: TextIO, output: Path) -> None:
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
                look=int(item["look"], 16),
                sharpness=item["sharpness"],
            )
            for item in row["items"]
        ),
        notes=tuple(row["notes"]),
    )
