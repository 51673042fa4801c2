"""Errors that users meet: one sentence with what was expected, what came, and what to do.

Libraries raise; only the command line and the app catch, print one line and choose the exit code.
"""

import difflib
from collections.abc import Iterable

_MOST_NAMES = 12  # that one sentence can hold


class SightlineError(Exception):
    """Base of every error whose text is meant for the user.

    Attributes:
        exit_code: What the command line exits with (``contracts``: 1 failed, 2 wrong usage or
            input, 3 cancelled, 4 out of memory).
    """

    exit_code = 1


class InputError(SightlineError):
    """Something the user gave is missing, unreadable or contradictory."""

    exit_code = 2


class ShapeError(InputError, ValueError):
    """An array has the wrong shape."""


class FileFormatError(InputError, ValueError):
    """A file is damaged, truncated, hostile, or not of the format it claims."""


class CheckpointError(InputError):
    """A checkpoint does not fit the model."""


class UnknownNameError(InputError, KeyError):
    """A name is not in one of our tables.

    >>> print(UnknownNameError("path", "orbti", ["orbit", "spiral"]))
    no path "orbti"; closest: orbit
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], see: str = "") -> None:
        """Build the sentence ``no KIND "NAME"; closest: ...``."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        shown = near if len(near) <= _MOST_NAMES else [*near[:_MOST_NAMES], f"{len(near)} in all"]
        hint = f"closest: {', '.join(shown)}" if near else "none is available"
        super().__init__(f'no {kind} "{name}"; {hint}' + (f". See: {see}" if see else ""))

    def __str__(self) -> str:
        """Return the sentence (KeyError would quote it)."""
        return str(self.args[0])


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, package: str, extra: str, otherwise: str = "") -> None:
        """Build the sentence ``WHAT needs the PACKAGE package: pip install ...``."""
        tail = f", or {otherwise}" if otherwise else ""
        super().__init__(
            f'{what} needs the {package} package: pip install "sightline[{extra}]"{tail}'
        )


class ReconstructionError(SightlineError):
    """The input was readable, but no scene could be made from it."""


class TrainingError(SightlineError):
    """Training went wrong, such as a loss that is not finite."""


class OutputError(SightlineError):
    """A result could not be written."""


class OutOfMemoryError(SightlineError):
    """The work does not fit into memory; the text says what would."""

    exit_code = 4


class Cancelled(SightlineError):
    """The user asked to stop; what was finished is kept."""

    exit_code = 3
