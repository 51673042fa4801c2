"""Files of no-time-to-train: reference pickles, and checkpoints with a memory bank inside."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sightline.checkpoints import read_weights
from sightline.checkpoints.pickled import read_pickle
from sightline.errors import FileFormatError
from sightline.io.reading import bad_file, check_file, read_json, read_whole
from sightline.segmentation.memory import BankClass, MemoryBank
from sightline.segmentation.sampling import Shots as Chosen
from sightline.segmentation.sampling import shots_from_json
from sightline.segmentation.shots import Shots, no_shots, summarize_shots

_MAX_PICKLE = 256 << 20


def read_chosen(path: Path) -> Chosen:
    """Read chosen references: JSON, or a pickle of plain data.

    Raises:
        FileFormatError: The file is too large, damaged, or holds more than plain data.
        InputError: It is missing, or of another structure.
    """
    if check_file(path) > _MAX_PICKLE:
        raise bad_file(path, f"at most {_MAX_PICKLE} bytes", str(path.stat().st_size))
    data = read_whole(path)
    if data.lstrip()[:1] == b"{":
        return shots_from_json(read_json(path))
    try:
        content = read_pickle(io.BytesIO(data), {"collections.OrderedDict": _ordered})
    except FileFormatError as error:
        raise bad_file(path, "references as JSON or a pickle of them", f"{error}") from error
    return shots_from_json(content)


def _ordered(rows: Any = ()) -> dict[Any, Any]:  # noqa: ANN401
    return dict(rows)


def read_bank(path: Path, classes: Sequence[BankClass], encoder: Mapping[str, Any]) -> MemoryBank:
    """Read our own bank, or the one inside a checkpoint of the original.

    Args:
        path: The file; what it is shows in its content, not in its name.
        classes: Of the checkpoint's class indices, which it does not name.
        encoder: Signature of the encoder in use; a checkpoint does not name its own.

    Raises:
        FileFormatError: It is neither.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return MemoryBank.load(path)
    state = {name.removeprefix("seg_model."): t for name, t in read_weights(path).items()}
    if "mem_fill_counts" not in state:
        raise bad_file(path, "a memory bank (mem_fill_counts)", "a checkpoint without one")
    shots = _table(path, state, "", len(classes))
    if shots is None or not len(shots):
        raise bad_file(path, "a filled memory bank", "an empty one", "run fill_memory first")
    negatives = _table(path, state, "_neg", len(classes)) or no_shots(shots.means.shape[1])
    return MemoryBank(
        classes=tuple(classes), shots=shots, negatives=negatives, encoder=dict(encoder)
    )


def _table(path: Path, state: Mapping[str, Tensor], kind: str, classes: int) -> Shots | None:
    counts = state.get(f"mem_fill_counts{kind}")
    if counts is None:
        return None
    if counts.shape != (classes,):
        raise bad_file(path, f"a bank of {classes} classes as configured", f"{tuple(counts.shape)}")
    features, masks = state.get(f"mem_feats{kind}"), state.get(f"mem_masks{kind}")
    means = state.get(f"mem_feats_ins_avg{kind}")
    source = features if features is not None else means
    if source is None or source.shape[0] != classes or int(counts.max()) > source.shape[1]:
        raise bad_file(path, "mem_feats or mem_feats_ins_avg for its classes", "none that fit")
    filled = [(k, s) for k in range(classes) for s in range(int(counts[k]))]
    labels = torch.tensor([k for k, _ in filled], dtype=torch.int64)
    places = torch.tensor([s for _, s in filled], dtype=torch.int64)
    names = [f"checkpoint class {k} shot {s}" for k, s in filled]
    if not filled:
        return no_shots(source.shape[-1])
    if features is not None and masks is not None:
        if features.dim() != 4 or masks.shape != features.shape[:3]:
            raise bad_file(path, "mem_feats [K S N C] and mem_masks [K S N]", "other shapes")
        return summarize_shots(
            features[labels, places].float(), masks[labels, places].float(), labels, names
        )
    if means is None or means.dim() != 3:
        raise bad_file(path, "mem_feats_ins_avg [K S C]", "another shape")
    rows = means[labels, places].float()
    one = torch.ones(len(rows))
    return Shots(
        labels=labels,
        means=rows,
        unit_means=normalize(rows, dim=-1),
        hard_means=rows,
        weights=one,
        hard_counts=one,
        context=torch.zeros_like(rows),
        tokens=rows.half(),
        token_shots=torch.arange(len(rows)),
        names=tuple(names),
    )
