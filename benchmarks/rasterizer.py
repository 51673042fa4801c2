"""Speed of the rasteriser, ours beside a reference, in interleaved rounds.

    python benchmarks/rasterizer.py [--reference PATH] [--cases 10k-256,100k-640] [--threads 1,2]
                                    [--rounds 3] [--repeats 7] [--device cpu]
                                    [--commit COMMIT] [--baseline FILE] [--json FILE]
                                    [--note TEXT]

PATH is a Python file or module with a function ``rasterization`` that takes gsplat's arguments; the
user supplies it. Each round runs, for each case and number of threads, ours and the reference one
after the other, each in a process of its own. Reported are the fastest times over all rounds: wall
time, and CPU time of all threads, which other programs on the machine disturb least. ``ratio`` is
ours divided by the reference's, so below one is a gain; ``scaling`` is the wall time with that many
threads divided by ours with one. ``--commit`` takes the rasteriser of an earlier commit of this
repository as the reference, as a guard against getting slower; ``--baseline`` takes the reference's
times from an earlier result of this script, which only tells something on the machine that made it.

Scenes fill the view with splats of 0.8 to 3.2 pixels (standard deviation), opacities around a half.
"""

import argparse
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = "sightline.splatting.rasterize"
CASES = {
    "10k-256": (10_000, 256, 256, None),
    "100k-256": (100_000, 256, 256, None),
    "10k-640": (10_000, 640, 480, None),
    "100k-640": (100_000, 640, 480, None),
    "1m-640": (1_000_000, 640, 480, None),
    "100k-640-sh3": (100_000, 640, 480, 3),
}
"""Splats, width, height, degree of spherical harmonics."""
DEFAULT_CASES = "10k-256,100k-256,10k-640,100k-640"
TRAINED = ("means", "quats", "scales", "opacities", "colors")
TIMES = ("forward_ms", "forward_cpu_ms", "both_ms", "both_cpu_ms")


def make_scene(case: str, device: str) -> dict[str, Any]:
    """Return the arguments of one case."""
    return draw_scene(*CASES[case], device)


def draw_scene(
    number: int, width: int, height: int, degree: int | None, device: str
) -> dict[str, Any]:
    """Return the arguments of a call; the same numbers on every machine."""
    import numpy as np
    import torch

    random = np.random.Generator(np.random.PCG64(0))
    focal = 0.9 * max(width, height)
    depth = random.uniform(2, 10, number)
    x = (random.uniform(-0.05, 1.05, number) - 0.5) * width / focal * depth
    y = (random.uniform(-0.05, 1.05, number) - 0.5) * height / focal * depth
    pixels = np.exp(random.uniform(np.log(0.8), np.log(3.2), number))
    size = (pixels * depth / focal)[:, None] * np.exp(random.uniform(-0.5, 0.5, (number, 3)))
    quats = random.normal(size=(number, 4))
    opacities = 1 / (1 + np.exp(-1.5 * random.normal(size=number)))
    if degree is None:
        colors = random.uniform(0, 1, (number, 3))
    else:
        colors = 0.2 * random.normal(size=(number, (degree + 1) ** 2, 3))
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    arrays = {
        "means": np.stack([x, y, depth], -1),
        "quats": quats,
        "scales": size,
        "opacities": opacities,
        "colors": colors,
        "viewmats": np.eye(4)[None],
        "Ks": intrinsics[None],
    }
    scene: dict[str, Any] = {
        name: torch.tensor(array, dtype=torch.float32, device=device)
        for name, array in arrays.items()
    }
    scene |= {"width": width, "height": height}
    return scene if degree is None else scene | {"sh_degree": degree}


def load(module: str) -> Callable[..., Any]:
    """Return ``rasterization`` of a module name or a file."""
    if not module.endswith(".py"):
        return importlib.import_module(module).rasterization
    path = Path(module).resolve()
    sys.path.insert(0, str(path.parent))  # caches of compiled code look modules up by name
    return importlib.import_module(path.stem).rasterization


def measure(module: str, case: str, threads: int, repeats: int, device: str) -> dict[str, Any]:
    """Time one module on one case in this process."""
    import torch

    torch.set_num_threads(threads)
    scene = make_scene(case, device)
    rasterization = load(module)
    height, width = scene["height"], scene["width"]
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1, height, width, 3, generator=generator).to(device)
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)

    def forward() -> None:
        with torch.no_grad():
            rasterization(**scene)
        synchronize()

    def both() -> None:
        for name in TRAINED:
            scene[name].grad = None
            scene[name].requires_grad_()
        picture, alpha, _ = rasterization(**scene)
        torch.autograd.backward([picture, alpha], [weights, weights[..., :1]])
        synchronize()

    start = time.perf_counter()
    both()
    found: dict[str, Any] = {"first_ms": 1e3 * (time.perf_counter() - start)}
    for name, function in (("both", both), ("forward", forward)):
        wall, used = [], []
        for _ in range(repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            function()
            used.append(1e3 * (time.process_time() - start_cpu))
            wall.append(1e3 * (time.perf_counter() - start))
        found |= {f"{name}_ms": min(wall), f"{name}_cpu_ms": min(used)}
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["gradient_sum"] = scene["means"].grad.double().abs().sum().item()
    return found


def run(arguments: list[str], threads: int, source: Path | None) -> dict[str, Any]:
    """Measure in a process of its own, with sightline from ``source`` if that is given."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    place = {} if source is None else {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *arguments, "--threads", str(threads)],
        env=os.environ | dict.fromkeys(names, str(threads)) | place,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Keep the fastest times."""
    if old is None:
        return new
    return new | {name: min(old[name], new[name]) for name in (*TIMES, "first_ms")}


def check_out(commit: str, folder: Path) -> Path:
    """Put the package as it was at a commit into a folder, and return where it can be imported."""
    root = Path(__file__).parents[1]
    packed = subprocess.run(
        ["git", "-C", str(root), "archive", commit, "src"], capture_output=True, check=False
    )
    if packed.returncode:
        sys.exit(f"cannot take {commit} from the history: {packed.stderr.decode()[-300:]}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def compare(args: argparse.Namespace, earlier: Path | None) -> list[dict[str, Any]]:
    """Run all rounds; return one row a case and number of threads."""
    sides: dict[str, tuple[str, Path | None]] = {"ours": (OURS, None)}
    if args.reference or earlier:
        sides["reference"] = (args.reference or OURS, earlier)
    best: dict[tuple[str, int, str], dict[str, Any]] = {}
    places = [(c, int(t)) for c in args.cases.split(",") for t in args.threads.split(",")]
    for round_number in range(args.rounds):
        for case, threads in places:
            for side in sorted(sides, reverse=round_number % 2 == 1):
                module, source = sides[side]
                options = [module, "--cases", case, "--repeats", str(args.repeats)]
                found = run([*options, "--device", args.device], threads, source)
                key = (case, threads, side)
                best[key] = merge(best.get(key), found)
    if args.baseline:
        for row in json.loads(args.baseline.read_text(encoding="utf-8"))["rows"]:
            if (row["case"], row["threads"]) in places:
                best[row["case"], row["threads"], "reference"] = row.get("reference", row["ours"])
    rows = []
    for case, threads in places:
        row: dict[str, Any] = {
            "case": case,
            "threads": threads,
            "ours": best[case, threads, "ours"],
        }
        if other := best.get((case, threads, "reference")):
            row["reference"] = other
            row["ratio"] = {name: row["ours"][name] / other[name] for name in TIMES}
        if one := best.get((case, 1, "ours")):
            row["scaling"] = row["ours"]["both_ms"] / one["both_ms"]
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table, losses included."""
    print(f"{'case':14s} threads  forward ms  both ms  both CPU ms  ratio (CPU)  scaling")
    for row in rows:
        ours = row["ours"]
        ratio = f"{row['ratio']['both_cpu_ms']:11.2f}" if "ratio" in row else f"{'-':>11s}"
        scaling = f"{row['scaling']:7.2f}" if "scaling" in row else f"{'-':>7s}"
        print(
            f"{row['case']:14s} {row['threads']:7d}  {ours['forward_ms']:10.2f}  "
            f"{ours['both_ms']:7.2f}  {ours['both_cpu_ms']:11.2f}  {ratio}  {scaling}"
        )


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="file or module of another rasterization function")
    parser.add_argument("--commit", help="an earlier commit, whose rasteriser is the reference")
    parser.add_argument("--baseline", type=Path, help="an earlier result of this script")
    parser.add_argument("--cases", default=DEFAULT_CASES)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", help="kept in the JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        found = measure(args.measure, args.cases, int(args.threads), args.repeats, args.device)
        print(json.dumps(found))
        return
    unknown = [case for case in args.cases.split(",") if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    if args.commit and args.reference:
        parser.error("--commit and --reference are both the reference; give one")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args, check_out(args.commit, Path(folder)) if args.commit else None)
    show(rows)
    if args.json:
        import common

        what = "rasterization, forward and forward + backward; fastest times in milliseconds"
        reference = args.commit or (args.reference and Path(args.reference).name)
        content = {"what": what, "reference": reference, "note": args.note, "rows": rows}
        if args.baseline:
            earlier = json.loads(args.baseline.read_text(encoding="utf-8"))
            content["baseline"] = {key: earlier[key] for key in ("date", "machine", "commit")}
        common.write(args.json, content)


if __name__ == "__main__":
    main()
