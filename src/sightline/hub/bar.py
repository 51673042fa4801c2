"""Progress of huggingface_hub, told to our callback instead of drawn."""

import io
from typing import TypedDict, Unpack

from sightline.hub.transfer import DOWNLOAD, Progress


class _Options(TypedDict, total=False):
    initial: int
    total: int | None
    desc: str
    unit: str
    unit_scale: bool
    disable: bool | None
    name: str | None


def bar_class(progress: Progress | None) -> type:
    """Return a class that huggingface_hub uses for its bars and that draws nothing."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, **options: Unpack[_Options]) -> None:
            self._seen = float(options.get("initial") or 0)
            self._size = float(options.get("total") or 0)
            super().__init__(file=io.StringIO(), disable=True)

        def update(self, n: int | None = 1) -> bool | None:  # type: ignore[override]
            self._seen += n or 0
            if progress is not None:
                progress(DOWNLOAD, self._seen / 1e6, max(self._size, self._seen) / 1e6)
            return None

    return Bar
