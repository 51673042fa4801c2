"""Everything that makes sense on CUDA, in one call of at most ten minutes, without network.

    python benchmarks/gpu.py [--parts tests,golden,...] [--minutes 10] [--json FILE] [--dry-run]

Parts, in order of what they tell:

- ``machine``: what is there: device, CUDA, torch, gsplat (whose first call may compile it), Triton
- ``tests``: ``pytest -m gpu``
- ``golden``: gsplat on CUDA, through our call, against every case of ``tests/golden/raster``
- ``rasterizer``: gsplat through our call beside gsplat called directly and beside our CPU kernels
- ``precision``: float32 and bfloat16 (autocast) on CUDA beside float32 on the CPU: DINOv2, DINOv3
- ``networks``: the full VGGT (drawn weights, 518 x 518) by frames and dtypes: seconds, peak memory
- ``compile``: ``torch.compile`` beside eager: same outputs, time
- ``memory``: how the peak of VGGT grows with frames, and what ``frames_chunk_size`` bounds
- ``splats``: the procedural scene fitted on CUDA, held-out PSNR over seconds
- ``training``: ``sightline train dino`` on generated pictures, seconds a step

Each part is a process of its own with a time limit within what is left (10 minutes in all); one that fails or runs out of
time is written down with its last words, and the next one runs. The result is written after every
part. ``--dry-run`` goes the same way on the CPU with small sizes (gsplat's part is played by our CPU
kernels) and writes nothing but what it prints, to see before a GPU is paid for that the script runs.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import common

ROOT = Path(__file__).parents[1]
Part = Callable[[str, bool], dict[str, Any]]


def machine(device: str, small: bool) -> dict[str, Any]:
    """Say what is there."""
    del small
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("gsplat", "triton", "lightning"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": [properties.major, properties.minor],
        }
        if found["gsplat"]:  # it compiles its kernels at the first call where its wheel has none
            from rasterizer import OURS, measure

            began = time.perf_counter()
            measure(OURS, "10k-256", 2, 1, device)
            found["gsplat_first_call_s"] = round(time.perf_counter() - began, 1)
    return found


def tests(device: str, small: bool) -> dict[str, Any]:
    """Run the tests marked for it; on the CPU all of them skip."""
    del small
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        words = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, *words, f"--junitxml={report}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.is_file():
            raise RuntimeError(done.stdout[-1000:] + done.stderr[-1000:])
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    found = {
        "tests": len(cases),
        "passed": len(cases) - len(bad) - len(skipped),
        "skipped": [f"{c.get('name')}: {_message(c, 'skipped')}" for c in skipped],
        "failed": [f"{c.get('name')}: {_message(c, 'failure')}" for c in bad],
    }
    if bad:
        raise RuntimeError(json.dumps(found))
    if device == "cuda" and not found["passed"]:
        raise RuntimeError(f"no GPU test ran: {json.dumps(found)}")
    return found


def _message(case: ElementTree.Element, kind: str) -> str:
    inside = case.find(kind)
    return (inside.get("message") or "")[:200] if inside is not None else "error"


def golden(device: str, small: bool) -> dict[str, Any]:
    """Compare gsplat with every golden case: image, gradients, relative to the largest value."""
    import torch
    from safetensors.torch import load_file

    from sightline.errors import InputError
    from sightline.splatting import rasterization

    sys.path.insert(0, str(ROOT))
    from tests.parity import raster

    folder = ROOT / "tests/golden/raster"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arguments = {case["name"]: case["kwargs"] for case in config["cases"]}
    rows: dict[str, Any] = {}
    for name in raster.cases(folder)[: 2 if small else None]:
        tensors = {k: v.to(device) for k, v in load_file(folder / f"{name}.safetensors").items()}
        try:
            kwargs = {**arguments[name], "packed": False}
            got = raster.draw(rasterization, tensors, kwargs, torch.float32)
        except InputError as error:
            rows[name] = {"left_out": str(error)}
            continue
        clear = ~tensors["out.ambiguous"][..., None] if "out.ambiguous" in tensors else 1
        rows[name] = {}
        for key, value in got.items():
            if key not in tensors or key == "out.radii" or not value.numel():
                continue
            want = tensors[key].double()
            error = (value.double().reshape(want.shape) - want).abs()
            error = error * clear if key.startswith("out.") else error
            scale = max(float(want.abs().max()), 1e-12)
            rows[name][key] = {
                "largest": float(error.max()) / scale,
                "mean": float(error.mean()) / scale,
            }
    return {"cases": rows}


def rasterizer(device: str, small: bool) -> dict[str, Any]:
    """Time gsplat through our call, gsplat itself, and our CPU kernels."""
    from rasterizer import OURS, measure

    cases = ["10k-256"] if small else ["100k-640", "1m-640", "100k-640-sh3"]
    rows = []
    for case in cases:
        repeats = 2 if small else 20
        row: dict[str, Any] = {"case": case, "ours": measure(OURS, case, 2, repeats, device)}
        if device == "cuda":
            row["gsplat"] = measure("gsplat", case, 2, repeats, device)
            row["again"] = measure(OURS, case, 2, repeats, device)  # the order must not matter
            row["cpu"] = measure(OURS, case, os.cpu_count() or 1, 3, "cpu")
            best = min(row["ours"]["both_ms"], row["again"]["both_ms"])
            row["call_costs"] = best / row["gsplat"]["both_ms"]
            row["times_faster_than_cpu"] = row["cpu"]["both_ms"] / best
        rows.append(row)
    return {"rows": rows}


def _encoders(small: bool) -> dict[str, Any]:
    import torch
    from networks import stir

    from sightline.models.dinov2 import build_dinov2
    from sightline.models.dinov3 import build_dinov3

    torch.backends.cudnn.allow_tf32 = False  # its convolutions would pass for float32
    found: dict[str, Any] = {
        "dinov2_vitb14": build_dinov2("dinov2_vits14" if small else "dinov2_vitb14", False),
        "dinov3_vitb16": build_dinov3("dinov3_vits16" if small else "dinov3_vitb16", False),
    }
    for model in found.values():
        stir(model.eval())
    return found


def _relative(value: Any, want: Any) -> float:  # noqa: ANN401
    value, want = value.double().cpu(), want.double().cpu()
    return float((value - want).norm() / want.norm())


def _seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    import torch

    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def precision(device: str, small: bool) -> dict[str, Any]:
    """Compare dtypes on the device with float32 on the CPU: relative root mean square, time."""
    import torch

    size, count, rows = 112 if small else 448, 1 if small else 4, {}
    for name, model in _encoders(small).items():
        torch.manual_seed(0)
        images = torch.randn(count, 3, size, size)
        with torch.inference_mode():
            want = model.forward_features(images)["x_norm_patchtokens"]
            model, images = model.to(device), images.to(device)
            for dtype in ("float32", "bfloat16"):
                kind = getattr(torch, dtype)

                def call(model: Any = model, images: Any = images, kind: Any = kind) -> Any:  # noqa: ANN401
                    with torch.autocast(device, kind, kind != torch.float32):
                        return model.forward_features(images)["x_norm_patchtokens"]

                rows[f"{name} {dtype}"] = {
                    "relative_difference": _relative(call(), want),
                    "seconds": _seconds(call, 2 if small else 10, device),
                }
    worst = max(r["relative_difference"] for n, r in rows.items() if n.endswith("float32"))
    if worst > 1e-3:
        raise RuntimeError(f"float32 differs by {worst:.2g} between the devices: {rows}")
    return {"images": count, "size": size, "rows": rows}


def _vggt(small: bool) -> Any:  # noqa: ANN401
    from sightline.models.vggt import VGGT

    if not small:
        return VGGT(track=None).eval()
    encoder = {"embed_dim": 64, "depth": 1, "num_heads": 2}
    return VGGT(
        *(56, 14, 32),
        aggregator={"patch_embed": "dinov2_vits14_reg", "encoder": encoder, "depth": 4}
        | {"num_heads": 2},
        camera={"trunk_depth": 1, "num_heads": 2},
        dpt={"features": 16, "out_channels": (8, 8, 16, 16)}
        | {"intermediate_layer_idx": (0, 1, 2, 3)},
        track=None,
    ).eval()


def networks(device: str, small: bool) -> dict[str, Any]:
    """Run VGGT over frames and dtypes."""
    import torch
    from networks import peak_memory

    model, side = _vggt(small).to(device), 56 if small else 518
    rows = []
    with torch.inference_mode():
        for frames in (1, 2) if small else (1, 8, 24):
            images = torch.rand(1, frames, 3, side, side, device=device)
            for dtype in ("float32", "bfloat16"):
                kind = getattr(torch, dtype)

                def call(images: Any = images, kind: Any = kind) -> Any:  # noqa: ANN401
                    with torch.autocast(device, kind, kind != torch.float32):
                        return model(images)

                megabytes, found = peak_memory(call, device == "cuda")
                row = {"frames": frames, "dtype": dtype, "activation_mb": round(megabytes, 1)}
                row["seconds"] = _seconds(call, 1 if small else 3, device)
                if dtype == "float32":
                    exact = found["depth"]
                else:
                    row["depth_relative_difference"] = _relative(found["depth"], exact)
                    row["ratio_to_float32"] = row["seconds"] / rows[-1]["seconds"]
                rows.append(row)
    return {"height": side, "width": side, "rows": rows}


def compiled(device: str, small: bool) -> dict[str, Any]:
    """Compile both encoders: the same outputs, and how much time it saves."""
    import torch

    rows = {}
    size = 112 if small else 448
    for name, model in _encoders(small).items():
        model = model.to(device)
        images = torch.randn(1 if small else 4, 3, size, size, device=device)
        backend = "eager" if small else "inductor"
        began = time.perf_counter()
        fast = torch.compile(model, backend=backend, fullgraph=True)
        with torch.inference_mode():
            got, want = fast(images), model(images)
            first = time.perf_counter() - began
            with torch.autocast(device, torch.bfloat16):
                eager = _seconds(lambda m=model, i=images: m(i), 2 if small else 10, device)
                quick = _seconds(lambda m=fast, i=images: m(i), 2 if small else 10, device)
        rows[name] = {
            "relative_difference": _relative(got, want),
            "seconds_to_compile": round(first, 1),
            "eager_bfloat16_s": eager,
            "compiled_bfloat16_s": quick,
            "ratio": quick / eager,
        }
    worst = max(row["relative_difference"] for row in rows.values())
    if worst > 1e-3:
        raise RuntimeError(f"compiled networks differ by {worst:.2g}: {rows}")
    return {"backend": backend, "size": size, "rows": rows}


def memory(device: str, small: bool) -> dict[str, Any]:
    """Measure VGGT's peak over frames, whole and with heads a few frames at a time."""
    import torch
    from networks import peak_memory

    model, side = _vggt(small).to(device), 56 if small else 518
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        for frames in (2, 4) if small else (8, 16, 32, 64):
            images = torch.rand(1, frames, 3, side, side, device=device)
            row: dict[str, Any] = {"frames": frames}
            for chunk in (1, 8):
                megabytes, _ = peak_memory(
                    lambda i=images, c=chunk: model(i, frames_chunk_size=c), device == "cuda"
                )
                row[f"chunks_of_{chunk}_mb"] = round(megabytes, 1)
            rows.append(row)
            del images
    sizes = [row["frames"] for row in rows]
    fits = {
        key: common.power_law(sizes, [row[key] for row in rows])
        for key in rows[0]
        if key.endswith("_mb")
    }
    if not small and fits["chunks_of_1_mb"]["exponent"] > 1.1:
        raise RuntimeError(f"memory grows faster than the frames: {fits}, {rows}")
    return {"height": side, "width": side, "rows": rows, "fits": fits}


def splats(device: str, small: bool) -> dict[str, Any]:
    """Fit the procedural scene."""
    from sightline.datasets.synthetic import make_scene
    from sightline.splatting.defaults import default_config
    from sightline.splatting.evaluate import evaluate_splats
    from sightline.splatting.optimize import optimize_splats

    scene = make_scene(8, 60, 80, kind="simple") if small else make_scene()
    assert scene.ground_truth is not None
    views, test = scene.views, list(scene.test)
    train = [i for i in range(len(views)) if i not in test]
    height, width = views.images.shape[2:]
    rows = []
    for steps in (20,) if small else (1000, 4000):
        config = default_config(device, len(train), height, width, steps=steps)
        began = time.perf_counter()
        fitted = optimize_splats(
            views, scene.ground_truth.sparse, train, config=config, device=device
        )
        seconds = time.perf_counter() - began
        cpu = fitted.gaussians.map(lambda t: t.cpu())
        exposure = None if fitted.exposure is None else fitted.exposure.map(lambda t: t.cpu())
        scored = evaluate_splats(cpu, views, test, exposure=exposure)
        rows.append(
            {
                "steps": steps,
                "seconds": round(seconds, 1),
                "splats": len(cpu),
                "psnr": round(float(scored.scores["psnr"].mean()), 3),
            }
        )
    return {"rows": rows}


def training(device: str, small: bool) -> dict[str, Any]:
    """Train a small DINO on generated pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["train", "dino", "--config", "configs/train/dino_smoke.yaml", "-o", scratch + "/r"]
        words += ["--device", device, "--epochs", "1" if small else "10"]
        words += ["--data", "generated:64" if small else "generated:1024"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sightline", *words], check=True, cwd=ROOT)
        seconds = time.perf_counter() - began
        state = json.loads(Path(scratch, "r", "run.json").read_text(encoding="utf-8"))
    return {"seconds": round(seconds, 1), "facts": state["facts"], "metrics": state["metrics"]}


PARTS: dict[str, tuple[Part, int]] = {
    "machine": (machine, 200),
    "tests": (tests, 150),
    "golden": (golden, 60),
    "rasterizer": (rasterizer, 80),
    "precision": (precision, 60),
    "networks": (networks, 90),
    "compile": (compiled, 120),
    "memory": (memory, 60),
    "splats": (splats, 90),
    "training": (training, 60),
}
"""Each part and the most seconds it may take."""


def run_part(name: str, device: str, small: bool, limit: float) -> dict[str, Any]:
    """Run one part in a process of its own; return its result or its last words."""
    words = [sys.executable, __file__, "--part", name, "--device", device]
    began = time.perf_counter()
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        process = subprocess.Popen(
            [*words, "--answer", str(answer), *(["--dry-run"] if small else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        result: dict[str, Any] = {"status": "failed"}
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what the part started, too
            said, _ = process.communicate()
            result["reason"] = f"over {limit:.0f} s"
        if process.returncode == 0 and answer.is_file():
            result = {"status": "done", **json.loads(answer.read_text(encoding="utf-8"))}
        else:
            result |= {"exit_code": process.returncode, "last_words": said[-2000:].strip()}
    return result | {"part_seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Run the parts within the time, write after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "gpu.json")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU, not written")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        result = PARTS[args.part][0](args.device, args.dry_run)
        args.answer.write_text(json.dumps(result), encoding="utf-8")
        return
    names = args.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    device = "cpu" if args.dry_run else "cuda"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "expected a CUDA device, found none (torch.cuda.is_available() is false); run this "
                "on a machine with a GPU and the extra cuda, or try it with --dry-run",
                file=sys.stderr,
            )
            raise SystemExit(2)
    began, parts = time.perf_counter(), {}
    for name in names:
        left = 60 * args.minutes - (time.perf_counter() - began)
        if left < 10:
            parts[name] = {"status": "failed", "reason": "no time left"}
        else:
            limit = left if args.dry_run else min(left, PARTS[name][1])
            parts[name] = run_part(name, device, args.dry_run, limit)
        seconds = round(time.perf_counter() - began, 1)
        shown = parts[name].get("reason") or parts[name].get("last_words", "")
        print(
            f"{name:10s} {parts[name]['status']:6s} {seconds:6.1f} s  {str(shown)[-600:]}",
            flush=True,
        )
        if not args.dry_run:
            common.write(args.json, {"seconds": seconds, "parts": parts})
    raise SystemExit(any(part["status"] != "done" for part in parts.values()))


if __name__ == "__main__":
    main()
