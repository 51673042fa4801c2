"""Write tensors in one step.

Libraries tell of a full disk in words of their own; here it is an `OutputError` like any other.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sightline.io.atomic import atomic_path

_CODE = re.compile(r"(?:os error |code: )(\d+)")


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors.

    Args:
        path: The file.
        tensors: Contiguous, on the CPU; no two share memory.
        metadata: Texts for the header.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_path(path) as tmp:
        tmp.touch()
        mode = tmp.stat().st_mode & 0o777
        try:
            save_file(dict(tensors), tmp, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            found = _CODE.search(str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        tmp.chmod(mode)  # the library gives its files to their owner alone


def write_torch(path: Path, content: object) -> None:
    """Write what ``torch.save`` can write; the same content gives the same bytes.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        # By a path, torch would write its temporary name into the file.
        told = _Told(file)
        try:
            torch.save(content, cast("IO[bytes]", told))
        except RuntimeError as error:
            if told.error is None:
                raise
            raise told.error from error


class _Told:
    """A file that remembers what went wrong: torch only says that something did."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
