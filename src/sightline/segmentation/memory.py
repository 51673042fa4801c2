"""The memory bank: what is kept of every reference, and what follows from it.

Each shot keeps its means and a handful of foreground features, never the feature maps, so a class
or a shot can be added or removed at any time and a bank of twenty classes takes a few MB. All that
the models compare with (prototypes, class means, centres, axes) is computed from the shots.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from sightline.errors import FileFormatError, InputError, UnknownNameError
from sightline.io.reading import bad_file, check_file
from sightline.io.tensors import write_safetensors
from sightline.segmentation.prototypes import (
    agreement_from_sums,
    cosine_kmeans,
    principal_axes,
)
from sightline.segmentation.shots import Shots, join_shots, no_shots

FORMAT, VERSION = "sightline-memory-bank", 1
_MAX_FILE = 8 << 30
_MAX_META = 64 << 20
_MAX_CLASSES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BankClass:
    """One class of a bank."""

    name: str
    category_id: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryBank:
    """References of all classes; immutable, every change returns a new bank."""

    classes: tuple[BankClass, ...]
    shots: Shots
    negatives: Shots
    """What was taken for a class by mistake; labels tell for which."""
    encoder: dict[str, Any] = field(default_factory=dict)
    """How features were made: a bank only fits images encoded alike."""
    thresholds: Float[Tensor, " k"] | None = None
    """Similarity below which the answer is "unknown"; None without calibration."""

    def __post_init__(self) -> None:
        """Refuse labels without class and widths that differ."""
        names = self.names
        if len(set(names)) != len(names):
            raise InputError("expected classes of different names in a bank; rename one")
        for table in (self.shots, self.negatives):
            if len(table) and int(table.labels.max()) >= len(self.classes):
                raise InputError("a shot of the bank has no class; the bank is damaged")
        if (
            len(self.negatives)
            and len(self.shots)
            and self.negatives.means.shape[1] != self.channels
        ):
            raise InputError("negatives and references of a bank have different widths")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return tuple(c.name for c in self.classes)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category of each class index."""
        return tuple(c.category_id for c in self.classes)

    @property
    def channels(self) -> int:
        """Width of the features."""
        return self.shots.means.shape[1]

    @property
    def counts(self) -> Int64[Tensor, " k"]:
        """Number of shots of each class."""
        return torch.bincount(self.shots.labels, minlength=len(self.classes))

    def index(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            UnknownNameError: There is no such class.
        """
        if name not in self.names:
            raise UnknownNameError("class of the bank", name, self.names)
        return self.names.index(name)

    # -- what the models compare with -------------------------------------------------------

    def prototypes(self) -> Float[Tensor, "k c"]:
        """Return one unit vector a class: the direction of the mean of its instance means."""
        sums = self._sums(self.shots.means)
        return normalize(sums / self.counts.clamp(min=1)[:, None], dim=-1)

    def class_means(self, *, unit: bool = False) -> Float[Tensor, "k c"]:
        """Return the mean over all cells of a class; of unit features for the AMG model."""
        means, weights = self.shots.unit_means if unit else self.shots.means, self.shots.weights
        total = self._sums(weights[:, None]).clamp(min=1e-12)
        return self._sums(means * weights[:, None]) / total

    def instance_means(self, name: str) -> Float[Tensor, "s c"]:
        """Return the instance means of one class."""
        return self.shots.means[self.shots.labels == self.index(name)]

    def covariance(self, name: str) -> Float[Tensor, "c c"]:
        """Return the covariance of the instance means of one class."""
        rows = self.instance_means(name)
        centred = rows - rows.mean(0)
        return centred.T @ centred / max(len(rows), 1)

    def agreement(self, name: str) -> float:
        """Return how well the shots of a class agree with each other, in [0, 1]."""
        own = self.shots.labels == self.index(name)
        counts = self.shots.hard_counts[own][None, :, None]
        return float(agreement_from_sums(self.shots.hard_means[own][None] * counts, counts)[0])

    def centres(self, name: str, count: int = 4, seed: int = 0) -> Float[Tensor, "j c"]:
        """Return unit k-means centres of a class's foreground features.

        Raises:
            InputError: The bank keeps fewer features than centres.
        """
        tokens = self._tokens(name)
        if len(tokens) < count:
            raise InputError(
                f'expected at least {count} foreground features of "{name}" for {count} centres, '
                f"got {len(tokens)}; fill the bank with more tokens a shot"
            )
        generator = torch.Generator().manual_seed(seed)
        start = torch.randperm(len(tokens), generator=generator)[:count]
        return cosine_kmeans(tokens, start)

    def axes(self, name: str, count: int = 3) -> tuple[Float[Tensor, " c"], Float[Tensor, "p c"]]:
        """Return mean and principal axes of a class's foreground features.

        Raises:
            InputError: The bank keeps fewer features than axes.
        """
        return principal_axes(self._tokens(name), count)

    def padded_negatives(self) -> tuple[Float[Tensor, "k m c"], Bool[Tensor, "k m"]]:
        """Return the negative instance means of each class, and which of them exist."""
        table = self.negatives
        most = int(torch.bincount(table.labels).max()) if len(table) else 0
        rows = torch.zeros(len(self.classes), most, self.channels)
        valid = torch.zeros(len(self.classes), most, dtype=torch.bool)
        for k in range(len(self.classes)):
            own = table.means[table.labels == k]
            rows[k, : len(own)] = own
            valid[k, : len(own)] = True
        return rows, valid

    # -- changes ----------------------------------------------------------------------------

    def add(
        self, shots: Shots, classes: Sequence[BankClass], *, negative: bool = False
    ) -> "MemoryBank":
        """Return the bank with more shots, whose labels index ``classes``; new ones are appended.

        Thresholds are dropped, because they depend on all classes.

        Raises:
            InputError: The features have another width, or a category is known by another name.
        """
        if len(self.shots) and shots.means.shape[1] != self.channels:
            raise InputError(
                f"expected features of {self.channels} channels like the bank's, got "
                f"{shots.means.shape[1]}; use the bank's encoder"
            )
        known = {c.name: c for c in self.classes}
        ids = {c.category_id: c.name for c in self.classes}
        for c in classes:
            if c.name not in known:
                if c.category_id in ids:
                    raise InputError(
                        f'category {c.category_id} is "{ids[c.category_id]}" in the bank and '
                        f'"{c.name}" in what is added; give it another id'
                    )
                known[c.name] = c
                ids[c.category_id] = c.name
        table = tuple(known.values())
        place = {c.name: i for i, c in enumerate(table)}
        lookup = torch.tensor([place[c.name] for c in classes], dtype=torch.int64)
        added = shots.relabelled(lookup[shots.labels] if len(shots) else shots.labels)
        kind = "negatives" if negative else "shots"
        old = getattr(self, kind)
        joined = join_shots([old, added]) if len(old) else added
        other = {}
        if not negative and not len(self.negatives):
            other = {"negatives": no_shots(shots.means.shape[1])}
        return replace(self, classes=table, thresholds=None, **{kind: joined, **other})

    def remove_class(self, name: str) -> "MemoryBank":
        """Return the bank without a class, its shots and its negatives."""
        gone = self.index(name)

        def without(table: Shots) -> Shots:
            kept = table.select((table.labels != gone).nonzero()[:, 0])
            return kept.relabelled(kept.labels - (kept.labels > gone).long())

        return replace(
            self,
            classes=tuple(c for c in self.classes if c.name != name),
            shots=without(self.shots),
            negatives=without(self.negatives),
            thresholds=None,
        )

    def remove_shot(self, index: int) -> "MemoryBank":
        """Return the bank without one reference; its class stays while it has others.

        Raises:
            InputError: There is no such shot.
        """
        if not 0 <= index < len(self.shots):
            raise InputError(
                f"expected a shot from 0 to {len(self.shots) - 1}, got {index}; see the report"
            )
        label = int(self.shots.labels[index])
        if int(self.counts[label]) == 1:
            return self.remove_class(self.names[label])
        kept = torch.tensor([i for i in range(len(self.shots)) if i != index], dtype=torch.int64)
        return replace(self, shots=self.shots.select(kept), thresholds=None)

    def merge(self, other: "MemoryBank") -> "MemoryBank":
        """Return the classes and shots of both banks; classes of one name are joined.

        Raises:
            InputError: The banks were filled with different encoders.
        """
        if self.encoder != other.encoder:
            raise InputError(
                f"expected banks of one encoder, got {_short(self.encoder)} and "
                f"{_short(other.encoder)}; fill one of them again"
            )
        joined = self.add(other.shots, other.classes)
        return joined.add(other.negatives, other.classes, negative=True)

    def only(self, names: Iterable[str]) -> "MemoryBank":
        """Return the bank with only these classes, in the bank's order."""
        wanted = set(names)
        for name in sorted(wanted):
            self.index(name)
        bank = self
        for name in self.names:
            if name not in wanted:
                bank = bank.remove_class(name)
        return bank

    def _sums(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
        out = rows.new_zeros(len(self.classes), rows.shape[1])
        return out.index_add_(0, self.shots.labels, rows)

    def _tokens(self, name: str) -> Float[Tensor, "m c"]:
        own = self.shots.labels[self.shots.token_shots] == self.index(name)
        return self.shots.tokens[own].float()

    # -- files ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the bank as safetensors with JSON metadata.

        Raises:
            OutputError: It cannot be written.
        """
        tensors = {}
        for kind, table in (("shots", self.shots), ("negatives", self.negatives)):
            for name in _COLUMNS:
                tensors[f"{kind}.{name}"] = getattr(table, name).detach().cpu().contiguous().clone()
        if self.thresholds is not None:
            tensors["thresholds"] = self.thresholds.detach().cpu().contiguous().clone()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "classes": [{"name": c.name, "category_id": c.category_id} for c in self.classes],
            "encoder": self.encoder,
            "shots": list(self.shots.names),
            "negatives": list(self.negatives.names),
        }
        write_safetensors(Path(path), tensors, {"bank": json.dumps(content)})

    @classmethod
    def load(cls, path: str | Path) -> "MemoryBank":
        """Read a bank.

        Raises:
            InputError: There is no such file.
            FileFormatError: It is no bank, or its parts do not fit each other.
        """
        return _read_bank(Path(path))


_COLUMNS = {
    "labels": (1, torch.int64),
    "means": (2, torch.float32),
    "unit_means": (2, torch.float32),
    "hard_means": (2, torch.float32),
    "weights": (1, torch.float32),
    "hard_counts": (1, torch.float32),
    "context": (2, torch.float32),
    "tokens": (2, torch.float16),
    "token_shots": (1, torch.int64),
}


def _read_bank(path: Path) -> MemoryBank:
    if check_file(path) > _MAX_FILE:
        raise bad_file(path, f"a bank of at most {_MAX_FILE} bytes", str(path.stat().st_size))
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("bank", "")
            names = set(file.keys())
            wanted = {f"{kind}.{name}" for kind in ("shots", "negatives") for name in _COLUMNS}
            if len(text) > _MAX_META or not text or not wanted <= names:
                raise bad_file(path, "a memory bank", "another safetensors file")
            tensors = {name: file.get_tensor(name) for name in names & (wanted | {"thresholds"})}
    except SafetensorError as error:
        raise bad_file(path, "a memory bank (safetensors)", f"{error}"[:80]) from error
    try:
        content = json.loads(text)
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise bad_file(path, f"{FORMAT} version {VERSION}", f"{str(content['version'])[:20]!r}")
        classes = tuple(
            BankClass(name=str(c["name"])[:256], category_id=int(c["category_id"]))
            for c in content["classes"]
        )
        if len(classes) > _MAX_CLASSES or not isinstance(content["encoder"], dict):
            raise TypeError
        tables = {
            kind: _table(path, tensors, kind, content[kind], len(classes))
            for kind in ("shots", "negatives")
        }
    except FileFormatError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_file(path, "a description of classes and shots", "another") from error
    thresholds = tensors.get("thresholds")
    if thresholds is not None and (
        thresholds.shape != (len(classes),) or thresholds.dtype != torch.float32
    ):
        raise bad_file(path, "one threshold a class", f"{list(thresholds.shape)}")
    return MemoryBank(classes=classes, encoder=content["encoder"], thresholds=thresholds, **tables)


def _table(
    path: Path,
    tensors: dict[str, Tensor],
    kind: str,
    names: Any,  # noqa: ANN401
    classes: int,
) -> Shots:
    columns = {name: tensors[f"{kind}.{name}"] for name in _COLUMNS}
    count, channels = len(columns["labels"]), columns["means"].shape[-1]
    for name, (rank, dtype) in _COLUMNS.items():
        column = columns[name]
        rows = len(columns["token_shots"]) if name in ("tokens", "token_shots") else count
        want = (rows, channels)[:rank]
        if tuple(column.shape) != want or column.dtype != dtype:
            raise bad_file(path, f"{kind}.{name} of {want}", f"{tuple(column.shape)}")
        if column.is_floating_point() and not column.isfinite().all():
            raise bad_file(path, f"finite {kind}.{name}", "NaN or infinity")
    if not isinstance(names, list) or len(names) != count:
        raise bad_file(path, f"{count} names of {kind}", "another number")
    for name, limit in (("labels", classes), ("token_shots", count)):
        column = columns[name]
        if len(column) and (int(column.min()) < 0 or int(column.max()) >= limit):
            raise bad_file(path, f"{kind}.{name} below {limit}", "others")
    return Shots(**columns, names=tuple(str(n)[:1024] for n in names))


def _short(encoder: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(encoder.items()))[:120] or "an unnamed one"
