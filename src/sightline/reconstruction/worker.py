"""The process that runs COLMAP: ``python -m sightline.reconstruction.worker WORKSPACE``.

It is a process of its own so that it can be stopped at any moment, so that COLMAP's log goes to a
file and not to the user's terminal, and so that its memory is given back. It loads no torch. It
ends when its parent does, because the pipe on its standard input closes then.

The workspace is resumed: features and matches of the same pictures and settings are kept, and a
finished result is not computed again.
"""

import json
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from sightline.errors import SightlineError
from sightline.reconstruction.adjust import adjust
from sightline.reconstruction.features import create_database, extract_features
from sightline.reconstruction.job import JOB, LOG, RESULT, Job, Keys, keys_of
from sightline.reconstruction.log import Report
from sightline.reconstruction.mapping import Mapped, map_views
from sightline.reconstruction.matching import (
    choose_pairs,
    coarse_descriptors,
    coarse_matches,
    match_pairs,
    read_pairs,
)
from sightline.reconstruction.reasons import Evidence, reason
from sightline.reconstruction.refine import refine
from sightline.reconstruction.triangulate import point_arrays, posed_model, triangulate

_STATE = "state.json"
_DATABASE, _FEATURES, _PAIRS, _MODELS = "database.db", "features", "pairs.txt", "models"


class Workspace:
    """Files of one reconstruction, and which of them are finished."""

    def __init__(self, folder: Path) -> None:
        """Take a folder that exists."""
        self.folder = folder
        self.database = folder / _DATABASE
        self.features = folder / _FEATURES
        self.pairs = folder / _PAIRS
        self.models = folder / _MODELS
        try:
            self._state: dict[str, object] = json.loads((folder / _STATE).read_text())
        except (OSError, ValueError):
            self._state = {}

    def holds(self, stage: str, key: str) -> bool:
        """Tell whether a stage was finished with the same inputs."""
        return self._state.get(stage) == key

    def finish(self, stage: str, key: str) -> None:
        """Record a finished stage, in one step."""
        self._state[stage] = key
        self._write()

    def forget(self) -> None:
        """Remove everything that depends on other inputs."""
        self._state = {}
        self._write()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.database.with_name(_DATABASE + suffix).unlink(missing_ok=True)
        shutil.rmtree(self.features, ignore_errors=True)
        (self.folder / RESULT).unlink(missing_ok=True)

    def _write(self) -> None:
        part = self.folder / (_STATE + ".part")
        part.write_text(json.dumps(self._state))
        part.replace(self.folder / _STATE)


def run(folder: Path, report: Report) -> None:
    """Do the job that lies in ``folder`` and leave ``result.npz`` there."""
    job = Job.read(folder / JOB)
    keys = keys_of(job, pycolmap.__version__)
    space = Workspace(folder)
    if space.holds("result", keys.result) and (folder / RESULT).exists():
        return
    clock = {"start": time.perf_counter()}
    _features(job, keys, space, report)
    clock["features"] = time.perf_counter()
    _matches(job, keys, space, report)
    clock["matching"] = time.perf_counter()
    if job.w2c is not None:
        report.progress("points", 0, 1)
        given = posed_model(job)
        if job.settings.adjust:
            model = adjust(job, given, space.database, space.models, report)
        else:
            model = triangulate(job, given, space.database, space.models, keep=False)
        placed = frozenset(range(len(job.names)))
        mapped = Mapped(model, placed, space.database, ["given"])
    else:
        mapped = _map(job, space, report)
    clock["mapping"] = time.perf_counter()
    arrays = _arrays(job, mapped, space)
    ends = list(clock.values())
    arrays["seconds"] = np.diff(ends)
    shutil.rmtree(space.models, ignore_errors=True)
    (folder / "more.db").unlink(missing_ok=True)
    part = folder / "result.part.npz"
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    part.replace(folder / RESULT)
    space.finish("result", keys.result)


def _features(job: Job, keys: Keys, space: Workspace, report: Report) -> None:
    if not space.holds("extracting", keys.features):
        space.forget()
        create_database(job, space.database)
        space.finish("extracting", keys.features)
    if not space.holds("features", keys.features):
        extract_features(job, space.database, space.features, report)
        space.finish("features", keys.features)


def _matches(job: Job, keys: Keys, space: Workspace, report: Report) -> None:
    if not space.holds("pairing", keys.matches):
        with pycolmap.Database.open(space.database) as database:
            database.clear_matches()
            database.clear_two_view_geometries()
        space.finish("pairing", keys.matches)
    if not space.holds("matches", keys.matches):
        views = len(job.names)
        counts = coarse_matches(coarse_descriptors(space.database, views), report)
        settings = job.settings
        pairs = choose_pairs(counts, job.sequences, settings.matching, settings.neighbors)
        match_pairs(job, space.database, pairs, space.pairs, report)
        space.finish("matches", keys.matches)


def _map(job: Job, space: Workspace, report: Report) -> Mapped:
    def match_more(missing: frozenset[int]) -> Path | None:
        views = len(job.names)
        pairs = np.zeros((views, views), bool)
        for view in missing:
            pairs[view] = pairs[:, view] = True
        np.fill_diagonal(pairs, val=False)
        pairs &= ~read_pairs(space.pairs, views)
        if not pairs.any():
            return None
        # In a copy, so that a run that is stopped here starts from the same matches again.
        copy = space.folder / "more.db"
        shutil.copyfile(space.database, copy)
        match_pairs(job, copy, pairs, space.folder / "more.txt", report)
        return copy

    mapped = map_views(job, space.database, space.models, report, match_more)
    if mapped.model is None:
        return mapped
    report.progress("refine", 0, 2)
    refine(job, mapped.model)
    report.progress("refine", 1, 2)
    model = triangulate(job, mapped.model, mapped.database, space.models, keep=True)
    report.progress("refine", 2, 2)
    return replace(mapped, model=model)


def _arrays(job: Job, mapped: Mapped, space: Workspace) -> dict[str, np.ndarray]:
    """Return the result as plain arrays; cameras in pixels of SIFT's pictures."""
    views = len(job.names)
    w2c = np.full((views, 4, 4), np.nan)
    models = np.full(views, "", "U32")
    params = np.zeros((views, 16))
    num_params = np.zeros(views, int)
    evidence = Evidence(job, mapped.database)
    reasons = [
        "" if view in mapped.placed else reason(job, evidence, view, mapped.placed)
        for view in range(views)
    ]
    arrays: dict[str, np.ndarray] = {}
    if mapped.model is not None:
        for view in sorted(mapped.placed):
            image = mapped.model.image(view + 1)
            w2c[view] = np.eye(4)
            w2c[view, :3] = image.cam_from_world().matrix()
        for view in range(views):
            camera = mapped.model.camera(job.camera_of_view[view] + 1)
            models[view] = camera.model.name
            num_params[view] = len(camera.params)
            params[view, : num_params[view]] = camera.params
        arrays = point_arrays(job, mapped.model, space.features)
    return arrays | {
        "w2c": w2c,
        "models": models,
        "params": params,
        "num_params": num_params,
        "sift_sizes": np.array([job.sift_size(view) for view in range(views)]),
        "reasons": np.array(reasons),
        "attempts": np.array(mapped.attempts, "U32"),
        "features": evidence.features,
        "matches": evidence.matches,
    }


def _end_with_parent() -> None:
    """Leave when standard input closes: the parent has gone, killed or not."""
    os.read(0, 1)
    os._exit(1)


def main(folder: Path) -> int:
    """Run as a process; standard error is the log file, which also takes what libraries print."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pycolmap.logging.logtostderr = True
    threading.Thread(target=_end_with_parent, daemon=True).start()
    report = Report(messages, folder / LOG)
    try:
        run(folder, report)
    except SightlineError as error:
        report.say({"error": type(error).__name__, "text": str(error)})
        return 1
    report.say({"finished": True})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
