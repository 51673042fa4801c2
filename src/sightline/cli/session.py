"""What a process keeps when it runs several verbs, one after the other: the worker of the app.

An ordinary command line runs one verb and leaves both fields as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Session:
    """The state of this process.

    Attributes:
        listener: Told of everything that progress bars show, as plain values.
        loaded: Networks by (name, checkpoint, device), given to every verb that can use them again.
    """

    listener: Callable[[dict[str, Any]], None] | None = None
    loaded: dict[tuple[str, str, str], Any] | None = None


SESSION = Session()
"""The one of this process."""
