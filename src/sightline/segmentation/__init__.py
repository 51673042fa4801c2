"""Few-shot, training-free instance segmentation: mark an object once, find it everywhere.

References fill a `MemoryBank`; proposals of a new image are compared with it and merged. After
Espinosa et al. 2025, "No time to train!" (arXiv 2507.02798), whose staged interface lives on in
`staged` and `compat`.

Public names are imported when first used, so that importing the package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.segmentation.evaluate import evaluate_instances, evaluate_semantic
    from sightline.segmentation.matching import AmgOptions, MatchOptions, match_amg, match_proposals
    from sightline.segmentation.memory import MemoryBank
    from sightline.segmentation.references import Reference
    from sightline.segmentation.segmenter import FewShotSegmenter

__all__ = [
    "AmgOptions",
    "FewShotSegmenter",
    "MatchOptions",
    "MemoryBank",
    "Reference",
    "evaluate_instances",
    "evaluate_semantic",
    "match_amg",
    "match_proposals",
]

_HOMES = {
    "AmgOptions": "matching",
    "FewShotSegmenter": "segmenter",
    "MatchOptions": "matching",
    "MemoryBank": "memory",
    "Reference": "references",
    "evaluate_instances": "evaluate",
    "evaluate_semantic": "evaluate",
    "match_amg": "matching",
    "match_proposals": "matching",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name from its home on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
