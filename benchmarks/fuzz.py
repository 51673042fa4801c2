"""Attack every reader with damaged files, and count.

    python benchmarks/fuzz.py [--executions 1000000] [--reader NAME ...] [--seed 0]

Each reader gets valid files of its format, made here by our own writers, and then damaged ones: bits
flipped, numbers replaced by extreme ones, pieces cut, repeated, swapped between files. A reader may
succeed, or raise an error of `sightline.errors`. Everything else is a finding, which is kept with its
file: another exception, a warning, more than ten seconds, more than 400 MB that were not there before,
a file written anywhere, a process that dies.

The readers share one process at a time, which is watched from outside, so that a crash is seen too.
"""

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, write

Read = Callable[[Path], object]
SECONDS = 10
MEMORY = 400 << 20
EXTREME_BYTES = np.array([0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x2D, 0x39], np.uint8)
EXTREME_WORDS = [
    value.to_bytes(size, "little", signed=False)
    for size in (2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 2**15)
]
EXTREME_TEXTS = [
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"4294967296",
    b"99999999999999999999",
    b"",
    b"\x00",
]
EXTREME_TEXTS += [b"../../etc/passwd", b"[" * 300, b'{"a":' * 200, b"null", b"true", b"[]", b"{}"]


def damage(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """Return one of the files with one to four kinds of damage."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        # Half of the damage hits the first bytes, where headers and counts are.
        reach = min(len(data), 256) if rng.random() < 0.5 else len(data)
        at = int(rng.integers(reach))
        kind = rng.integers(8)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.choice(EXTREME_BYTES))
        elif kind == 2:
            word = EXTREME_WORDS[rng.integers(len(EXTREME_WORDS))]
            data[at : at + len(word)] = word
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            stop = at + int(rng.integers(1, 64))
            data[at:at] = data[at:stop] * int(rng.integers(1, 4))
        elif kind == 5:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 6:
            other = files[rng.integers(len(files))]
            start = int(rng.integers(len(other) or 1))
            data[at : at + 32] = other[start : start + 32]
        else:
            _replace_number(rng, data, at)
    return bytes(data)


def _replace_number(rng: np.random.Generator, data: bytearray, at: int) -> None:
    """Put an extreme text where the next run of digits, or the next value of JSON, stands."""
    digits = b"0123456789.-+eE"
    start = at
    while start < len(data) and data[start] not in digits:
        start += 1
    stop = start
    while stop < len(data) and data[stop] in digits:
        stop += 1
    data[start:stop] = EXTREME_TEXTS[rng.integers(len(EXTREME_TEXTS))]


def readers(folder: Path) -> dict[str, tuple[list[bytes], str, Read]]:
    """Return reader -> valid files, the name that a damaged one gets, and what reads it."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    import sightline
    from sightline.checkpoints import read_checkpoint
    from sightline.cli.parser import VerbParser
    from sightline.datasets.synthetic import make_scene, write_scene
    from sightline.io import (
        colmap,
        depth,
        exif,
        geotiff,
        glb,
        images,
        intrinsics,
        manifest,
        masks,
        ply,
        reading,
        splat,
        spz,
        transforms,
    )
    from sightline.options import ReconstructOptions
    from sightline.preparation.options import PrepareOptions
    from sightline.preparation.prepare import prepare
    from sightline.run import RunFolder
    from sightline.segmentation import coco, staged
    from sightline.segmentation.memory import MemoryBank
    from sightline.segmentation.synthetic import write_dataset

    data = folder / "data"
    write_scene(make_scene(num_views=4, height=24, width=32, kind="simple", num_points=400), data)
    run = sightline.reconstruct(data, folder / "run", steps=1, max_splats=100)
    run.export(["ply", "gs-ply", "splat", "spz", "glb", "colmap", "transforms", "depth"])
    clip = run.render(folder / "clip.mp4", frames=4)
    exports = run.path / "exports"
    text_model = folder / "text"
    colmap.write_colmap(text_model, colmap.read_colmap(exports / "sparse" / "0"), text=True)
    prepare([data / "images"], folder / "prepared", PrepareOptions(size=16))
    shapes = write_dataset(folder / "shapes", pictures=6)
    pixels = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    rng = np.random.default_rng(0)

    def picture(name: str, **options: Any) -> bytes:  # noqa: ANN401
        path = folder / name
        mode = options.pop("mode", "RGB")
        Image.fromarray(pixels).convert(mode).save(path, **options)
        return path.read_bytes()

    notes = Image.Exif()
    notes[0x0112], notes[0x920A], notes[0xA405] = 6, 4.25, 26
    tensors = {"a.weight": torch.rand(3, 4), "b": torch.arange(5)}
    save_file(tensors, folder / "w.safetensors")
    torch.save({"model": tensors, "epoch": 3, "args": {"lr": 0.1}}, folder / "w.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    weights = [(folder / name).read_bytes() for name in ("w.pth", "old.pth")]
    bank_file = _bank(folder)

    def one(path: Path) -> list[bytes]:
        return [path.read_bytes()]

    def model_part(source: Path, name: str) -> Read:
        rest = {p.name: p.read_bytes() for p in source.iterdir() if p.is_file() and p.name != name}

        def read(path: Path) -> object:
            for other, content in rest.items():
                (path.parent / other).write_bytes(content)
            return colmap.read_colmap(path.parent)

        return read

    def yaml(path: Path) -> object:
        verb = VerbParser("reconstruct", "")
        verb.add_record(ReconstructOptions)
        return verb.parse_args(["--config", str(path)])

    deep = [_deep_png(folder / "deep.png", rng), picture("grey.png", mode="L")]
    tiffs = [picture("a.tif"), picture("b.tif", compression="tiff_lzw"), picture("c.tif", mode="L")]
    photos = [picture("a.jpg", exif=notes), picture("a.png"), picture("a.webp"), picture("a.bmp")]
    binary = exports / "sparse" / "0"
    table: dict[str, tuple[list[bytes], str, Read]] = {
        "ply_points": (one(exports / "scene.ply"), "x.ply", ply.read_point_ply),
        "ply_splats": (one(run.path / "splats.ply"), "x.ply", ply.read_gaussian_ply),
        "splat": (one(exports / "scene.splat"), "x.splat", splat.read_splat),
        "spz": (one(exports / "scene.spz"), "x.spz", spz.read_spz),
        "glb": (one(exports / "scene.glb"), "x.glb", glb.read_glb),
        "transforms": (
            one(data / "transforms.json"),
            "transforms.json",
            transforms.read_transforms,
        ),
        "manifest": (
            one(folder / "prepared" / "manifest.json"),
            "manifest.json",
            manifest.read_manifest,
        ),
        "run_json": (
            one(run.path / "run.json"),
            "run.json",
            lambda path: RunFolder.open(path.parent).state["status"],
        ),
        "cameras_npz": (one(run.path / "cameras.npz"), "x.npz", _camera_file),
        "depth_npz": (
            [p.read_bytes() for p in sorted((exports / "depth").glob("*.npz"))[:1]],
            "x.npz",
            depth.read_depth_npz,
        ),
        "pictures": (photos + tiffs, "x.png", images.read_image),
        "samples": (deep + tiffs, "x.tif", images.read_samples),
        "depth_png": (deep, "x.png", depth.read_depth_png),
        "geotiff": (tiffs, "x.tif", geotiff.read_geo),
        "exif": (photos[:1], "x.jpg", lambda path: exif.read_exif(Image.open(path))),
        "masks": (deep[1:], "x.png", lambda path: masks.read_mask(path)),
        "video": (one(clip), "x.mp4", _first_frames),
        "safetensors": (one(folder / "w.safetensors"), "x.safetensors", read_checkpoint),
        "pickles": (weights, "x.pth", read_checkpoint),
        "coco": (one(shapes / "instances.json"), "x.json", coco.read_coco),
        "bank": (one(bank_file), "x.safetensors", MemoryBank.load),
        "json": (one(shapes / "fewshot.json"), "x.json", reading.read_json),
        "yaml_stage": (
            [p.read_bytes() for p in sorted(Path("configs/segment").glob("*.yaml"))],
            "x.yaml",
            staged.read_yaml,
        ),
        "yaml_options": ([b"steps: 30\ntest_every: 8\nfps: 2.5\n"], "x.yaml", yaml),
        "intrinsics": (
            [b"500,500,320,240", b"500"],
            "x.txt",
            lambda path: intrinsics.parse_intrinsics(path.read_bytes().decode("utf-8", "replace")),
        ),
    }
    for source, suffix in ((binary, "bin"), (text_model, "txt")):
        for part in ("cameras", "images", "points3D"):
            name = f"{part}.{suffix}"
            reader = model_part(source, name)
            table[f"colmap_{part}_{suffix}"] = (one(source / name), f"model/{name}", reader)
    return table


def _camera_file(path: Path) -> object:
    from sightline.io.scene_arrays import CameraFile

    return CameraFile(path).cameras


def _first_frames(path: Path) -> object:
    from sightline.io.video import VideoReader

    with VideoReader(path, max_pixels=1 << 16) as reader:
        return [reader.retrieve() for _ in range(2) if reader.grab() is not None]


def _deep_png(path: Path, rng: np.random.Generator) -> bytes:
    from PIL import Image

    Image.fromarray(rng.integers(0, 2**16, (24, 32), dtype=np.uint16)).save(path)
    return path.read_bytes()


def _bank(folder: Path) -> Path:
    from sightline.segmentation import FewShotSegmenter
    from sightline.segmentation.encoder import create_encoder
    from sightline.segmentation.references import read_references

    encoder = create_encoder("colour")
    segmenter = FewShotSegmenter(encoder).fit(read_references(folder / "shapes", shots=1))
    assert segmenter.bank is not None
    segmenter.bank.save(folder / "bank.safetensors")
    return folder / "bank.safetensors"


class TooSlow(BaseException):
    """Not an `Exception`: no reader may swallow it."""


def _attack(name: str, start: int, count: int, seed: int, results: Any) -> None:  # noqa: ANN401
    """Run ``count`` executions of one reader in this process; report findings as they come."""
    from sightline.errors import SightlineError

    files, filename, read = readers_cache[name]
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    target = scratch / filename
    target.parent.mkdir(parents=True, exist_ok=True)
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            if not str(arguments[0]).startswith(str(scratch)):
                written.append(str(arguments[0]))
        elif event in ("os.system", "subprocess.Popen", "os.exec", "socket.connect"):
            written.append(event)

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter("error")
    errors = accepted = 0
    read(_placed(target, files[0]))  # what readers import is not what is watched
    sys.addaudithook(watch)
    before = _peak()
    for number in range(start, start + count):
        rng = np.random.default_rng([seed, number, *name.encode()])
        data = damage(rng, files)
        inside = _placed(target, data)
        written.clear()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        problem = ""
        results.put(("at", name, number))
        try:
            read(inside)
            accepted += 1
        except SightlineError as error:
            errors += 1
            if "\n" in str(error) or len(str(error)) < 15:
                problem = f"an error that is no sentence: {error!r}"
        except TooSlow:
            problem = f"more than {SECONDS} s"
        except BaseException as error:  # noqa: BLE001 - every other kind is what is looked for
            problem = f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        now = _peak()
        if now - before > MEMORY:
            problem = problem or f"{(now - before) >> 20} MB taken"
        before = max(before, now)
        if written:
            problem = problem or f"opened for writing: {written[:3]}"
        if problem:
            results.put(("finding", name, number, problem, data))
    results.put(("done", name, errors, accepted))


def _placed(target: Path, data: bytes) -> Path:
    target.write_bytes(data)
    return target


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


readers_cache: dict[str, tuple[list[bytes], str, Read]] = {}


def attack(name: str, count: int, seed: int, keep: Path) -> dict[str, Any]:
    """Attack one reader in processes of its own and return what happened."""
    context = multiprocessing.get_context("fork")
    started, at, begun = time.perf_counter(), 0, 0
    tally: dict[str, Any] = {"executions": 0, "errors": 0, "accepted": 0, "findings": []}
    while begun < count:
        results = context.SimpleQueue()
        process = context.Process(target=_attack, args=(name, begun, count - begun, seed, results))
        process.start()
        finished = False
        while not finished:
            if results.empty():
                if not process.is_alive():
                    break
                time.sleep(0.01)
                continue
            message = results.get()
            if message[0] == "at":
                at = message[2]
            elif message[0] == "done":
                tally["errors"] += message[2]
                tally["accepted"] += message[3]
                finished = True
            else:
                _, _, number, problem, data = message
                file = keep / f"{name}-{number}"
                file.write_bytes(data)
                tally["findings"].append({"number": number, "problem": problem[:300]})
        process.join()
        if finished:
            begun = count
        else:
            problem = f"the process died with {process.exitcode}"
            tally["findings"].append({"number": at, "problem": problem})
            begun = at + 1
    tally["executions"] = count
    tally["per_second"] = round(count / (time.perf_counter() - started), 1)
    return tally


def _rounds(names: list[str], total: int) -> Iterator[tuple[str, int]]:
    for name in names:
        yield name, max(1, total // len(names))


def main() -> None:
    """Attack the readers and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--reader", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=None, help="folder for files that were findings"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers_cache.update(readers(Path(folder)))
        names = arguments.reader or sorted(readers_cache)
        keep = arguments.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
        keep.mkdir(parents=True, exist_ok=True)
        table = {}
        for name, count in _rounds(names, arguments.executions):
            table[name] = attack(name, count, arguments.seed, keep)
            row = table[name]
            print(
                f"{name:22} {json.dumps({k: v for k, v in row.items() if k != 'findings'})}",
                flush=True,
            )
            for finding in row["findings"][:5]:
                print("   ", finding)
    total = {
        key: sum(row[key] for row in table.values()) for key in ("executions", "errors", "accepted")
    }
    total["findings"] = sum(len(row["findings"]) for row in table.values())
    print(total, "findings in", keep)
    write(arguments.output, {"seed": arguments.seed, "total": total, "readers": table})


if __name__ == "__main__":
    main()
