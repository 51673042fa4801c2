"""`sightline prepare` on ten thousand pictures: how fast, and does its memory grow?

Pictures are drawn by the script. Memory is the resident size of the process and its children, once a
second; growth is that of the median over the last fifth of the pictures beyond the median of the
second fifth, so that the first fifth may warm up.

    python benchmarks/prepare.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, write
from PIL import Image

SIZE = (240, 320)


def draw(folder: Path, count: int) -> None:
    """Write pictures that are all different: patches of one large noise picture."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 64, 3), np.uint8)
    sheet = np.asarray(Image.fromarray(coarse).resize((2048, 2048), Image.Resampling.BICUBIC))
    for number in range(count):
        y, x = rng.integers(0, 2048 - SIZE[0]), rng.integers(0, 2048 - SIZE[1])
        part = sheet[y : y + SIZE[0], x : x + SIZE[1]]
        Image.fromarray(part).save(folder / f"{number:05d}.jpg", quality=90)


def resident(pid: int) -> int:
    """Return the resident bytes of a process and all below it (Linux)."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            waiting += [
                int(child)
                for task in Path(f"/proc/{one}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except (OSError, ValueError, IndexError):
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def watch(words: list[str], images: Path) -> tuple[list[tuple[float, int, int]], float]:
    """Run a command; return (second, pictures done, resident bytes) over time, and its seconds."""
    rows: list[tuple[float, int, int]] = []
    began = time.perf_counter()
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = sum(1 for _ in os.scandir(images)) if images.is_dir() else 0
            rows.append((time.perf_counter() - began, done, resident(process.pid)))
            time.sleep(1)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    return rows, time.perf_counter() - began


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "prepare.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch, "in"), Path(scratch, "out")
        source.mkdir()
        draw(source, chosen.count)
        words = [sys.executable, "-m", "sightline", "prepare", str(source), "-o", str(output)]
        words += ["--size", "256", "--workers", str(chosen.workers)]
        rows, seconds = watch(words, output / "images")
        _, second = watch(words, output / "images")
        made = sum(1 for _ in os.scandir(output / "images"))
    early = [rss for _, done, rss in rows if 0.2 <= done / chosen.count < 0.4]
    late = [rss for _, done, rss in rows if done / chosen.count >= 0.8]
    growth = statistics.median(late) / statistics.median(early) - 1
    write(
        chosen.json,
        {
            "what": f"sightline prepare, {chosen.count} JPEGs of 320 x 240 to PNGs of 256 x 192",
            "workers": chosen.workers,
            "pictures": made,
            "seconds": round(seconds, 2),
            "pictures_per_second": round(made / seconds, 1),
            "seconds_of_a_second_call_that_has_nothing_to_do": round(second, 2),
            "resident_mb": {
                "after_warm_up": round(statistics.median(early) / 1e6, 1),
                "at_the_end": round(statistics.median(late) / 1e6, 1),
                "peak": round(max(rss for *_, rss in rows) / 1e6, 1),
            },
            "growth_after_warm_up": round(growth, 4),
            "growth_below_5_percent": growth < 0.05,
            "samples": [[round(t, 1), done, round(rss / 1e6, 1)] for t, done, rss in rows[::5]],
        },
    )


if __name__ == "__main__":
    main()
