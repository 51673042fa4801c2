"""Every claim: its script, arguments and result.

A row's ``run`` is a command line in ``benchmarks/``. ``{json}`` is the result's file, ``{results}`` the
folder of the committed results, ``{data}`` what ``--data`` names, ``{reference}`` what ``--reference``
names. A row whose full form takes longer than ``all`` has room for has a ``short`` one: the same script
with less of the same work. Each form writes a file of its own (``results/NAME.json``,
``results/short/NAME.json``) that says which it is, so that a short run never replaces a full one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import figures as f

Check = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Benchmark:
    """One claim.

    Attributes:
        name: Of the row, and of its result.
        group: Heading on the page.
        claim: What is said, in one sentence.
        run: Command line of the full form.
        minutes: About how long that takes on two cores.
        figure: Writes the result's numbers.
        needs: What must be there beside the checkout: ``gpu``, ``reference`` (a checkout of the
            original), ``data:FOLDER`` (below ``--data``), ``extra:PACKAGE``.
        holds: Whether the result bears the claim out; None if it only states numbers.
        short: Command line of the short form.
        short_minutes: About how long that takes.
        in_all: Whether ``all`` runs it when its needs are met.
    """

    name: str
    group: str
    claim: str
    run: str
    minutes: float
    figure: Callable[[dict[str, Any]], str]
    needs: tuple[str, ...] = ()
    holds: Check | None = None
    short: str = ""
    short_minutes: float = 0.0
    in_all: bool = True

    @property
    def script(self) -> str:
        """File in ``benchmarks/``."""
        return self.run.split()[0]

    def minutes_in_all(self) -> float:
        """Return about how long ``all`` spends on it."""
        return self.short_minutes if self.short else self.minutes


def _holds(result: dict[str, Any]) -> bool:
    return bool(result["holds"])


PHOTOS = "Photos to a scene"
SPLATS = "Rasteriser and splats"
NETWORKS = "Networks"
PROBING = "Probing and segmentation"
DATA = "Data and training"
START = "Start-up, growth, versions"
SAFETY = "Under attack and under load"
GPU = "GPU"

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "reconstruct_fox_colmap",
        PHOTOS,
        "50 phone photos become a scene at 480 pixels within 6 minutes and 3 GB: all registered, "
        "24 dB or more in every 8th view, which is held out.",
        "reconstruct.py {data}/fox/images --reference {data}/fox/transforms.json --json {json}",
        2.5,
        f.reconstruct,
        needs=("data:fox",),
        holds=lambda r: (
            r["metrics"]["registered"] == r["metrics"]["views"]
            and r["metrics"]["test"]["psnr"]["mean"] >= 24
            and r["seconds"] <= 360
            and r["peak_memory_mb"] <= 3000
        ),
    ),
    Benchmark(
        "reconstruct_fox_given",
        PHOTOS,
        "The same photos with given cameras.",
        "reconstruct.py {data}/fox --geometry given --json {json}",
        2.2,
        f.reconstruct,
        needs=("data:fox",),
    ),
    Benchmark(
        "reconstruct_synthetic",
        PHOTOS,
        "24 pictures of the procedural scene become a scene; their exact cameras are known.",
        "reconstruct.py synthetic --resolution 320 --json {json}",
        2.5,
        f.reconstruct,
        holds=lambda r: r["metrics"]["registered"] == r["metrics"]["views"],
    ),
    Benchmark(
        "sfm",
        PHOTOS,
        "Structure from motion registers photo sets and videos, or says why not.",
        "sfm.py fox={data}/fox/images lund={data}/lund/images berlin={data}/berlin/images "
        "roofs_pair={data}/roofs_pair/images robot={data}/robot/images "
        "rgbd_chair={data}/rgbd_chair rgbd_dining={data}/rgbd_dining "
        "video_great_wall={data}/video_great_wall/clip.mp4 "
        "video_robot={data}/video_robot/clip.mp4 --json {json}",
        4,
        f.sfm,
        needs=("data:fox", "data:lund"),
        in_all=False,
    ),
    Benchmark(
        "rasterizer_cpu",
        SPLATS,
        "Forward and backward take at most the time of our first prototype; two threads at most "
        "0.6 of one at 100,000 splats.",
        "rasterizer.py --reference {reference} --json {json}",
        6,
        f.rasterizer,
        needs=("reference",),
        holds=f.rasterizer_holds,
        in_all=False,
    ),
    Benchmark(
        "rasterizer_baseline",
        SPLATS,
        "Today's rasteriser takes at most 1.05 of the time of the committed baseline, the rasteriser "
        "of a0174af.",
        "rasterizer.py --cases 10k-256,100k-640 --rounds 3 --repeats 5 --commit a0174af --json {json}",
        1.5,
        f.rasterizer,
        holds=f.rasterizer_kept,
    ),
    Benchmark(
        "rasterizer_reference",
        SPLATS,
        "The fast rasteriser is the float64 definition to 1e-3 of the largest value, pictures and "
        "all gradients.",
        "rasterizer_reference.py --json {json}",
        1,
        f.rasterizer_reference,
        holds=_holds,
    ),
    Benchmark(
        "splat_training",
        SPLATS,
        "Held-out quality over time on the procedural scene.",
        "splat_training.py synthetic --steps 200,400,800,1600 --json {json}",
        6,
        f.splat_training,
        short="splat_training.py synthetic --steps 100,200,400 --json {json}",
        short_minutes=2.5,
    ),
    Benchmark(
        "splat_training_fox",
        SPLATS,
        "Held-out quality over time on 50 phone photos with given cameras.",
        "splat_training.py {data}/fox --steps 200,400,800,1600 --json {json}",
        8,
        f.splat_training,
        needs=("data:fox",),
        in_all=False,
    ),
    Benchmark(
        "networks_vggt_cpu",
        NETWORKS,
        "VGGT on 8 frames takes at most 0.8 of the original's time and 0.6 of its activation "
        "memory, with the same outputs.",
        "networks.py vggt --reference {reference} --json {json}",
        5,
        f.network,
        needs=("reference",),
        holds=f.network_holds(0.8, 0.6),
        in_all=False,
    ),
    Benchmark(
        "networks_mast3r_cpu",
        NETWORKS,
        "MASt3R over all 30 ordered pairs of 6 images takes at most 0.5 of the original's time, "
        "with the same outputs.",
        "networks.py mast3r --reference {reference} --size 160x224 --json {json}",
        6,
        f.network,
        needs=("reference",),
        holds=f.network_holds(0.5),
        in_all=False,
    ),
    Benchmark(
        "networks_mast3r_sizes_cpu",
        NETWORKS,
        "The same over pictures, sizes and number types.",
        "networks.py mast3r --reference {reference} --images 2,6 --size 96x96,160x224 "
        "--dtypes float32,bfloat16 --repeats 2 --json {json}",
        12,
        f.network,
        needs=("reference",),
        in_all=False,
    ),
    Benchmark(
        "encoders_cpu",
        NETWORKS,
        "DINOv2 and DINOv3 take at most the time of transformers' and timm's, with the same "
        "outputs.",
        "encoders.py --json {json}",
        2,
        f.encoders,
        needs=("extra:transformers",),
        holds=lambda r: all(row["cpu_time_ratio"] <= 1.02 for row in r["rows"]),
    ),
    Benchmark(
        "pairs",
        NETWORKS,
        "A pair graph encodes every picture once and gives the outputs of pairs encoded anew, from "
        "three pictures on in less time.",
        "pairs.py --json {json}",
        3,
        f.pairs,
        holds=lambda r: (
            all(row["ratio"] < 1 for row in r["rows"] if row["pictures"] > 2)
            and r["largest_relative_difference"] < 1e-3
        ),
        short="pairs.py --counts 2,3,4,6 --size 64x96 --rounds 1 --json {json}",
        short_minutes=0.7,
    ),
    Benchmark(
        "probing",
        PROBING,
        "A probing scene with 4 features and 3 modes takes at most 0.25 of the step-by-step "
        "pipeline's time.",
        "probing.py --share 0.01 --json {json}",
        7,
        f.probing,
        holds=lambda r: r["ratio"] <= 0.25,
        short="probing.py --share 0.01 --modes G --features iuvrgb random --json {json}",
        short_minutes=2.5,
    ),
    Benchmark(
        "probing_controls",
        PROBING,
        "Probing tells informed features from uninformed ones: the cloud's own points beat noise.",
        "probing_grid.py --config configs/probe/controls.yaml -o {scratch} --json {json}",
        20,
        f.controls,
        holds=lambda r: "random" in r["scores"]["G psnr"]["features"]["points"]["better_than"],
        in_all=False,
    ),
    Benchmark(
        "probing_fast_grid",
        PROBING,
        "The fast grid runs unattended, is killed at random on the way, and loses nothing.",
        "probing_grid.py {data}/fox {data}/rgbd_chair -o {scratch} --kills 3 --json {json}",
        90,
        f.grid,
        needs=("data:fox", "data:rgbd_chair"),
        holds=lambda r: any(attempt["killed"] for attempt in r["attempts"]),  # or it had ended
        in_all=False,
    ),
    Benchmark(
        "segmentation",
        PROBING,
        "Few-shot matching of 1024 masks and 80 classes gives the reference formulation's result "
        "in less time and memory.",
        "segmentation.py --json {json}",
        3,
        f.segmentation,
        holds=lambda r: (
            r["same_labels_and_masks"] and r["time_ratio"] > 1 and r["memory_ratio"] > 1
        ),
        short="segmentation.py --repeats 1 --json {json}",
        short_minutes=1.5,
    ),
    Benchmark(
        "lifting",
        PROBING,
        "Exact masks of 4 views, lifted into the demo scene, come back in held-out views; damaged "
        "ones too, with losses.",
        "lifting.py --json {json}",
        4,
        f.lifting,
        short="lifting.py --seeds 1 --json {json}",
        short_minutes=3,
    ),
    Benchmark(
        "lifting_1500_steps",
        PROBING,
        "The same in a scene of 1500 steps.",
        "lifting.py --steps 1500 --json {json}",
        8,
        f.lifting,
        in_all=False,
    ),
    Benchmark(
        "prepare",
        DATA,
        "`prepare` of 10,000 pictures needs no more memory at the end than after its warm-up, to "
        "5 %.",
        "prepare.py --json {json}",
        2,
        f.prepare,
        holds=lambda r: r["growth_below_5_percent"],
    ),
    Benchmark(
        "train_dino_clothing",
        DATA,
        "A DINO encoder trained from nothing on 200 photos gains five points of k-NN accuracy, "
        "and at least twice the spread over seeds.",
        "train_dino.py {data}/clothing --json {json}",
        25,
        f.train_dino,
        needs=("data:clothing",),
        holds=_holds,
        in_all=False,
    ),
    Benchmark(
        "train_vggt_synthetic",
        DATA,
        "A small VGGT trained on generated rooms makes at most half of the mean predictor's errors "
        "in rooms that it never saw.",
        "train_vggt.py --json {json}",
        15,
        f.train_vggt,
        holds=lambda r: all(run["reached"] for run in r["seeds"]),
        in_all=False,
    ),
    Benchmark(
        "train_splatt3r_synthetic",
        DATA,
        "Splatt3R with each way of fusing becomes better than its own start.",
        "splatt3r_training.py --work {scratch} --json {json}",
        90,
        f.train_splatt3r,
        holds=lambda r: r["all_better_than_their_start"],
        in_all=False,
    ),
    Benchmark(
        "startup",
        START,
        "`import sightline` costs under 0.1 s and loads no torch; `sightline --help` takes under "
        "0.5 s.",
        "startup.py --json {json}",
        0.5,
        f.startup,
        holds=_holds,
    ),
    Benchmark(
        "scaling",
        START,
        "How work grows with splats, pixels, views, images, frames and workers.",
        "scaling.py --json {json}",
        4,
        f.scaling,
    ),
    Benchmark(
        "oldest_torch",
        START,
        "The oldest torch that `pyproject.toml` allows passes the tests that torch has a say in.",
        "oldest_torch.py --json {json}",
        20,
        f.oldest_torch,
        holds=lambda r: not r["failed"] and r["exit_code"] == 0,
        in_all=False,
    ),
    Benchmark(
        "fuzz",
        SAFETY,
        "A million damaged files and forms crash, hang or mislead no reader.",
        "fuzz.py --output {json}",
        120,
        f.totals,
        holds=lambda r: r["total"]["findings"] == 0,
        in_all=False,
    ),
    Benchmark(
        "faults",
        SAFETY,
        "Full disks, missing permissions, kills, corrupt caches and jumping clocks lose nothing "
        "that was finished.",
        "faults.py --output {json}",
        60,
        f.totals,
        holds=lambda r: r["total"]["violations"] == 0,
        in_all=False,
    ),
    Benchmark(
        "leaks",
        SAFETY,
        "1,000 rasteriser jobs and 100 app jobs leave no memory, files, threads or processes "
        "behind.",
        "leaks.py --output {json}",
        15,
        f.leaks,
        needs=("extra:gradio",),
        holds=lambda r: not r["leaking"],
        in_all=False,
    ),
    Benchmark(
        "app_load",
        SAFETY,
        "Twenty users and two hundred watchers of the app lose, cross and leak nothing.",
        "app_load.py --output {json}",
        6,
        f.app_load,
        needs=("extra:gradio",),
        holds=lambda r: not r["trouble"] and r["done"] == r["jobs"],
        short="app_load.py --seconds 60 --output {json}",
        short_minutes=1.5,
    ),
    Benchmark(
        "gpu",
        GPU,
        "On CUDA: the GPU tests, gsplat beside the golden values and our CPU kernels, bfloat16, "
        "compile, memory, speed.",
        "gpu.py --json {json}",
        10,
        f.gpu,
        needs=("gpu",),
        holds=lambda r: all(part["status"] == "done" for part in r["parts"].values()),
        in_all=False,
    ),
)
