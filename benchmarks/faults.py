"""Break runs in every way that machines do, and see that nothing finished is lost.

    python benchmarks/faults.py [--each 12] [--verb NAME ...] [--seed 0]

Each verb first runs twice undisturbed on tiny made-up data; files that are equal byte for byte are
what it promises. Then it runs again and again, each time with one fault, and is resumed without it:

- ``killed at a step``: SIGKILL as it is about to open a file for writing, make a folder or rename;
- ``killed at a moment``: SIGKILL after a random time;
- ``disk full``: its disk is a file system in memory that holds only a share of what it writes;
- ``refused``: the system refuses one such step (permission, input/output error, quota, read-only);
- ``corrupted``: a bit of one file of an interrupted run is flipped, or the file is cut;
- ``clock``: time jumps by ten years, back or on, and files carry times of the past or the future.

After a fault, every file under its final name must be whole; what the verb says must be one sentence
with the exit code of its kind, without a traceback; resumed, it must give the promised bytes. A
``corrupted`` file may instead be refused with a sentence. One whose damage shows in the results and
nobody noticed is counted apart.

Linux, and for ``disk full`` the right to mount; without it that kind is left out, and said so.
"""

import argparse
import contextlib
import datetime
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, write
from PIL import Image

KINDS = (
    "killed at a step",
    "killed at a moment",
    "disk full",
    "refused",
    "corrupted",
    "clock",
)
ERRORS = (errno.EACCES, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ENOSPC)
STEPS = ("os.rename", "os.mkdir")
TEN_YEARS = 10 * 365 * 86400.0
LIMIT = 600.0
"""Seconds that one run may take, on a machine that is busy with others."""

Fault = Callable[[Path], None]
"""Called in the process that is about to work in the folder."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One verb to break.

    Attributes:
        words: The command line for an output folder; the same line resumes.
        promised: Patterns of files that must be among those that are equal byte for byte.
        untouched: Patterns of files that never change once they are there.
        told: Names of files that tell how it went, and so may differ after damage.
    """

    words: Callable[[Path], list[str]]
    promised: tuple[str, ...]
    untouched: tuple[str, ...] = ()
    told: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    code: int
    """Of the exit; negative for a signal."""
    said: str
    seconds: float
    steps: int
    """How many steps it took on the file system."""


@dataclass(kw_only=True)
class Tally:
    """What became of one kind of fault."""

    injected: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    resumed_equal: int = 0
    refused: int = 0
    """Corrupted files that were noticed, with a sentence."""
    unread: int = 0
    """Corrupted files that nothing looked at any more; they stay as they are."""
    unnoticed: int = 0
    """Corrupted files whose damage went into other results."""
    violations: list[str] = field(default_factory=list)
    sentences: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "injected": self.injected,
            "exit_codes": {str(code): n for code, n in sorted(self.codes.items())},
            "resumed_equal": self.resumed_equal,
            "refused": self.refused,
            "unread": self.unread,
            "unnoticed": self.unnoticed,
            "violations": self.violations,
            "sentences": sorted(self.sentences)[:6],
        }


def cases(data: Path) -> dict[str, Case]:
    """Return the verbs with tiny inputs, which are made below ``data``."""
    import numpy as np

    from sightline.datasets.synthetic import make_scene, write_scene
    from tests.probing import tiny
    from tests.training.splatt3r import small as splatt3r
    from tests.training.vggt import small as vggt

    write_scene(make_scene(5, 24, 32, kind="simple", num_points=300), data / "photos")
    grid = tiny.grid(changes={**tiny.CHANGES, "steps": 3, "warm_steps": 2})
    (data / "grid.json").write_text(json.dumps(grid))
    rng = np.random.default_rng(0)
    for index in range(6):
        file = data / "pictures" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).save(file)
    often = {"steps": 3, "checkpoint_every": 1, "val_every": 2}
    dino = {
        **often,
        "data": str(data / "pictures"),
        "batch_size": 2,
        "model": "dinov3_tiny",
        "model_options": {"patch_size": 8, "depth": 1, "embed_dim": 64, "num_heads": 1},
        "global_size": 16,
        "local_size": 8,
        "local_crops": 1,
        "prototypes": 8,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "loggers": "csv",
        "device": "cpu",
    }
    trainers = {
        "dino": dino,
        "vggt": {**vggt.settings(**often).as_dict()},
        "splatt3r": {**splatt3r.settings(**often).as_dict()},
    }
    found = {
        "reconstruct": Case(
            words=lambda out: [
                *("reconstruct", str(data / "photos"), "-o", str(out), "--resume"),
                *("--geometry", "given", "--steps", "6", "--max-splats", "400"),
                *("--test-every", "4", "--export", "ply,transforms,depth"),
            ],
            promised=("cameras.npz", "geometry.npz", "splats.ply", "renders/**/*.png"),
        ),
        "prepare": Case(
            words=lambda out: [
                *("prepare", str(data / "pictures"), "-o", str(out)),
                *("--size", "16", "--workers", "1"),
            ],
            promised=("**/*.png",),
            told=(".prepare.jsonl",),
        ),
        "probe run": Case(
            words=lambda out: [
                *("probe", "run", "--config", str(data / "grid.json"), "-o", str(out)),
            ],
            promised=("store/**/*.npz", "store/**/splats.ply"),
            untouched=("store/*/[!.]*/*",),
        ),
    }
    for name, options in trainers.items():
        file = data / f"{name}.yaml"
        file.write_text(json.dumps({k: v for k, v in options.items() if v is not None}))
        found[f"train {name}"] = Case(
            words=lambda out, name=name, file=file: [
                *("train", name, "--config", str(file), "-o", str(out), "--resume"),
            ],
            promised=("checkpoints/*custom.pt",),
            told=("logs/train.csv", "logs/validation.csv"),
        )
    return found


# -- one run --------------------------------------------------------------------------------------


def run(
    case: Case, out: Path, logs: Path, fault: Fault | None = None, kill_after: float = LIMIT
) -> Ended:
    """Run a verb in a process of its own; ``logs`` is a folder that no fault hits."""
    said, steps = logs / "said", logs / "steps"
    steps.write_bytes(b"")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _work(case.words(out), out, said, steps, fault)
    killed = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if not killed and time.monotonic() - began > kill_after:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.01)
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        said=said.read_text("utf-8", "replace"),
        seconds=time.monotonic() - began,
        steps=steps.stat().st_size,
    )


def _work(words: list[str], out: Path, said: Path, steps: Path, fault: Fault | None) -> None:
    """Do a verb's work in this process, and end it."""
    code = 70
    try:
        told = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        counter = os.open(steps, os.O_WRONLY | os.O_APPEND)
        _on_step(out, lambda _: os.write(counter, b"."))
        if fault is not None:
            fault(out)
        from sightline.cli import main

        try:
            main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - what gets here is a finding, and is shown
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _on_step(out: Path, act: Callable[[str], object]) -> None:
    """Call ``act`` with a path before each step on the file system below ``out``."""
    root = str(out)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (
                bool(set(mode) & set("wax+"))
                if isinstance(mode, str)
                else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            )
        elif event in STEPS:
            path, writes = arguments[0], True
        else:
            return
        if writes and isinstance(path, (str, bytes, os.PathLike)):
            text = os.fsdecode(path)
            # A folder that is there already is asked for again and again, and nothing happens.
            if text.startswith(root) and not (event == "os.mkdir" and Path(text).is_dir()):
                act(text)

    sys.addaudithook(hear)


def at_step(number: int, act: Callable[[str], object]) -> Fault:
    """Return a fault that acts at one step."""

    def fault(out: Path) -> None:
        count = iter(range(1, 1 << 40))

        def step(path: str) -> None:
            if next(count) == number:
                act(path)

        _on_step(out, step)

    return fault


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(code: int) -> Callable[[str], object]:
    """Return what refuses a step as the system would."""

    def act(path: str) -> None:
        raise OSError(code, os.strerror(code), path)

    return act


def move_clock(seconds: float, after: int) -> Fault:
    """Return a fault that moves the clock once it was read a few times."""

    def fault(_: Path) -> None:
        real, count = time.time, iter(range(1 << 40))

        def now() -> float:
            return real() + (seconds if next(count) >= after else 0.0)

        class Moved(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
                return cls.fromtimestamp(now(), tz)

        time.time = now
        datetime.datetime = Moved

    return fault


# -- what is left ---------------------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    """Return the digests of all files under their final names."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and ".tmp" not in name:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def broken(folder: Path) -> list[str]:
    """Return files under their final names that are not whole."""
    return [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".tmp" not in str(file.relative_to(folder)) and not _whole(file)
    ]


def _whole(file: Path) -> bool:
    data = file.read_bytes()
    try:
        if file.suffix == ".json":
            json.loads(data)
        elif file.suffix in (".npz", ".pt"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return archive.testzip() is None
        elif file.suffix in (".png", ".jpg"):
            Image.open(io.BytesIO(data)).load()
        elif file.suffix == ".html":
            return data.rstrip().endswith(b"</html>")
        elif file.suffix == ".ply":
            head, _, body = data.partition(b"end_header\n")
            return bool(body) == (b"vertex 0\n" not in head)
    except (ValueError, OSError, zipfile.BadZipFile, SyntaxError):
        return False
    return True


def wrong_words(ended: Ended) -> str:
    """Return what is wrong with how a run that failed has ended."""
    lines = [line for line in ended.said.splitlines() if line.startswith("sightline ")]
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said[-400:]}"
    if ended.code < 0 or ended.code == 70:
        return f"ended with {ended.code}: {ended.said[-300:]}"
    if ended.code not in (1, 2, 4):
        return f"exit code {ended.code}"
    if len(lines) != 1 or "internal error" in lines[0]:
        return f"no sentence of its own: {lines or ended.said[-300:]}"
    return ""


def sentence(ended: Ended) -> str:
    """Return what a run said, without the names of folders."""
    lines = [line for line in ended.said.splitlines() if line.startswith("sightline ")]
    text = lines[-1] if lines else ""
    return " ".join(Path(w).name if w.startswith("/") else w for w in text.split())[:200]


# -- the trials -----------------------------------------------------------------------------------


class Trials:
    """All faults of one verb."""

    def __init__(self, name: str, case: Case, base: Path, seed: int) -> None:
        """Run it twice undisturbed."""
        self.name, self.case, self.base = name, case, base
        self.rng = random.Random(f"{seed} {name}")
        self.count = 0
        self.logs = base / "logs"
        self.logs.mkdir()
        first = run(case, base / "first", self.logs)
        time.sleep(1.1)  # times are written in seconds; equal ones are no promise
        second = run(case, base / "second", self.logs)
        for ended in (first, second):
            if ended.code != 0:
                raise RuntimeError(f"{name} fails undisturbed: {ended.said}")
        found, again = hashes(base / "first"), hashes(base / "second")
        self.promised = {k: v for k, v in found.items() if again.get(k) == v}
        missing = [
            path.name
            for pattern in case.promised
            for path in (base / "first").glob(pattern)
            if path.relative_to(base / "first").as_posix() not in self.promised
        ]
        if missing or not self.promised:
            raise RuntimeError(f"{name} does not repeat {missing}")
        self.steps, self.seconds = second.steps, second.seconds
        self.size = sum(f.stat().st_size for f in (base / "first").rglob("*") if f.is_file())

    def folder(self) -> Path:
        """Return a new place for an output."""
        self.count += 1
        place = self.base / f"t{self.count}"
        place.mkdir()
        return place / "out"

    def run(self, out: Path, fault: Fault | None = None, kill_after: float = LIMIT) -> Ended:
        """Run the verb."""
        return run(self.case, out, self.logs, fault, kill_after)

    def places(self, count: int) -> list[int]:
        """Return steps spread over the run, the first and the last among them."""
        if count >= self.steps:
            return list(range(1, self.steps + 1))
        return sorted({1 + round(i * (self.steps - 1) / max(count - 1, 1)) for i in range(count)})

    def settle(self, tally: Tally, out: Path, what: str, ended: Ended) -> None:
        """Check what a fault left, resume, and check that all is there."""
        tally.injected += 1
        tally.codes[ended.code] += 1
        if ended.code > 0:
            tally.sentences.add(sentence(ended))
        bad = broken(out) if out.is_dir() else []
        if bad:
            tally.violations.append(f"{what}: half-written {bad[:3]}")
        before = hashes(out) if out.is_dir() else {}
        self.resume(tally, out, what, before)

    def resume(self, tally: Tally, out: Path, what: str, before: dict[str, str]) -> None:
        """Resume without a fault: all that is promised must be there, and nothing lost."""
        ended = self.run(out)
        after = hashes(out)
        kept = {
            path.relative_to(out).as_posix()
            for pattern in self.case.untouched
            for path in out.glob(pattern)
        }
        lost = [
            name
            for name, digest in before.items()
            if (self.promised.get(name) == digest or name in kept) and after.get(name) != digest
        ]
        unlike = [name for name, digest in self.promised.items() if after.get(name) != digest]
        if ended.code != 0:
            tally.violations.append(f"{what}: resuming gives {ended.code}: {ended.said[-300:]}")
        elif lost or unlike:
            tally.violations.append(f"{what}: lost {lost[:3]}, unlike {unlike[:3]}")
        else:
            tally.resumed_equal += 1

    def killed_at_a_step(self, tally: Tally, count: int) -> None:
        """Kill before steps all over the run."""
        for step in self.places(count):
            out = self.folder()
            ended = self.run(out, at_step(step, _kill))
            self.settle(tally, out, f"killed at step {step} of {self.steps}", ended)

    def killed_at_a_moment(self, tally: Tally, count: int) -> None:
        """Kill after random times."""
        for _ in range(count):
            out, after = self.folder(), self.rng.uniform(0.05, 0.95) * self.seconds
            ended = self.run(out, kill_after=after)
            self.settle(tally, out, f"killed after {after:.2f} s", ended)

    def disk_full(self, tally: Tally, count: int) -> None:
        """Give too small a disk, and then more of it."""
        for index in range(count):
            share = (index + 0.5) / count
            out = self.folder()
            room = max(4096, int(share * self.size))
            with mounted(out.parent / "disk", room) as grow:
                out = out.parent / "disk" / "out"
                ended = self.run(out)
                if ended.code != 0 and (problem := wrong_words(ended)):
                    tally.violations.append(f"disk of {room} bytes: {problem}")
                grow()
                self.settle(tally, out, f"disk of {room} bytes", ended)

    def refused(self, tally: Tally, count: int) -> None:
        """Let the system refuse one step."""
        for index, step in enumerate(self.places(count)):
            code = ERRORS[index % len(ERRORS)]
            out = self.folder()
            ended = self.run(out, at_step(step, refuse(code)))
            what = f"{errno.errorcode[code]} at step {step} of {self.steps}"
            if ended.code != 0 and (problem := wrong_words(ended)):
                tally.violations.append(f"{what}: {problem}")
            self.settle(tally, out, what, ended)

    def corrupted(self, tally: Tally, count: int) -> None:
        """Damage one file of an interrupted run."""
        for step in self.places(count + 2)[1:-1]:
            out = self.folder()
            self.run(out, at_step(step, _kill))
            files = [out / name for name in hashes(out)]
            files = [file for file in files if file.stat().st_size]
            if not files:
                continue
            file = self.rng.choice(files)
            name = file.relative_to(out).as_posix()
            data = bytearray(file.read_bytes())
            if self.rng.random() < 0.5:
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            else:
                del data[self.rng.randrange(len(data)) :]
            file.write_bytes(data)
            before = {k: v for k, v in hashes(out).items() if k != name}
            ended = self.run(out)
            tally.injected += 1
            tally.codes[ended.code] += 1
            after = hashes(out)
            lost = [k for k, v in before.items() if self.promised.get(k) == v and after.get(k) != v]
            what = f"{name} damaged, found at step {step}"
            if lost:
                tally.violations.append(f"{what}: lost {lost[:3]}")
            if ended.code != 0:
                tally.sentences.add(sentence(ended))
                tally.refused += 1
                if problem := wrong_words(ended):
                    tally.violations.append(f"{what}: {problem}")
                continue
            unlike = {k for k, v in self.promised.items() if after.get(k) != v}
            if unlike - {name} - {*self.case.told}:
                tally.unnoticed += 1
                tally.sentences.add(f"unnoticed: {what}")
            elif unlike - {*self.case.told}:
                tally.unread += 1
                tally.sentences.add(f"unread: {what}")
            else:
                tally.resumed_equal += 1

    def clock(self, tally: Tally, count: int) -> None:
        """Move the clock, in a whole run and between a kill and its resumption."""
        for index in range(count):
            jump = TEN_YEARS * (1 if index % 2 else -1)
            out = self.folder()
            if index % 4 < 2:
                ended = self.run(out, move_clock(jump, self.rng.randrange(6)))
                if ended.code != 0:
                    tally.violations.append(f"clock moved: {ended.code} {ended.said[-300:]}")
            else:
                ended = self.run(out, at_step(self.rng.randint(2, self.steps), _kill))
                then = time.time() + jump
                for file in [*out.rglob("*"), out] if out.is_dir() else []:
                    os.utime(file, (then, then))
            self.settle(tally, out, f"clock moved by {jump:.0f} s", ended)


@contextlib.contextmanager
def mounted(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """Mount a file system in memory; yields what makes it large."""
    place.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(place))
    try:
        yield lambda: _call("mount", "-o", "remount,size=256m", str(place))
    finally:
        _call("umount", str(place))


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Say whether file systems can be mounted here."""
    try:
        with mounted(folder / "try", 1 << 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def break_verb(
    name: str, case: Case, base: Path, seed: int, each: int, kinds: Sequence[str]
) -> dict[str, Any]:
    """Return what became of all faults of a verb."""
    trials = Trials(name, case, base, seed)
    row: dict[str, Any] = {
        "seconds": round(trials.seconds, 2),
        "steps": trials.steps,
        "promised_files": len(trials.promised),
        "kinds": {},
    }
    for kind in kinds:
        tally = Tally()
        getattr(trials, kind.replace(" ", "_"))(tally, each)
        row["kinds"][kind] = tally.as_dict()
        print(f"{name:16} {kind:20} {json.dumps(tally.as_dict())}", flush=True)
    return row


def main() -> None:
    """Break all verbs and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=12, help="faults of each kind and verb")
    parser.add_argument("--verb", nargs="*", default=None)
    parser.add_argument("--kind", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep other verbs of the output")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    _import_all()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        base = Path(folder)
        kinds = [kind for kind in arguments.kind or KINDS if kind != "disk full" or can_mount(base)]
        verbs = {}
        for name, case in cases(base / "data").items():
            if arguments.verb is None or name in arguments.verb:
                place = base / name.replace(" ", "-")
                place.mkdir()
                verbs[name] = break_verb(name, case, place, arguments.seed, arguments.each, kinds)
                shutil.rmtree(place)
    if arguments.add and arguments.output.is_file():
        verbs = {**json.loads(arguments.output.read_text("utf-8"))["verbs"], **verbs}
    rows = [row for verb in verbs.values() for row in verb["kinds"].values()]
    keys = ("injected", "resumed_equal", "refused", "unread", "unnoticed")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in keys}
    total["violations"] = sum(len(row["violations"]) for row in rows)
    print(total)
    missing = sorted({*KINDS} - {*kinds})
    content = {"seed": arguments.seed, "total": total, "left_out": missing, "verbs": verbs}
    write(arguments.output, content)


def _import_all() -> None:
    """Import what the verbs do, so that each process begins with it; nothing is computed."""
    import importlib

    for name in (
        *("sightline.cli.reconstruct", "sightline.cli.prepare", "sightline.cli.probe"),
        *("sightline.cli.train", "sightline.pipeline", "sightline.probing.grid", "lightning"),
        *("sightline.training.engine", "sightline.training.dino", "sightline.training.vggt"),
        *("sightline.training.splatt3r", "sightline.training.report", "sightline.probing.report"),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
