"""What machines do to us."""

import errno
import os

import pytest


def fill_disk(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let the disk be full once so many files and folders have been flushed to it."""
    left, flush = iter(range(after)), os.fsync

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    patch.setattr(os, "fsync", full)
