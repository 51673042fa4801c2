"""Attack every reader with damaged files, and count.

    python benchmarks/fuzz.py [--executions 1000000] [--reader NAME ...] [--rounds 20] [--seed 0]

Each reader gets valid files of its format, made here by our own writers, and then damaged ones: bits
flipped, numbers replaced by extreme ones, pieces cut, repeated, swapped between files. A damaged
file that reaches a line of ours which none reached before is kept and damaged further.

A reader may succeed, or raise an error of `sightline.errors` that is one sentence. Everything else
is a finding, and its file is kept: another exception, a warning, more than ten seconds of the
processor, more than 400 MB that were not there before, a file written or removed elsewhere, another
program started, a process that dies or stands still.

Readers run in processes of their own, which are watched from outside. The work goes on in rounds,
and with ``--state DIR`` an interrupted run continues where it stopped. At the end every finding is
tried again: those that no longer break their reader count as mended.
"""

import argparse
import contextlib
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, write
from fuzz_damage import damage
from fuzz_readers import Target, make_targets, shares

import sightline
from sightline.errors import SightlineError
from sightline.io.atomic import atomic_write_bytes

SECONDS = 10
"""Of the processor, for one file."""
STANDSTILL = 120
"""Seconds of the clock without any progress."""
MEMORY = 400 << 20
CEILING = 8 << 30
"""Address space beyond what a process starts with: stops a runaway before the machine suffers."""
MOST_KEPT = 300
FIRST, EVERY = 300, 4
"""Lines are noted in the first executions of a round, and then in every fourth: it costs time."""
_OURS = str(Path(sightline.__file__).parent)
_ACTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod")


class TooSlow(BaseException):
    """Not an `Exception`: no reader may swallow it."""


class Lines:
    """Which lines of ours were reached."""

    def __init__(self) -> None:
        """Start with none."""
        self.reached: set[tuple[int, int]] = set()
        self.news = False
        self._known: dict[int, bool] = {}
        self._codes: list[object] = []  # kept alive, so that their ids stay theirs

    @contextlib.contextmanager
    def watch(self, *, off: bool = False) -> Iterator[None]:
        """Note lines, unless ``off``; ``news`` says whether one was new."""
        self.news = False
        if off:
            yield
            return
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ANN401
        code = frame.f_code
        ours = self._known.get(id(code))
        if ours is None:
            ours = self._known[id(code)] = code.co_filename.startswith(_OURS)
            self._codes.append(code)
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ANN401
        place = (id(frame.f_code), frame.f_lineno)
        if place not in self.reached:
            self.reached.add(place)
            self.news = True
        return self._line


class Watch:
    """What a reader does besides reading."""

    def __init__(self, *allowed: Path | None) -> None:
        """Allow everything inside some folders."""
        self.seen: list[str] = []
        self.on = False
        self._allowed = tuple(str(folder) for folder in allowed if folder is not None)
        self._relative = len(self._allowed) > 1  # inside a folder that is open
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if (
            event == "open"
            and isinstance(arguments[1], str)
            and set(arguments[1]) & set("wax+")
            or event in _CHANGES
        ):
            self._note(event, arguments[0])
        elif event in _ACTS:
            self.seen.append(event)

    def _note(self, event: str, path: object) -> None:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
        inside = text.startswith(self._allowed) or (self._relative and not text.startswith("/"))
        if not inside:
            self.seen.append(f"{event} {text}")


def work(
    name: str,
    target: Target,
    count: int,
    first: int,
    seed: int,
    link: Any,  # noqa: ANN401
    scratch: Path,
) -> None:
    """Attack one reader in this process from execution ``first`` on, and tell what happens.

    ``link.at`` is the number of the execution at work.
    """
    for other, content in target.beside.items():
        _placed(scratch / other, content)
    _bound()
    # What readers import, open and keep at first is not what is looked for.
    refused: list[str] = []
    for file in target.files:
        try:
            target.read(_placed(scratch / target.name, (target.wrap or bytes)(file)))
        except BaseException as error:  # noqa: BLE001 - told below
            refused.append(repr(error))
    if len(refused) == len(target.files):
        link.queue.put(("broken", f"{name} reads no valid file: {refused}"))
        return
    warnings.simplefilter("error")
    try:
        _attack(name, target, count, first, seed, link, scratch)
    except BaseException as error:
        link.queue.put(("broken", f"the attack on {name} itself failed: {error!r}"))
        raise


def _attack(
    name: str,
    target: Target,
    count: int,
    first: int,
    seed: int,
    link: Any,  # noqa: ANN401
    scratch: Path,
) -> None:
    place, lines, watch = scratch / target.name, Lines(), Watch(scratch, target.own)
    kept: list[bytes] = list(link.kept)
    errors = accepted = 0
    before = _peak()
    for number in range(first, count):
        link.at.value = number
        rng = random.Random(f"{name} {seed} {number}")
        grown = bool(kept) and rng.random() < 0.5
        inner = damage(rng, kept if grown else target.files)
        # Half of the files are closed up again; the others show how the outside is checked.
        closed = target.wrap is not None and rng.random() < 0.8
        data = target.wrap(inner) if closed and target.wrap is not None else inner
        _placed(place, data)
        watch.seen.clear()
        problem = ""
        watch.on = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with lines.watch(off=number % EVERY != 0 and number > FIRST):
                target.read(place)
            accepted += 1
        except SightlineError as error:
            errors += 1
            if "\n" in str(error) or len(str(error)) < 15:
                problem = f"an error that is no sentence: {error!r}"
        except TooSlow:
            problem = f"more than {SECONDS} s"
        except SystemExit as error:  # what the command line's parser does
            errors += 1
            problem = "" if error.code == 2 else f"exit code {error.code}"
        except BaseException as error:  # noqa: BLE001 - every other kind is what is looked for
            problem = f"{type(error).__name__}: {error}{_where(error)}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            watch.on = False
        if lines.news and len(kept) < MOST_KEPT and len(inner) < 1 << 16:
            kept.append(inner)
            link.queue.put(("kept", inner))
        now = _peak()
        if now - before > MEMORY:
            problem = problem or f"{(now - before) >> 20} MB taken"
        before = max(before, now)
        if watch.seen:
            problem = problem or f"did something else: {watch.seen[:3]}"
        if problem:
            link.queue.put(("finding", number, problem, data))
    link.queue.put(("done", errors, accepted, len(lines.reached), time.process_time()))


def _where(error: BaseException) -> str:
    """Return the last place of ours in a traceback."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(_OURS):
            place = f" ({Path(code.co_filename).relative_to(_OURS)}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _bound() -> None:
    """Give this process an alarm and a ceiling."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, too_slow)
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + CEILING, now + CEILING))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries in C write there too
        os.dup2(silent, stream)


def _placed(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Link:
    """What a process and its watcher share."""

    def __init__(self, context: Any, kept: list[bytes], first: int) -> None:  # noqa: ANN401
        """Begin with files that were kept before."""
        self.queue = context.SimpleQueue()
        self.at = context.Value("q", first, lock=False)
        self.kept = kept


def attack(
    name: str, target: Target, count: int, seed: int, keep: Path, kept: list[bytes]
) -> dict[str, Any]:
    """Attack one reader in processes of its own and return what happened."""
    context = multiprocessing.get_context("fork")
    first = 0
    tally: dict[str, Any] = {"executions": count, "errors": 0, "accepted": 0, "lines": 0}
    tally |= {"cpu_seconds": 0.0, "findings": []}

    def found(number: int, problem: str, data: bytes) -> None:
        file = keep / f"{name}-{seed}-{number}"
        file.write_bytes(data)
        tally["findings"].append({"file": file.name, "problem": problem[:300]})

    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    while first < count:
        with tempfile.TemporaryDirectory(dir=base) as folder:
            link = Link(context, kept, first)
            words = (name, target, count, first, seed, link, Path(folder))
            process = context.Process(target=work, args=words)
            process.start()
            for message in _messages(process, link):
                if message[0] == "kept":
                    kept.append(message[1])
                elif message[0] == "finding":
                    found(*message[1:])
                elif message[0] == "broken":
                    found(-1, message[1], b"")
                else:
                    tally["errors"] += message[1]
                    tally["accepted"] += message[2]
                    tally["lines"] = message[3]
                    tally["cpu_seconds"] += message[4]
            process.join()
            if process.exitcode == 0:
                break
            number, last = int(link.at.value), Path(folder, target.name)
            data = last.read_bytes() if last.is_file() else b""
            found(number, f"the process ended with {process.exitcode}", data)
            first = number + 1
    return tally


def breaks(target: Target, file: Path) -> bool:
    """Tell whether a file that was a finding still breaks its reader, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            _read_once(target, file, Path(folder))
        deadline = time.monotonic() + STANDSTILL
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status != 0
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True


def _read_once(target: Target, file: Path, scratch: Path) -> None:
    code = 1
    try:
        for other, content in target.beside.items():
            _placed(scratch / other, content)
        _bound()
        warnings.simplefilter("error")
        place = _placed(scratch / target.name, file.read_bytes())
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        target.read(place)
        code = 0
    except SightlineError as error:
        code = int("\n" in str(error))
    except SystemExit as error:
        code = int(error.code != 2)
    finally:
        os._exit(code)


def _messages(process: Any, link: Link) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Yield what a process tells until it ends; one that stands still is killed."""
    moved, at = time.monotonic(), -1
    while True:
        while not link.queue.empty():
            moved = time.monotonic()
            yield link.queue.get()
        if not process.is_alive():
            while not link.queue.empty():
                yield link.queue.get()
            return
        if link.at.value != at:
            moved, at = time.monotonic(), link.at.value
        if time.monotonic() - moved > STANDSTILL:
            process.kill()
        time.sleep(0.02)


def main() -> None:
    """Attack the readers and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--reader", nargs="*", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=None, help="folder to go on from")
    parser.add_argument("--part", default="0/1", help="N/M: every M-th reader from the N-th on")
    parser.add_argument("--sum", action="store_true", help="only sum up what --state holds")
    parser.add_argument("--keep", type=Path, default=None, help="folder for findings")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    state = State(arguments.state, arguments.part)
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder))
        if arguments.reader:
            targets = {name: targets[name] for name in arguments.reader}
        if not arguments.sum:
            _go_on(arguments, targets, state, keep)
        for (_, name), row in sorted(state.all().items()):
            table[name] = _add(table[name], row) if name in table else row
        for name, row in table.items():
            found = row["findings"]
            row["findings"] = [one for one in found if breaks(targets[name], keep / one["file"])]
            row["mended"] = len(found) - len(row["findings"])
    total: dict[str, Any] = {
        key: round(sum(row[key] for row in table.values()), 1)
        for key in ("executions", "errors", "accepted", "cpu_seconds", "mended")
    }
    total["findings"] = sum(len(row["findings"]) for row in table.values())
    print(total, "findings in", keep)
    write(arguments.output, {"seed": arguments.seed, "total": total, "readers": table})


Pieces = dict[tuple[int, str], dict[str, Any]]
"""(round, reader) -> what was found."""


class State:
    """What is finished, and files that reached new lines."""

    def __init__(self, folder: Path | None, part: str) -> None:
        """Read what an earlier run left."""
        self._file = None if folder is None else folder / f"part-{part.replace('/', '-of-')}.pickle"
        self.done: Pieces = {}
        self.kept: dict[str, list[bytes]] = {}
        if self._file is not None and self._file.is_file():
            self.done, self.kept = pickle.loads(self._file.read_bytes())

    def save(self) -> None:
        """Write it, if there is a place for it."""
        if self._file is not None:
            atomic_write_bytes(self._file, pickle.dumps((self.done, self.kept)))

    def all(self) -> Pieces:
        """Return what is finished, by other parts too."""
        found = dict(self.done)
        for file in [] if self._file is None else sorted(self._file.parent.glob("part-*.pickle")):
            found |= pickle.loads(file.read_bytes())[0]
        return found


def _go_on(
    arguments: argparse.Namespace, targets: dict[str, Target], state: State, keep: Path
) -> None:
    """Attack all readers of this part in every round that is not finished."""
    counts = shares(targets, arguments.executions // arguments.rounds)
    part, parts = map(int, arguments.part.split("/"))
    for number in range(arguments.rounds):
        for name in sorted(targets)[part::parts]:
            if (number, name) in state.done:
                continue
            count, seed = counts[name], arguments.seed * 1000 + number
            kept = state.kept.setdefault(name, [])
            row = attack(name, targets[name], count, seed, keep, kept)
            each = 1000 * row["cpu_seconds"] / count
            print(f"{number:3} {name:26} {count:7} {each:7.2f} ms {row['lines']:4} lines,", end=" ")
            print(f"{row['errors']} errors, {len(row['findings'])} findings", flush=True)
            for finding in row["findings"][:4]:
                print("      ", finding, flush=True)
            state.done[number, name] = row
            state.save()


def _add(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of two rows of a reader."""
    counted = ("executions", "errors", "accepted")
    return {
        **{key: first[key] + second[key] for key in counted},
        "lines": max(first["lines"], second["lines"]),
        "cpu_seconds": round(first["cpu_seconds"] + second["cpu_seconds"], 2),
        "findings": first["findings"] + second["findings"],
    }


if __name__ == "__main__":
    main()
