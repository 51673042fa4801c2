"""JSON that comes with data sets of strangers: bounded, checked, with errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from sightline.io.reading import bad_file

_LARGEST = float(np.finfo(np.float64).max)


class Entry:
    """A JSON object of a file, whose values are checked when they are asked for."""

    def __init__(self, path: Path, value: Any, what: str) -> None:  # noqa: ANN401
        """Take the object ``value`` that is called ``what`` in errors."""
        if not isinstance(value, dict):
            raise bad_file(path, f"{what} to be an object", type(value).__name__)
        self._path, self._value, self._what = path, value, what

    def _get(self, key: str) -> Any:  # noqa: ANN401
        if key not in self._value:
            raise bad_file(self._path, f'"{key}" in {self._what}', "none")
        return self._value[key]

    def _bad(self, key: str, wanted: str) -> Exception:
        got = repr(self._value[key])
        short = got if len(got) < 40 else f"{got[:37]}..."
        return bad_file(self._path, f'{wanted} as "{key}" of {self._what}', short)

    def has(self, key: str) -> bool:
        """Return whether there is such a value, and it is not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str:
        """Return a string."""
        if not isinstance(value := self._get(key), str):
            raise self._bad(key, "a text")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(key, "a number")
        if not abs(value) <= _LARGEST:  # whole numbers of JSON have no end
            raise self._bad(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a truth value."""
        if not isinstance(value := self._get(key), bool):
            raise self._bad(key, "true or false")
        return value

    def array(self, key: str, *shape: int) -> Float64[ndarray, "..."]:
        """Return finite numbers of a shape."""
        value = self._get(key)
        try:
            array = np.array(value, np.float64)
        except (ValueError, TypeError, OverflowError):
            array = np.zeros(0)
        if array.shape != shape or not np.isfinite(array).all():
            raise self._bad(key, "x".join(map(str, shape)) + " numbers")
        return array

    def inner(self, key: str) -> "Entry":
        """Return an object inside."""
        return Entry(self._path, self._get(key), f'"{key}" of {self._what}')

    def rows(self, key: str) -> list[Any]:
        """Return a list."""
        if not isinstance(value := self._get(key), list):
            raise self._bad(key, "a list")
        return value


def entries(path: Path, value: Any, what: str) -> list[Entry]:  # noqa: ANN401
    """Return a list of objects.

    Raises:
        FileFormatError: If it is none.
    """
    if not isinstance(value, list):
        raise bad_file(path, f"a list of {what}", type(value).__name__)
    return [Entry(path, item, f"{what} {index}") for index, item in enumerate(value)]
