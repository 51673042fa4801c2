"""The files of a job: found, put in place below its folder, and named on its command line."""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.app.jobs.kinds import Kind, Made, Role
from sightline.app.jobs.record import Job
from sightline.app.jobs.weights import Weights
from sightline.app.jobs.words import build_words, shown_command
from sightline.errors import InputError

OUTPUT, INPUTS, FILES = "output", "inputs", "files"
_MOST_WORDS = 500
"""Positional inputs that are named one by one."""
_SHOWN = 20
_MARKS: dict[Made, str] = {"scene": "run.json", "grid": "grid.json"}
"""Files by which folders are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file behind a reference."""

    path: Path
    name: str
    kind: str
    shared: bool = False
    """Whether it stays where it is, because it is the server's."""


def check_kinds(what: str, kinds: Sequence[str], found: Sequence[Found]) -> None:
    """Compare what files are with what is expected.

    Raises:
        InputError: If one is something else.
    """
    for one in found:
        if one.kind not in kinds:
            wanted = " or ".join(kinds)
            raise InputError(f"{what}: expected {wanted}, but {one.name} is a {one.kind} file")


def make_folder(
    folder: Path,
    job: Job,
    kind: Kind,
    positional: Sequence[Found],
    roles: Mapping[str, Sequence[Found]],
) -> Job:
    """Make a job's folder with its files, under the names that they had; return the full record."""
    folder.mkdir(mode=0o700)
    (folder / OUTPUT).mkdir()
    inputs = tuple(_place(folder, Path(INPUTS), one) for one in _named(positional))
    files: dict[str, str] = {}
    weights: dict[str, str] = {}
    for role, found in roles.items():
        home = Path(FILES) / role
        if kind.roles[role].shape == "folder":
            placed = [_place(folder, home, one) for one in _named(found)]
            files[role] = _folder_or_list(kind.roles[role], home, placed)
        elif found[0].shared:
            weights[role] = found[0].name
        else:
            files[role] = _place(folder, home, found[0])
    job = dataclasses.replace(job, inputs=inputs, files=files, weights=weights)
    return dataclasses.replace(job, command=command_of(job, kind))


def words_of(job: Job, kind: Kind, root: Path, weights: Weights) -> list[str]:
    """Return the command line that runs a job.

    Raises:
        InputError: If weights or a scene that it needs have gone.
    """
    folder = root / job.id
    scene = None
    if job.scene is not None:
        scene = made_below(root / job.scene, kind.works_on)
        if scene is None:
            raise InputError(f"the scene of job {job.scene} is no longer there; choose another")
    files = {role: str(folder / path) for role, path in job.files.items()}
    files |= {role: str(weights.find(name)) for role, name in job.weights.items()}
    return build_words(
        kind,
        job.options,
        inputs=_positional(kind, folder, job.inputs),
        files=files,
        scene=None if scene is None else str(scene),
        output=None if kind.output is None else str(folder / OUTPUT / kind.output),
        models=str(weights.folder),
        again=job.attempts > 1,
    )


def made_below(folder: Path, what: Made = "scene") -> Path | None:
    """Return the folder that a job has made or is making, None where there is none."""
    found = sorted((folder / OUTPUT).glob(f"*/{_MARKS[what]}"))
    return found[0].parent if found else None


def command_of(job: Job, kind: Kind) -> str:
    """Return the command line for people to copy, with the names that files had."""
    names = [path.removeprefix(f"{INPUTS}/") for path in job.inputs[:_SHOWN]]
    several = [*names, *(["..."] if len(job.inputs) > _SHOWN else [])]
    words = build_words(
        kind,
        job.options,
        inputs=["photos/"] if kind.together else several,
        files={**{role: Path(path).name for role, path in job.files.items()}, **job.weights},
        scene=None if job.scene is None else kind.works_on,
        output=kind.output,
    )
    return shown_command(words, kind)


def _named(found: Sequence[Found]) -> list[Found]:
    """Tell equal names apart by number."""
    seen: set[str] = set()
    named = []
    for one in found:
        path, number, name = Path(one.name), 2, one.name
        while name.lower() in seen:
            name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
            number += 1
        seen.add(name.lower())
        named.append(dataclasses.replace(one, name=name))
    return named


def _place(folder: Path, home: Path, found: Found) -> str:
    """Put a file below a job's folder: a second name for the same bytes, or a copy."""
    relative = home / found.name
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    if found.shared:
        target.symlink_to(found.path)
        return relative.as_posix()
    try:
        os.link(found.path, target)
    except OSError:
        shutil.copyfile(found.path, target)
    return relative.as_posix()


def _folder_or_list(role: Role, home: Path, placed: Sequence[str]) -> str:
    """Return what an option of several files names: their folder, or the one list among them."""
    lists = [path for path in placed if path.endswith(".json")]
    if "text" in role.kinds and len(lists) == 1:
        return lists[0]
    return home.as_posix()


def _positional(kind: Kind, folder: Path, inputs: Sequence[str]) -> list[str]:
    """Return positional words: every file, or their folder where they belong together."""
    nested = any(path.count("/") > 1 for path in inputs)
    texts = any(path.endswith((".json", ".bin", ".txt")) for path in inputs)
    together = kind.together or nested or texts or len(inputs) > _MOST_WORDS
    if together and len(inputs) > 1:
        return [str(folder / INPUTS)]
    return [str(folder / path) for path in inputs]
