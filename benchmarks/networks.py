"""Our networks beside the originals: time, memory and outputs, runs taking turns.

    python benchmarks/networks.py vggt   [--reference FOLDER] [--frames 1,8] [--size 224x224,518x518]
    python benchmarks/networks.py mast3r [--reference FOLDER] [--images 2,6] [--size 224x288]
                  [--dtypes float32,bfloat16] [--device cpu|cuda] [--threads 2] [--repeats 3]
                  [--path FOLDER ...] [--json FILE]

Every size goes with every number of frames (or images) and every dtype.

``--reference`` is a checkout that you supply: for VGGT the folder that holds the package ``vggt``,
for MASt3R the repository with its submodules. Without it only our side runs. Weights are random
and the same on both sides; ``--path`` adds folders with packages that the originals import, and
packages that they import but that no network needs are replaced by empty ones. Autocast gives
bfloat16, as the originals' own demos do.

MASt3R works on the complete symmetrised graph, ``n (n - 1)`` ordered pairs. The original encodes
both images of every pair (its ``inference`` with batch 1 does); ours encodes each image once and
decodes both directions in one batch.

Activation memory is the largest sum of living tensors during a call beyond weights and inputs, by
the allocator's records on the CPU and by the device's statistics on CUDA. CPU seconds are this
process's, all threads; on a shared machine they mean more than wall seconds.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import common
import torch
from torch import Tensor, nn

from sightline.models.dust3r import PairDecoder
from sightline.models.mast3r import PUBLISHED, AsymmetricMASt3R
from sightline.models.vggt import VGGT

Outputs = dict[str, Tensor]
Call = Callable[[], Outputs]
Side = Callable[[Tensor], Outputs]


def main() -> None:
    """Build both, take turns, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network", choices=["vggt", "mast3r"])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--path", type=Path, action="append", default=[])
    parser.add_argument("--frames", default="8", help="of vggt")
    parser.add_argument("--images", default="6", help="of mast3r")
    parser.add_argument("--size", default="224x224", help="height x width")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="skip the run that warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sys.path[:0] = [str(p) for p in (*args.path, *([args.reference] if args.reference else []))]
    make = {"vggt": vggt_sides, "mast3r": mast3r_sides}[args.network]
    counts = {"vggt": args.frames, "mast3r": args.images}[args.network]
    sides, runs = make(args), []
    for size in args.size.split(","):
        height, width = (int(side) for side in size.split("x"))
        for count in (int(n) for n in counts.split(",")):
            images = torch.rand(count, 3, height, width, device=args.device)
            calls = {name: partial(side, images) for name, side in sides.items()}
            setting = {"images": count, "height": height, "width": width}
            runs += [setting | measure(calls, name, args) for name in args.dtypes.split(",")]
            print(runs[-1])
    setting = {
        "network": args.network,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": args.threads,
        "repeats": args.repeats,
        "weights": "random",
    }
    path = args.json or common.RESULTS / f"networks_{args.network}_{args.device}.json"
    common.write(path, {**setting, "runs": runs})


def vggt_sides(args: argparse.Namespace) -> dict[str, Side]:
    """Return both sides, all heads but the tracker's queries."""
    ours = VGGT(device="meta" if args.reference else args.device).eval()
    models: dict[str, nn.Module] = {"ours": ours}
    if args.reference:
        theirs = load_package("vggt.models.vggt").VGGT().eval().to(args.device)
        stir(theirs)
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
        models = {"theirs": theirs, "ours": ours}

    def call(model: nn.Module, images: Tensor) -> Outputs:
        found = model(images[None])
        return {k: v for k, v in found.items() if isinstance(v, Tensor) and k != "images"}

    return {name: partial(call, model) for name, model in models.items()}


def mast3r_sides(args: argparse.Namespace) -> dict[str, Side]:
    """Return both sides: all ordered pairs of some images."""
    sizes: Any = PUBLISHED["MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"]
    ours = AsymmetricMASt3R(**sizes, device="meta" if args.reference else args.device).eval()

    def collect(batches: Iterator[tuple[Any, Any]]) -> Outputs:
        parts: dict[str, list[Tensor]] = {}
        for results in batches:
            for view, result in enumerate(results, 1):
                for name, value in result.items():
                    key = f"{name.removesuffix('_in_other_view')} of view {view}"
                    parts.setdefault(key, []).append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def run_ours(images: Tensor) -> Outputs:
        encoded = ours.encode_views(2 * images - 1)
        decoder = PairDecoder(ours, encoded, tuple(images.shape[-2:]))
        some = itertools.combinations(range(len(images)), 2)
        return collect(decoder.decode([(i, j), (j, i)]) for i, j in some)

    sides: dict[str, Side] = {"ours": run_ours}
    if args.reference:
        inf = float("inf")
        package = load_package("mast3r.model")
        theirs = package.AsymmetricMASt3R(
            img_size=(512, 512),
            enc_embed_dim=1024,
            enc_depth=24,
            enc_num_heads=16,
            dec_embed_dim=768,
            dec_depth=12,
            dec_num_heads=12,
            pos_embed="RoPE100",
            head_type="catmlp+dpt",
            output_mode="pts3d+desc24",
            depth_mode=("exp", -inf, inf),
            conf_mode=("exp", 1, inf),
            desc_conf_mode=("exp", 0, inf),
            patch_embed_cls="PatchEmbedDust3R",
            two_confs=True,
            landscape_only=False,
        )
        theirs = theirs.eval().to(args.device)
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)

        def run_theirs(images: Tensor) -> Outputs:
            shape = torch.tensor([images.shape[-2:]])
            views = [
                {"img": 2 * image[None] - 1, "true_shape": shape, "idx": [i], "instance": [str(i)]}
                for i, image in enumerate(images)
            ]
            some = itertools.combinations(range(len(images)), 2)
            ordered = (pair for i, j in some for pair in ((i, j), (j, i)))
            return collect(theirs(dict(views[i]), dict(views[j])) for i, j in ordered)

        sides = {"theirs": run_theirs, "ours": run_ours}
    return sides


def measure(calls: dict[str, Call], dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time both sides in turns, then once more for memory; compare what they return."""
    kind = getattr(torch, dtype)
    on_gpu = args.device == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    work: dict[str, list[float]] = {name: [] for name in calls}
    outputs: dict[str, Outputs] = {}
    memory: dict[str, float] = {}
    with torch.inference_mode(), torch.autocast(args.device, kind, kind != torch.float32):
        for turn in range(int(args.no_memory), args.repeats + 1):
            for name in list(calls)[:: 1 if turn % 2 else -1]:
                if turn == 0:  # warms up, too
                    memory[name], outputs[name] = peak_memory(calls[name], on_gpu)
                    continue
                begin, busy = time.perf_counter(), time.process_time()
                outputs[name] = calls[name]()
                if on_gpu:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begin)
                work[name].append(time.process_time() - busy)
                print(f"{dtype} {name}: {seconds[name][-1]:.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {"dtype": dtype, "seconds": seconds, "median_s": median}
    busy_median = {name: statistics.median(values) for name, values in work.items()}
    found |= {"cpu_seconds": work, "median_cpu_s": busy_median, "activation_mb": memory}
    if "theirs" in calls:
        found["time_ratio"] = median["ours"] / median["theirs"]
        found["cpu_time_ratio"] = busy_median["ours"] / busy_median["theirs"]
        if memory:
            found["memory_ratio"] = memory["ours"] / memory["theirs"]
        found["largest_difference"] = {
            name: {
                "absolute": (value - outputs["ours"][name]).abs().max().item(),
                "largest_value": value.abs().max().item(),
            }
            for name, value in outputs["theirs"].items()
        }
    return found


def peak_memory(call: Call, on_gpu: bool) -> tuple[float, Outputs]:
    """Return the peak of memory beyond what was there before, in MB, and what the call returns."""
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6, out
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        out = call()
    held = peak = 0
    records: Any = profile.profiler
    changes = [e for e in records.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6, out


def stir(model: nn.Module) -> None:
    """Give scales, tokens and biases values at which every one of them matters."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(-0.3, 0.3)
            elif "token" in name.rsplit(".", 1)[-1]:
                weight.normal_(std=0.5)
            elif weight.ndim == 1:
                weight.add_(torch.randn_like(weight), alpha=0.05)


def load_package(name: str) -> ModuleType:
    """Import a module of the original; packages that are not installed become empty ones."""
    absent = ("torchvision", "matplotlib", "trimesh", "roma", "einops", "tqdm", "pillow_heif")
    for package in absent:
        if importlib.util.find_spec(package) is None and package not in sys.modules:
            sys.modules[package] = MagicMock(name=package)
            for part in ("transforms", "pyplot", "transforms.functional"):
                sys.modules[f"{package}.{part}"] = MagicMock(name=f"{package}.{part}")
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module(name)


if __name__ == "__main__":
    main()
