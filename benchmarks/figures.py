"""From a result to the words of its row on the page: one function a kind of result."""

from typing import Any

Result = dict[str, Any]


def number(value: float, digits: int = 2) -> str:
    """Write a number with so many significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - magnitude)}f}"


def tiny(value: float) -> str:
    """Write a small number such as 1.6e-6."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _range(values: list[float]) -> str:
    low, high = (f"{choose(values):.2f}" for choose in (min, max))
    return low if low == high else f"{low} to {high}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} of the time"


def reconstruct(r: Result) -> str:
    """Registered views, held-out score, time, memory, pose errors."""
    m = r["metrics"]
    words = [
        f"{m['registered']} of {m['views']} registered",
        f"{m['test']['psnr']['mean']:.1f} dB",
        f"{r['seconds']:.0f} s",
        f"{r['peak_memory_mb'] / 1000:.2f} GB",
    ]
    if poses := r.get("poses"):
        words.append(
            f"cameras off by {poses['mean_rotation_error_degrees']:.2g} degrees and "
            f"{poses['mean_center_error_percent_of_extent']:.1g} % of the largest distance"
        )
    return ", ".join(words)


def sfm(r: Result) -> str:
    """Registered views of every set."""
    parts = [
        f"{name} {s['registered']}/{s['views']}"
        + (f" ({s['mean_rotation_error_degrees']:.2f} degrees)" if name == "fox" else "")
        for name, s in r["sets"].items()
    ]
    return "registered: " + ", ".join(parts)


def splat_training(r: Result) -> str:
    """Held-out score over steps and time."""
    return "; ".join(
        f"{run['steps']} steps {run['psnr']:.1f} dB, {run['cpu_s']:.0f} s of CPU"
        for run in r["runs"]
    )


def rasterizer(r: Result) -> str:
    """Milliseconds of the largest case, ratio to the reference, threads."""
    cases = {(row["case"], row["threads"]): row for row in r["rows"]}
    name = "100k-640" if ("100k-640", 1) in cases else next(iter(cases))[0]
    words = []
    for threads in (1, 2):
        if row := cases.get((name, threads)):
            words.append(
                f"{row['ours']['both_ms']:.0f} ms on {('', 'one thread', 'two threads')[threads]}"
            )
    ratios = [row["ratio"]["both_cpu_ms"] for row in r["rows"] if "ratio" in row]
    if ratios:
        words.append(f"{_range(ratios)} of the reference's CPU time")
    scaling = [row["scaling"] for row in r["rows"] if row["threads"] == 2 and "scaling" in row]
    if scaling:
        words.append(f"two threads take {_range(scaling)} of one")
    return f"{name}: " + ", ".join(words)


def rasterizer_holds(r: Result) -> bool:
    """At most the reference's time on one thread, and 0.6 of it with two threads at 100k splats."""
    ratios = [row["ratio"]["both_cpu_ms"] for row in r["rows"] if "ratio" in row]
    large = [
        row["scaling"]
        for row in r["rows"]
        if row["threads"] == 2 and "scaling" in row and row["case"].startswith("100k")
    ]
    return max(ratios, default=0) <= 1 and max(large, default=0) <= 0.6


def rasterizer_kept(r: Result) -> bool:
    """At most the reference's time, to what two measurements differ by."""
    return all(row["ratio"]["both_cpu_ms"] <= 1.05 for row in r["rows"])


def rasterizer_reference(r: Result) -> str:
    """Differences, and how many times faster."""
    rows = r["rows"]
    return (
        f"picture and gradients differ by at most {tiny(r['difference']['largest'])} of the "
        f"largest value; {number(min(x['times_faster_than_float64'] for x in rows))} to "
        f"{number(max(x['times_faster_than_float64'] for x in rows))} times faster"
    )


def network(r: Result) -> str:
    """Time, memory and outputs beside the other side's, of every dtype."""
    words = []
    for run in r["runs"]:
        size = {**r, **run}
        where = f"{size['images']} of {size['height']}x{size['width']}, {run['dtype']}"
        if "time_ratio" not in run:
            words.append(f"{where}: {run['median_s']['ours']:.2f} s, nothing beside it")
            continue
        worst = max(d["absolute"] for d in run["largest_difference"].values())
        memory = run.get("memory_ratio")
        words.append(
            f"{where}: {_times(run['time_ratio'])}"
            + (f", {memory:.2f} of the activation memory" if memory else "")
            + f", same outputs to {tiny(worst)}"
        )
    return "; ".join(words)


def network_holds(time: float, memory: float | None = None) -> Any:  # noqa: ANN401
    """Return a check: at most so much of the other side's time and memory."""

    def holds(r: Result) -> bool:
        return all(
            run["time_ratio"] <= time and (memory is None or run["memory_ratio"] <= memory)
            for run in r["runs"]
        )

    return holds


def encoders(r: Result) -> str:
    """Range of CPU time ratios and the worst difference, by library."""
    words = []
    for library, version in r["libraries"].items():
        rows = [row for row in r["rows"] if row["library"] == library]
        ratios = [row["cpu_time_ratio"] for row in rows]
        worst = max(
            d["absolute"]
            for row in rows
            if row["dtype"] == "float32"
            for d in row["largest_difference"].values()
        )
        words.append(
            f"{library} {version}: {_range(ratios)} of the CPU time, same outputs to {tiny(worst)}"
        )
    return "; ".join(words)


def pairs(r: Result) -> str:
    """Ratio at the largest graph, exponents."""
    last = [row for row in r["rows"] if row["graph"] == "complete"][-1]
    grown = ", ".join(f"{graph} {e['ours']:.2f}" for graph, e in r["exponents"].items())
    return (
        f"complete graph of {last['pictures']}: {last['encodings']['ours']} encodings instead of "
        f"{last['encodings']['per_pair']}, {last['ratio']:.2f} of the CPU time, same outputs to "
        f"{tiny(r['largest_relative_difference'])}; exponents over the pictures: {grown}"
    )


def probing(r: Result) -> str:
    """Ratios to the step-by-step pipeline."""
    worst = max(abs(v - r["psnr"]["step_by_step"][k]) for k, v in r["psnr"]["ours"].items())
    return (
        f"{r['ratio']:.2f} of the time, {r['cpu_ratio']:.2f} of the core seconds, same PSNR to "
        f"{worst:.4f} dB"
    )


def controls(r: Result) -> str:
    """Scores of both controls."""
    found = r["scores"]["G psnr"]["features"]
    return ", ".join(f"{n} {f['mean']:.1f} dB" for n, f in found.items())


def grid(r: Result) -> str:
    """Tasks, minutes, kills."""
    killed = sum(a["killed"] for a in r["attempts"])
    return (
        f"{r['tasks']} tasks over {', '.join(r['scenes']) or 'the scenes of the file'} in "
        f"{r['minutes']:.0f} minutes ({r['core_minutes']:.0f} core minutes), killed {killed} times, "
        "no finished file lost or changed"
    )


def segmentation(r: Result) -> str:
    """Time and memory ratios."""
    same = "same" if r["same_labels_and_masks"] else "DIFFERENT"
    return (
        f"{r['time_ratio']:.0f} times less time, {r['memory_ratio']:.0f} times less memory, "
        f"{same} labels and masks"
    )


def lifting(r: Result) -> str:
    """Mean IoU of the settings."""
    shown = {"exact_4": "exact masks of 4 views", "damaged_4": "30 % damaged"}
    words = []
    for name, text in shown.items():
        values = [row["miou"] for row in r["results"][name]]
        words.append(f"{text} {_range(values)}")
    return "mean IoU in held-out views: " + ", ".join(words)


def prepare(r: Result) -> str:
    """Throughput and growth of memory."""
    return (
        f"{r['pictures_per_second']:.0f} pictures a second with {r['workers']} workers, memory "
        f"growing {100 * r['growth_after_warm_up']:.1f} % after warm-up"
    )


def train_dino(r: Result) -> str:
    """Gain of k-NN accuracy."""
    return (
        f"k-NN accuracy gains {r['gain_points_mean']:.1f} points over {len(r['seeds'])} seeds, "
        f"spread {r['gain_points_spread']:.1f}"
    )


def train_vggt(r: Result) -> str:
    """Errors as shares of the mean predictor's."""
    words = []
    for run in r["seeds"]:
        ratios = ", ".join(f"{name} {value:.2f}" for name, value in run["ratios"].items())
        words.append(f"seed {run['seed']}: {ratios} ({run['seconds'] / 60:.0f} minutes)")
    return "share of the mean predictor's error, " + "; ".join(words)


def train_splatt3r(r: Result) -> str:
    """Gain of each run."""
    gains = ", ".join(f"{run['run']} {run['gain_psnr_db']:+.2f}" for run in r["runs"])
    return f"held-out PSNR, dB beyond the start: {gains}"


def startup(r: Result) -> str:
    """Seconds of import and help."""
    calls = r["calls"]
    return (
        f"import {1000 * calls['import sightline']['beyond_python_s']:.0f} ms beyond Python's own "
        f"{1000 * calls['python -c pass']['fastest_s']:.0f} ms, `sightline --help` "
        f"{calls['sightline --help']['fastest_s']:.2f} s, `sightline demo --help` "
        f"{calls['sightline demo --help']['fastest_s']:.2f} s"
    )


def scaling(r: Result) -> str:
    """Exponents of all curves."""
    parts = []
    for name, curve in r["curves"].items():
        fit = curve["wall_fit" if name == "workers" else "cpu_fit"]
        sizes = curve["sizes"]
        parts.append(f"{name} {fit['exponent']:.2f} ({sizes[0]:,} to {sizes[-1]:,})")
    return "exponents: " + ", ".join(parts)


def oldest_torch(r: Result) -> str:
    """Tests passed."""
    return (
        f"torch {r['tried']}: {r['passed']} tests passed, {len(r['failed'])} failed, "
        f"{r['skipped']} skipped"
    )


def totals(r: Result) -> str:
    """Whatever was counted."""
    return ", ".join(f"{value:,.0f} {name.replace('_', ' ')}" for name, value in r["total"].items())


def leaks(r: Result) -> str:
    """Growth of memory in both parts."""
    parts = [
        f"{r[part]['jobs']:,} {part} jobs: memory {r[part]['memory_mb']['growth']:+.1f} %"
        for part in ("rasteriser", "app")
        if part in r
    ]
    return ", ".join([*parts, f"leaking: {', '.join(r['leaking']) or 'nothing'}"])


def app_load(r: Result) -> str:
    """Jobs done, and what was lost."""
    trouble = sum(r["trouble"].values()) if isinstance(r["trouble"], dict) else len(r["trouble"])
    return f"{r['done']} of {r['jobs']} jobs done, {trouble} lost, crossed or leaked"


def gpu(r: Result) -> str:
    """Parts that ran."""
    good = [name for name, part in r["parts"].items() if part["status"] == "done"]
    bad = [name for name, part in r["parts"].items() if part["status"] == "failed"]
    return f"{len(good)} parts done in {r['seconds']:.0f} s" + (
        f"; failed: {', '.join(bad)}" if bad else ""
    )


def everything(r: Result) -> str:
    """Minutes and outcome of `all`."""
    ended = r["ended"]
    failed = [row["name"] for row in ended if row["exit_code"]]
    return f"{len(ended)} benchmarks in {r['minutes']:.0f} minutes" + (
        f"; failed: {', '.join(failed)}" if failed else ", none failed"
    )
