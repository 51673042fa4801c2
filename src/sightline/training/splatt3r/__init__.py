"""Splatt3R with fused backbones: what it is trained with, and how it is scored."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.training.splatt3r.task import Splatt3rTask

__all__ = ["Splatt3rTask"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import what needs torch on first use (PEP 562)."""
    if name == "Splatt3rTask":
        from sightline.training.splatt3r.task import Splatt3rTask

        return Splatt3rTask
    msg = f"module 'sightline.training.splatt3r' has no attribute {name!r}"
    raise AttributeError(msg)
