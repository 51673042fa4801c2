"""What a pair graph costs over the number of pictures: every picture once, beside every pair anew.

    python benchmarks/pairs.py [--counts 2,3,4,6,8] [--graphs complete,swin-2,oneref-0]
                               [--size 112x160] [--rounds 2] [--threads 2] [--json FILE]

Both sides are our MASt3R with the same drawn weights (a third of the published width and depth, so
that encoder and decoder keep their proportions) and run the same ordered pairs; outputs must agree.
``per_pair`` calls the network as the original is called: both pictures of every ordered pair are
encoded. ``ours`` encodes each picture once and decodes both directions together. Sides take turns;
``ratio`` is ours divided by per_pair, of CPU seconds. Each graph gets the exponent of its CPU seconds
over the number of pictures, from three pictures on.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor, nn

from sightline.models.mast3r import AsymmetricMASt3R
from sightline.reconstruction.pairwise.graph import make_pairs
from sightline.reconstruction.pairwise.images import Picture
from sightline.reconstruction.pairwise.inference import Both, run_pairs

SIZES: dict[str, Any] = {
    "enc_embed_dim": 384,
    "enc_depth": 8,
    "enc_num_heads": 6,
    "dec_embed_dim": 256,
    "dec_depth": 4,
    "dec_num_heads": 4,
    "dpt": {"feature_dim": 64, "last_dim": 32, "layer_dims": [24, 48, 96, 96]},
    "landscape_only": False,
}


class PerPair(nn.Module):
    """A network of which nothing is known but that it takes two views."""

    def __init__(self, inner: nn.Module) -> None:
        """Wrap a network."""
        super().__init__()
        self.inner = inner
        self.encoded = 0

    def forward(self, first: dict[str, Any], second: dict[str, Any]) -> tuple[Any, Any]:
        """Return what the network says about both."""
        self.encoded += len(first["img"]) + len(second["img"])
        return self.inner(first, second)


def difference(a: Both, b: Both) -> float:
    """Return the largest difference of any output, relative to the output's largest value."""
    worst = 0.0
    for pair, result in a.items():
        for mine, theirs in zip(result, b[pair], strict=True):
            for name, value in mine.items():
                other: Tensor = theirs[name]
                worst = max(worst, float((value - other).abs().max() / other.abs().max()))
    return worst


def main() -> None:
    """Take turns over graphs and counts, compare, fit, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--counts", default="2,3,4,6,8")
    parser.add_argument("--graphs", default="complete,swin-2,oneref-0")
    parser.add_argument("--size", default="112x160", help="height x width")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "pairs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**SIZES).eval()
    plain = PerPair(model).eval()
    sides: dict[str, nn.Module] = {"ours": model, "per_pair": plain}
    height, width = (int(side) for side in args.size.split("x"))
    rng = np.random.default_rng(0)
    counts = [int(n) for n in args.counts.split(",")]
    pictures = [
        Picture(
            pixels=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            from_source=np.eye(3),
            source_size=(height, width),
        )
        for _ in range(max(counts))
    ]
    for side in sides.values():  # warms up
        list(run_pairs(side, pictures, [(0, 1), (1, 0)]))
    rows: list[dict[str, Any]] = []
    for graph in args.graphs.split(","):
        for count in counts:
            pairs = make_pairs(graph, count)
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            busy: dict[str, list[float]] = {name: [] for name in sides}
            found: dict[str, Both] = {}
            plain.encoded = 0
            for turn in range(args.rounds):
                for name in list(sides)[:: 1 if turn % 2 else -1]:
                    began, used = time.perf_counter(), time.process_time()
                    parts = list(run_pairs(sides[name], pictures[:count], pairs))
                    seconds[name].append(time.perf_counter() - began)
                    busy[name].append(time.process_time() - used)
                    found[name] = {pair: r for both in parts for pair, r in both.items()}
            row = {
                "graph": graph,
                "pictures": count,
                "ordered_pairs": len(pairs),
                "encodings": {"ours": count, "per_pair": plain.encoded // args.rounds},
                "seconds": {name: round(min(v), 4) for name, v in seconds.items()},
                "cpu_seconds": {name: round(min(v), 4) for name, v in busy.items()},
                "ratio": round(min(busy["ours"]) / min(busy["per_pair"]), 4),
                "largest_relative_difference": difference(found["ours"], found["per_pair"]),
            }
            rows.append(row)
            print(f"{graph:10s} {count:3d}", row["cpu_seconds"], row["ratio"], flush=True)
    exponents = {
        graph: {
            name: common.power_law(
                *zip(
                    *(
                        (row["pictures"], row["cpu_seconds"][name])
                        for row in rows
                        if row["graph"] == graph and row["pictures"] >= 3
                    ),
                    strict=True,
                )
            )["exponent"]
            for name in sides
        }
        for graph in args.graphs.split(",")
    }
    content = {
        "height": height,
        "width": width,
        "threads": args.threads,
        "rounds": args.rounds,
        "rows": rows,
        "exponents": exponents,
        "largest_relative_difference": max(row["largest_relative_difference"] for row in rows),
    }
    common.write(args.json, content)


if __name__ == "__main__":
    main()
