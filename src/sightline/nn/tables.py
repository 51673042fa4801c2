"""A small store for position tables, which depend on the image size only."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class TableCache(Generic[T]):
    """The few most recent tables of one module, oldest dropped first.

    A store is no part of a module's state: it starts empty in copies and in pickles, because a
    table can be made again at any time.
    """

    def __init__(self, size: int = 8) -> None:
        """Keep at most ``size`` tables."""
        self._size = size
        self._tables: dict[Hashable, T] = {}

    def get(
        self,
        key: Hashable,
        make: Callable[[], T],
        *,
        buffers: Sequence[Tensor] = (),
        weights: Sequence[Tensor] = (),
    ) -> T:
        """Return the table of ``key``, made on first use.

        Under ``torch.compile`` a table is part of the graph and nothing is stored. Tables are made
        outside inference mode, so that a later training step may use them.

        Args:
            key: What the table depends on.
            make: Makes it.
            buffers: Tensors it is made from; another value of theirs gives another table.
            weights: The same for trained ones: their tables are kept in inference mode only, where
                weights stay as they are.
        """
        if torch.compiler.is_compiling() or (weights and not torch.is_inference_mode_enabled()):
            return make()
        sources = (*buffers, *weights)
        if any(t.is_inference() for t in sources):  # they do not tell when they change
            return make()
        states = [(t.device, t.dtype, t.data_ptr(), t._version) for t in sources]
        key = (key, *states)
        if key not in self._tables:
            with torch.inference_mode(mode=False), torch.no_grad():
                table = make()
            while len(self._tables) >= self._size:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = table
        return self._tables[key]

    def __deepcopy__(self, memo: dict) -> "TableCache[T]":
        """Return an empty store of the same size."""
        return TableCache(self._size)

    def __reduce__(self) -> tuple:
        """Pickle as an empty store of the same size."""
        return (TableCache, (self._size,))
