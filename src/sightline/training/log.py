"""The log of a training: CSV tables that a kill cannot tear, and other loggers beside them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import MissingExtraError
from sightline.io.atomic import atomic_write_text

Row = Mapping[str, float | int]

MEAN = "mean "
"""Before the name of a measure: the same measure of the mean of the training data."""


class Table:
    """A CSV file with a row a step; one process writes it."""

    def __init__(self, path: Path, *, keep_until: int) -> None:
        """Open the table, and drop the rows of steps after ``keep_until`` and a torn last one."""
        self.path = path
        self.columns, self.rows = read_table(path)
        self.rows = [row for row in self.rows if row["step"] <= keep_until]
        if self.columns:
            self._rewrite()

    def append(self, row: Row) -> None:
        """Add one row; columns that are new to the table are empty in the rows before."""
        new = [name for name in row if name not in self.columns]
        self.rows.append(dict(row))
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line(row))

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps and values of one column, where it has some."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def _line(self, row: Row) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(
            [_text(float(row[name])) if name in row else "" for name in self.columns]
        )
        return text.getvalue()

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = ",".join(self.columns) + "\n"
        atomic_write_text(self.path, head + "".join(self._line(row) for row in self.rows))


def _text(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else repr(value)


def read_table(path: Path) -> tuple[list[str], list[dict[str, float | int]]]:
    """Return columns and rows of a table; a row without its line end was torn and is left out."""
    if not path.is_file():
        return [], []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    parsed = list(csv.reader(lines))
    if not parsed or "step" not in parsed[0]:
        return [], []
    columns, rows = parsed[0], []
    for cells in parsed[1:]:
        try:
            row = {n: float(c) for n, c in zip(columns, cells, strict=True) if c}
        except ValueError:
            continue
        if "step" in row:
            rows.append(row)
    return columns, rows


class TrainLog:
    """What a training writes as it goes: ``logs/train.csv``, ``logs/validation.csv``, and others."""

    def __init__(
        self, folder: Path, names: Sequence[str], *, start: int, config: Mapping[str, Any]
    ) -> None:
        """Open the logs to go on after ``start`` steps; 0 begins them anew.

        Raises:
            MissingExtraError: If a logger's package is not installed.
        """
        self.train = Table(folder / "logs" / "train.csv", keep_until=start or -1)
        self.validation = Table(folder / "logs" / "validation.csv", keep_until=start or -1)
        self._writers = [_OPEN[name](folder, start, config) for name in names if name in _OPEN]

    def step(self, row: Row) -> None:
        """Log a row of training."""
        self._add(self.train, "train", row)

    def validate(self, row: Row) -> None:
        """Log a row of validation."""
        self._add(self.validation, "validation", row)

    def close(self) -> None:
        """Flush everything."""
        for writer in self._writers:
            writer.finalize("success")

    def _add(self, table: Table, kind: str, row: Row) -> None:
        table.append(row)
        values = {f"{kind}/{name}": value for name, value in row.items() if name != "step"}
        for writer in self._writers:
            writer.log_metrics(values, step=int(row["step"]))


def _tensorboard(folder: Path, start: int, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    try:
        import tensorboard  # noqa: F401
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger
    except ImportError as error:
        raise MissingExtraError(
            "the TensorBoard log", "tensorboard", "train", "leave it out of --loggers"
        ) from error
    # Rows of a killed run that are made again hide the old ones.
    return TensorBoardLogger(
        root_dir=folder, name="logs", version="tensorboard", purge_step=start or None
    )


def _wandb(folder: Path, start: int, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    try:
        import wandb  # noqa: F401 # pyright: ignore[reportMissingImports]
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise MissingExtraError(
            "the Weights & Biases log", "wandb", "train", "leave it out of --loggers"
        ) from error
    return WandbLogger(
        name=folder.name,
        id=folder.name,
        save_dir=folder / "logs",
        project="sightline",
        resume="allow",
        config=dict(config),
    )


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
