"""Backbones compared by what they add to Splatt3R: the same training for each, from one start.

Every variant (a backbone, or anything else that settings can say) is a run of
``sightline train splatt3r`` for each seed, in ``runs/``. Finished runs stay; the same call goes on.
"""

import ctypes
import dataclasses
import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.checkpoints import load_strict, read_weights
from sightline.errors import InputError, UnknownNameError
from sightline.io.atomic import atomic_write_text
from sightline.io.reading import read_json
from sightline.models.fusion import FusedSplatt3R
from sightline.protocols import Progress
from sightline.run import RunFolder, is_run, plain_values
from sightline.training.engine import train
from sightline.training.splatt3r import Splatt3rTask
from sightline.training.splatt3r.batch import pair_batch
from sightline.training.splatt3r.data import held_out, open_source
from sightline.training.splatt3r.evaluate import PairScore
from sightline.training.splatt3r.settings import Splatt3rSettings

START = "before training"
"""Name of the row that every variant starts from."""
MEASURES = ("psnr", "ssim", "lpips", "points")
_SCORES = "scores.json"
_TIMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One entry of the comparison."""

    name: str
    settings: Splatt3rSettings
    """With the first seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRun:
    """What one training of one variant gave."""

    variant: str
    seed: int
    folder: Path
    start: tuple[PairScore, ...]
    end: tuple[PairScore, ...]
    costs: dict[str, float]
    """``backbone_ms`` a picture and ``network_ms`` a pair (medians), ``memory`` in bytes beyond the
    weights, ``backbone_parameters``, ``trained_parameters``, ``seconds`` of training."""


def variants_of(settings: Splatt3rSettings) -> list[Variant]:
    """Return what ``settings.compare`` lists.

    Each entry is the name of a backbone, or a mapping of ``name`` and any options of
    `Splatt3rSettings`.

    Raises:
        InputError: If two have one name, or an entry is neither.
        UnknownNameError: If an option is unknown.
    """
    known = {item.name for item in dataclasses.fields(Splatt3rSettings)}
    plain = {**settings.as_dict(), "compare": None, "seeds": None}
    found: list[Variant] = []
    for entry in settings.compare or ():
        if isinstance(entry, str):
            entry = {"backbone": entry}
        if not isinstance(entry, Mapping):
            raise InputError(
                f"expected a backbone's name or a mapping of options in compare, got {entry!r}"
            )
        changes = dict(entry)
        name = str(changes.pop("name", None) or changes.get("backbone") or "no backbone")
        for key in changes:
            if key not in known or key in {"compare", "seeds"}:
                raise UnknownNameError("option of train splatt3r", key, known)
        if name in {START, *(variant.name for variant in found)}:
            raise InputError(f'two entries of compare are called "{name}"; give each its name')
        options: dict[str, Any] = plain | changes
        found.append(Variant(name=name, settings=Splatt3rSettings(**options)))
    if not found:
        raise InputError("compare lists nothing; name the backbones to compare")
    return found


def compare(
    settings: Splatt3rSettings,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Path:
    """Train every variant with every seed, and write ``report.html`` and the tables.

    Args:
        settings: With ``compare``; all else is what the variants have in common.
        output: Folder; runs that are finished there are kept.
        overwrite: Start a comparison that is there again.
        progress: Called as ``progress("compare", done, total)``.
        command: The command line, for the report.

    Returns:
        The report.

    Raises:
        InputError: If an entry, the data or the folder do not serve; nothing was trained.
    """
    from sightline.probing.fused_report import write_comparison

    seeds = settings.seeds or (0, 1, 2)
    variants = variants_of(settings)
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not _ours(output))):
        raise InputError(f"{output} holds something else; give a new folder with -o")
    # All of them are looked at before the first one trains, data first.
    for variant in variants:
        open_source(variant.settings, "train")
    for variant in variants:
        Splatt3rTask(variant.settings).check()
    if overwrite and (output / "runs").is_dir():
        shutil.rmtree(output / "runs")
    facts = {
        "format": "sightline-comparison",
        "seeds": list(seeds),
        "variants": [variant.name for variant in variants],
        "common": plain_values({**settings.as_dict(), "compare": None}),
    }
    atomic_write_text(output / "comparison.json", json.dumps(facts, indent=1))
    runs: list[VariantRun] = []
    total = len(variants) * len(seeds)
    for number, variant in enumerate(variants):
        for seed in seeds:
            folder = output / "runs" / f"{number:02d}-{_slug(variant.name)}-s{seed}"
            runs.append(_run(variant, seed, folder, command))
            if progress is not None:
                progress("compare", float(len(runs)), float(total))
    return write_comparison(settings, runs, output, command=command)


def _ours(output: Path) -> bool:
    return (output / "comparison.json").is_file()


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "variant"


def _run(variant: Variant, seed: int, folder: Path, command: str) -> VariantRun:
    """Train, or take what is there."""
    settings = dataclasses.replace(variant.settings, seed=seed)
    file = folder / _SCORES
    if not (is_run(folder) and RunFolder.open(folder).finished("report") and file.is_file()):
        task = Splatt3rTask(settings)
        task.check()
        costs = measure_costs(task)
        train(task, folder, resume=True, command=command)
        start = task.scores.get(0)
        if start is None:  # the training was resumed: its start is made again
            fresh = Splatt3rTask(settings)
            fresh.check()
            fresh.validate(0)
            start = fresh.scores[0]
        end = task.scores.get(max(task.scores, default=-1))
        if end is None or max(task.scores) == 0:
            exported = folder / "checkpoints" / "splatt3r.safetensors"
            load_strict(task.network, read_weights(exported), str(exported))
            task.validate(-1)
            end = task.scores[-1]
        costs["seconds"] = float(RunFolder.open(folder).state["stages"]["train"]["seconds"])
        content = {
            "costs": {k: None if math.isnan(v) else v for k, v in costs.items()},
            "start": [_row(score) for score in start],
            "end": [_row(score) for score in end],
        }
        atomic_write_text(file, json.dumps(content, indent=1))
    return _read_run(variant.name, seed, folder)


def _row(score: PairScore) -> dict[str, Any]:
    values = dataclasses.asdict(score)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _read_run(name: str, seed: int, folder: Path) -> VariantRun:
    content = read_json(folder / _SCORES)

    def scores(rows: Sequence[Mapping[str, Any]]) -> tuple[PairScore, ...]:
        known: list[dict[str, Any]] = [
            {k: math.nan if v is None else v for k, v in row.items()} for row in rows
        ]
        return tuple(PairScore(**row) for row in known)

    costs = {k: math.nan if v is None else float(v) for k, v in content["costs"].items()}
    return VariantRun(
        variant=name,
        seed=seed,
        folder=folder,
        start=scores(content["start"]),
        end=scores(content["end"]),
        costs=costs,
    )


@torch.no_grad()
def measure_costs(task: Splatt3rTask) -> dict[str, float]:
    """Measure what a network costs at the size of its training: time, memory, parameters.

    Memory is what a pass takes beyond the weights: on a GPU its allocator's peak, on Linux the peak
    of the process; NaN elsewhere.
    """
    settings, network = task.settings, task.network
    device = torch.device("cpu")
    if settings.device != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda")
    network.to(device).eval()
    batch = pair_batch(held_out(task.val_source, settings, 0, 1)).to(device)
    views = batch.views()
    network(*views)  # warm-up
    reset, peak = _memory(device)
    reset()
    before = peak()
    network_ms = _median_ms(lambda: network(*views), device)
    memory = peak() - before
    backbone_ms, backbone = math.nan, 0
    if isinstance(network, FusedSplatt3R):
        fusion, encoder = network.fusion, network.encoder
        image = views[0]["img"]
        backbone_ms = _median_ms(lambda: fusion.extra(encoder, image, None), device)
        held = getattr(fusion, "backbone", None) or _module_of(fusion.features)
        backbone = 0 if held is None else sum(p.numel() for p in held.parameters())
    network.to("cpu")
    task.train()
    return {
        "backbone_ms": backbone_ms,
        "network_ms": network_ms,
        "memory": float(memory),
        "backbone_parameters": float(backbone),
        "trained_parameters": float(
            sum(p.numel() for p in network.parameters() if p.requires_grad)
        ),
    }


def _module_of(features: Any) -> torch.nn.Module | None:  # noqa: ANN401
    backbone = getattr(features, "backbone", None)
    return backbone if isinstance(backbone, torch.nn.Module) else None


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _memory(device: torch.device) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return how to forget the peak of memory, and how to read it, in bytes."""
    if device.type == "cuda":
        return (
            lambda: torch.cuda.reset_peak_memory_stats(device),
            lambda: float(torch.cuda.max_memory_allocated(device)),
        )
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def reset() -> None:
        if clear.exists():
            # What the C library keeps of freed memory would hide what a pass takes.
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
            clear.write_text("5")

    def peak() -> float:
        if not status.exists():
            return math.nan
        text = status.read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return float(found[1]) * 1024 if found else math.nan

    return reset, peak


def scores_table(runs: Sequence[VariantRun], measure: str) -> tuple[list[str], np.ndarray]:
    """Return names and scores ``[variants, scenes, seeds]``, the start in front; NaN if missing.

    Pairs of one scene are averaged, so that scenes count alike.
    """
    names = [START, *dict.fromkeys(run.variant for run in runs)]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    scenes = list(dict.fromkeys(score.scene for run in runs for score in run.end))
    table = np.full((len(names), len(scenes), len(seeds)), np.nan)

    def fill(row: int, seed: int, scores: Sequence[PairScore]) -> None:
        for place, scene in enumerate(scenes):
            values = [getattr(s, measure) for s in scores if s.scene == scene]
            known = [value for value in values if not math.isnan(value)]
            if known:
                table[row, place, seeds.index(seed)] = math.fsum(known) / len(known)

    for run in runs:
        fill(names.index(run.variant), run.seed, run.end)
        if run.variant == runs[0].variant:
            fill(0, run.seed, run.start)
    return names, table
