"""Run a pair network over a graph: every picture encoded once, both directions decoded together."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sightline.io.tensors import write_safetensors
from sightline.models.croco import Encoded
from sightline.models.dust3r import PairDecoder, Stages
from sightline.models.dust3r_heads import Result
from sightline.models.splatt3r import add_colors
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.images import Picture, common_batches

OnDone = Callable[[int, int], None]

_MOST_SHARED = 24
"""Pictures of one size whose first level of the head is kept; it takes 25 MB each at 512 x 384."""


class PairResult(NamedTuple):
    """What the network says about one direction of a pair, without the batch axis, on the CPU."""

    first: Result
    second: Result


Both = dict[Pair, PairResult]
"""The directions of one pair that are in the graph."""


def run_pairs(
    model: nn.Module,
    pictures: Sequence[Picture],
    pairs: Sequence[Pair],
    *,
    device: str | torch.device = "cpu",
    batch: int = 1,
    on_done: OnDone | None = None,
) -> Iterator[Both]:
    """Yield the predictions of every unordered pair, in order of first appearance per size.

    A network with the stages of `models.dust3r.PairNetwork` encodes each picture once. Any other
    module is called as ``model(view1, view2)`` with ``img``, ``true_shape``, ``idx`` and
    ``instance`` as the original's loader makes them.

    Args:
        model: In evaluation mode, on ``device``.
        pictures: All of them.
        pairs: Ordered pairs of picture numbers.
        device: Where the network is.
        batch: Pairs decoded at once (both directions each).
        on_done: Called with the unordered pairs done and their number.
    """
    groups: dict[Pair, list[Pair]] = {}
    for i, j in dict.fromkeys(pairs):
        groups.setdefault((min(i, j), max(i, j)), []).append((i, j))
    # The direction that came first decides the shapes of a batch.
    keys = list(groups)
    shapes = [(*pictures[groups[k][0][0]].size, *pictures[groups[k][0][1]].size) for k in keys]
    by_shape: dict[tuple[int, ...], list[Pair]] = {}
    for key, shape in zip(keys, shapes, strict=True):
        by_shape.setdefault(shape, []).append(key)
    network = _Network(model, pictures, sorted({i for p in pairs for i in p}), device, batch)
    done = 0
    for some in by_shape.values():
        for start in range(0, len(some), batch):
            members = [groups[key] for key in some[start : start + batch]]
            directed = [pair for member in members for pair in member]
            found = network.decode(directed)
            for member in members:
                yield {pair: found[pair] for pair in member}
            done += len(members)
            if on_done is not None:
                on_done(done, len(keys))


class _Network:
    """A pair network behind one call, whatever it offers."""

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        pictures: Sequence[Picture],
        used: Sequence[int],
        device: str | torch.device,
        batch: int,
    ) -> None:
        self.model, self.pictures, self.device = model, pictures, device
        # Splatt3R keeps the network in its encoder, and a fused one around it.
        inner = getattr(model, "stages", None) or getattr(model, "encoder", None)
        self.stages: Stages | None = None
        if isinstance(model, Stages):
            self.stages = model
        elif isinstance(inner, Stages):
            self.stages = inner
        self.encoded: dict[int, Encoded] = {}
        self.decoders: dict[tuple[int, int], PairDecoder] = {}
        self.rows: dict[int, int] = {}
        if self.stages is None:
            return
        sizes = [pictures[i].size for i in used]
        for rows in common_batches(sizes, max(1, 2 * batch)):
            numbers = [used[row] for row in rows]
            made = self.stages.encode_views(self._images(numbers), self._shapes(numbers))
            for row, number in enumerate(numbers):
                self.encoded[number] = made.map(lambda t, r=row: t[r : r + 1])
        for size in dict.fromkeys(sizes):
            numbers = [i for i in used if pictures[i].size == size]
            if 2 < len(numbers) <= _MOST_SHARED:
                self.rows |= {number: row for row, number in enumerate(numbers)}
                together = _stack([self.encoded[i] for i in numbers])
                self.decoders[size] = PairDecoder(
                    self.stages, together, size, self._shapes(numbers)
                )

    def _images(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self.pictures[i].normalized() for i in numbers]).to(self.device)

    def _shapes(self, numbers: Sequence[int]) -> Tensor:
        sizes = [self.pictures[i].size for i in numbers]
        return torch.tensor(sizes, dtype=torch.int32, device=self.device)

    @torch.no_grad()
    def decode(self, pairs: Sequence[Pair]) -> Both:
        """Return the predictions of ordered pairs; those of equal shapes go together."""
        found: Both = {}
        sizes = [(*self.pictures[i].size, *self.pictures[j].size) for i, j in pairs]
        for size in dict.fromkeys(sizes):
            some = [pair for pair, own in zip(pairs, sizes, strict=True) if own == size]
            first, second = [i for i, _ in some], [j for _, j in some]
            if self.stages is None:
                results = self.model(self._view(first), self._view(second))
            else:
                results = self._decode_stages(self.stages, first, second)
            for row, pair in enumerate(some):
                found[pair] = PairResult(*(_row(result, row) for result in results))
        return found

    def _decode_stages(
        self, stages: Stages, first: list[int], second: list[int]
    ) -> tuple[Result, Result]:
        sizes = [self.pictures[side[0]].size for side in (first, second)]
        decoder = self.decoders.get(sizes[0]) if sizes[0] == sizes[1] else None
        if decoder is not None:
            rows = [(self.rows[i], self.rows[j]) for i, j in zip(first, second, strict=True)]
            results = list(decoder.decode(rows))
        else:
            encoded = [_stack([self.encoded[i] for i in side]) for side in (first, second)]
            lists = stages.decode_pair(*encoded)
            results = [
                stages.read_out(number, tokens, size, self._shapes(side))
                for number, side, tokens, size in zip(
                    (1, 2), (first, second), lists, sizes, strict=True
                )
            ]
        if stages is not self.model:
            for side, result in zip((first, second), results, strict=True):
                add_colors(result, {"img": self._images(side)})
        return results[0], results[1]

    def _view(self, numbers: list[int]) -> dict[str, Any]:
        return {
            "img": self._images(numbers),
            "true_shape": self._shapes(numbers),
            "idx": list(numbers),
            "instance": [str(i) for i in numbers],
        }


def _stack(parts: Sequence[Encoded]) -> Encoded:
    first = parts[0]
    positions = first.positions
    if positions.ndim == 3:
        positions = torch.cat([p.positions for p in parts])
    extra = None
    if first.extra is not None:
        extra = torch.cat([p.extra for p in parts if p.extra is not None])
    return Encoded(torch.cat([p.tokens for p in parts]), positions, extra)


def _row(result: Mapping[str, Tensor], row: int) -> Result:
    return {
        name.removesuffix("_in_other_view"): value[row].float().cpu()
        for name, value in result.items()
        if isinstance(value, Tensor)
    }


class PairCache:
    """Predictions on disk, as safetensors, by the content of the pictures and of the network.

    A file that is damaged or of another shape counts as missing and is written again.
    """

    def __init__(self, folder: Path, model: nn.Module, note: str = "") -> None:
        """Prepare a cache.

        Args:
            folder: Made when something is stored.
            model: Its class, weights and buffers are part of the key. A module without any is
                not stored, because nothing tells it from another.
            note: Options that change what is stored.
        """
        self.key = model_key(model, note)
        self.folder = Path(folder) / (self.key or "")[:32]

    def _file(self, first: Picture, second: Picture) -> Path:
        return self.folder / f"{picture_key(first)[:32]}-{picture_key(second)[:32]}.safetensors"

    def load(self, first: Picture, second: Picture) -> dict[str, Tensor] | None:
        """Return what was stored for an ordered pair, or None."""
        file = self._file(first, second)
        if self.key is None or not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None

    def store(self, first: Picture, second: Picture, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors for an ordered pair.

        Raises:
            OutputError: If the file cannot be written.
        """
        if self.key is None:
            return
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_safetensors(self._file(first, second), plain)


def picture_key(picture: Picture) -> str:
    """Return a hash of a picture's pixels and size."""
    digest = hashlib.sha256(repr(picture.pixels.shape).encode())
    digest.update(picture.pixels.tobytes())
    return digest.hexdigest()


def model_key(model: nn.Module, note: str = "") -> str | None:
    """Return a hash of a network's class, weights and ``note``; None without any weights."""
    state = model.state_dict()
    if not state:
        return None
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__} {note}".encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
