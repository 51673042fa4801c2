"""The run folder: one place where every stage leaves its result and every later one finds it.

A stage writes its files under temporary names, renames them, and only then enters ``run.json`` as
finished. A killed run therefore holds finished stages and nothing half-written, and resumes at the
first stage that ``run.json`` does not list.
"""

import contextlib
import datetime
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sightline.errors import Cancelled, InputError, OutputError, SightlineError
from sightline.io.atomic import atomic_write_text
from sightline.io.sums import first_changed, sums_of

FORMAT = "sightline-run"
STAGES = ("ingest", "cameras", "views", "splats", "evaluate", "export", "report")
OWN_FILES = (
    "inputs.json",
    "images",
    "masks",
    "cameras.npz",
    "geometry.npz",
    "splats.ply",
    "exports",
    "renders",
    "checkpoints",
    "logs",
    "pictures",
    "report.html",
    "stages",
    "run.json",
)
"""What a run may contain, ``run.json`` last: removing in this order never leaves a folder that
looks finished."""


_KINDS = {
    "status": str,
    "config": dict,
    "stages": dict,
    "seconds": int | float,
    "peak_memory_mb": int | float,
    "warnings": list,
    "metrics": dict,
}
"""What ``run.json`` cannot do without."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process or of its largest child, in MB (10^6).

    Windows does not tell; there it is 0.
    """
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in usage) * unit / 1e6


def free_memory_bytes() -> float | None:
    """Return the bytes of main memory that can still be taken; None where nobody tells."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            sizes = {name: size.split()[0] for name, size in (line.split(":") for line in lines)}
        free = 1024.0 * int(sizes["MemAvailable"])
    except (OSError, KeyError, ValueError):
        return _physical()
    limit = _container_limit()
    return free if limit is None else min(free, limit)


def _physical() -> float | None:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def _container_limit() -> float | None:
    """Return what is left below the limit of a container (cgroup version 2), if there is one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
        cached = int(stat[stat.index("inactive_file") + 1])
    except (OSError, ValueError):
        return None
    return float(limit - used + cached)


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that decide the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("sightline", "torch", "numpy", "numba", "pycolmap", "opencv-python-headless"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class RunFolder:
    """A run folder that is being written or read.

    Attributes:
        path: The folder.
        state: What ``run.json`` holds.
    """

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        """Use ``create`` or ``open``."""
        self.path = path
        self.state = state

    @classmethod
    def create(
        cls,
        path: Path,
        config: dict[str, Any],
        *,
        overwrite: bool = False,
        beside: Collection[str] = (),
    ) -> "RunFolder":
        """Start a new run.

        Args:
            path: The folder.
            config: The resolved options.
            overwrite: Remove the run that is there.
            beside: Names that may be in the folder already, and are no part of the run.

        Raises:
            InputError: If the folder holds something already (and is a run only with ``overwrite``).
            OutputError: If the folder cannot be made.
        """
        if path.exists() and not path.is_dir():
            raise InputError(f"the output {path} is a file; give a folder with -o")
        if path.is_dir() and any(entry.name not in beside for entry in path.iterdir()):
            if not is_run(path):
                raise InputError(
                    f"the output folder {path} is not empty and is not a sightline run; "
                    "give a new folder with -o"
                )
            if not overwrite:
                raise InputError(
                    f"the output folder {path} already holds a run; continue it with --resume, "
                    "start again with --overwrite, or give another folder with -o"
                )
            old = cls.open(path)
            with old.locked():
                for name in OWN_FILES:
                    target = path / name
                    if target.is_dir() and not target.is_symlink():
                        shutil.rmtree(target)
                    else:
                        target.unlink(missing_ok=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the output folder {path}: {error.strerror}") from error
        run = cls(
            path,
            {
                "format": FORMAT,
                "version": 1,
                "created": _now(),
                "status": "running",
                "config": config,
                "seed": config.get("seed", 0),
                "versions": versions(),
                "machine": {
                    "system": platform.platform(),
                    "processor": platform.processor() or platform.machine(),
                    "cpus": os.cpu_count(),
                },
                "stages": {},
                "seconds": 0.0,
                "peak_memory_mb": 0.0,
                "checkpoints": [],
                "warnings": [],
                "metrics": {},
            },
        )
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            InputError: If the folder is not a run, or its ``run.json`` is damaged.
        """
        file = path / "run.json"
        if not file.is_file():
            raise InputError(
                f"{path} is not a sightline run (it has no run.json); give the folder that "
                "`sightline reconstruct -o` wrote"
            )
        try:
            if file.stat().st_size > 64_000_000:
                raise InputError(f"{file} is larger than 64 MB; it is not a run's run.json")
            state = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file} cannot be read as JSON ({error}); restore it") from error
        if (
            not isinstance(state, dict)
            or state.get("format") != FORMAT
            or state.get("version") != 1
            or not all(isinstance(state.get(key), kind) for key, kind in _KINDS.items())
        ):
            raise InputError(
                f'{file} is not a run of this version (expected format "{FORMAT}", version 1); '
                "run reconstruct again"
            )
        return cls(path, state)

    def file(self, *parts: str) -> Path:
        """Return a path inside the run."""
        return self.path.joinpath(*parts)

    def save(self) -> None:
        """Write ``run.json`` whole."""
        text = json.dumps(self.state, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write_text(self.path / "run.json", text + "\n")

    def finished(self, stage: str) -> bool:
        """Tell whether a stage has left its complete result."""
        return stage in self.state["stages"]

    def warn(self, text: str) -> None:
        """Note something that the user should know; saved with the stage."""
        if text not in self.state["warnings"]:
            self.state["warnings"].append(text)

    @contextlib.contextmanager
    def stage(self, name: str, leaves: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """Time a stage and enter it as finished when its block ends without an error.

        Args:
            name: Of the stage.
            leaves: Files and folders that are as they stay when it ends; `check_files` compares
                them with what they are then.

        Yields:
            A dictionary for facts of the stage (counts, sizes), kept in ``run.json``.
        """
        start = time.perf_counter()
        facts: dict[str, Any] = {}
        yield facts
        seconds = round(time.perf_counter() - start, 3)
        peak = round(peak_memory_mb(), 1)
        self.state["stages"][name] = {
            "seconds": seconds,
            "peak_memory_mb": peak,
            "finished": _now(),
            **facts,
        }
        if sums := sums_of(self.path, leaves):
            self.state["stages"][name]["sums"] = sums
        self.state["seconds"] = round(self.state["seconds"] + seconds, 3)
        self.state["peak_memory_mb"] = max(self.state["peak_memory_mb"], peak)
        self.save()

    def check_files(self) -> None:
        """Compare what finished stages left with what is there; a file may be gone, not changed.

        Raises:
            InputError: If a file was damaged or edited.
        """
        for stage, entry in self.state["stages"].items():
            sums = entry.get("sums") if isinstance(entry, dict) else None
            changed = first_changed(self.path, sums) if isinstance(sums, dict) else None
            if changed is not None:
                raise InputError(
                    f"{self.file(changed)} is not as the stage {stage} left it, so what follows "
                    "would not fit it; restore the file, or start again with --overwrite"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of this folder.

        Raises:
            InputError: If another process is writing the run.
        """
        with file_lock(self.path / "stages" / "lock", self.path):
            yield

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Keep ``status`` true to what happens inside: done, failed or cancelled."""
        self.state["status"] = "running"
        self.state.pop("error", None)
        self.save()
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            self._end("cancelled", None)
            raise
        except SightlineError as error:
            self._end("failed", str(error))
            raise
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        self._end("done", None)

    def _end(self, status: str, error: str | None) -> None:
        self.state["status"] = status
        self.state["ended"] = _now()
        if error is not None:
            self.state["error"] = error
        # A full disk must not hide the error that is on its way up.
        with contextlib.suppress(OutputError):
            self.save()


@contextlib.contextmanager
def file_lock(file: Path, place: Path) -> Iterator[None]:
    """Hold a file's lock; the system releases it when the process dies.

    Args:
        file: Made where it is missing, and left there.
        place: What the lock is for, for the error.

    Raises:
        InputError: If another process holds it.
    """
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as handle:
        try:
            _lock(handle)
        except OSError as error:
            raise InputError(
                f"another process is working in {place}; wait for it or give another folder with -o"
            ) from error
        yield


def _lock(handle: IO[str]) -> None:
    """Lock a file until it is closed; the system also releases it when the process dies."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def plain_values(value: Any) -> Any:  # noqa: ANN401
    """Return what JSON can hold: paths as texts, numbers that are none as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def is_run(path: Path) -> bool:
    """Tell whether a folder holds a run of ours."""
    try:
        RunFolder.open(path)
    except InputError:
        return False
    return True
