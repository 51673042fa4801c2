"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first signal is noted and the second acts as always.

    A step that is half done cannot be saved; the loop asks after each one. Outside the main thread
    (the app) signals stay as they are and only ``also`` counts.
    """

    def __init__(self, also: Callable[[], bool] | None = None) -> None:
        """``also`` is asked too."""
        self._also = also
        self._noted = False
        self._before: dict[signal.Signals, object] = {}

    def asked(self) -> bool:
        """Tell whether training should stop."""
        return self._noted or (self._also is not None and self._also())

    def __enter__(self) -> "StopRequest":  # noqa: PYI034
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {which: signal.signal(which, self._note) for which in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._give_back()

    def _note(self, which: int, frame: FrameType | None) -> None:
        del which, frame
        self._noted = True
        self._give_back()

    def _give_back(self) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}
