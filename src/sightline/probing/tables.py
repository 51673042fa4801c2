"""A grid's results as CSV, for other programs, and as LaTeX, for papers."""

import csv
import io
import math

from sightline.probing.results import METRICS, Results, metrics_of
from sightline.probing.shape import SHAPE
from sightline.probing.stats import differences, estimate, tied_ranks


def scores_csv(results: Results) -> str:
    """Return one line a probe and test view."""
    names = sorted({name for row in results.rows for name in row.scores})
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["protocol", "scene", "feature", "mode", "seed", "view", *names])
    for row in results.rows:
        for i, view in enumerate(row.test):
            values = [row.scores[name][i] if name in row.scores else math.nan for name in names]
            numbers = ["" if math.isnan(v) else f"{v:.6g}" for v in values]
            out.writerow(
                [results.protocol, row.scene, row.feature, row.mode, row.seed, view, *numbers]
            )
    return text.getvalue()


def summary_csv(results: Results) -> str:
    """Return one line a feature, mode and measure: mean and interval."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    head = ("feature", "mode", "metric", "mean", "low", "high", "scenes", "seeds", "seed_spread")
    out.writerow(head)
    for mode in results.modes:
        shapes = [name for name in SHAPE if any(name in row.shape for row in results.rows)]
        for metric in (*metrics_of(results.rows), *shapes):
            features, table = results.table(mode, metric)
            for feature, found in zip(features, estimate(table), strict=True):
                numbers = (found.mean, found.low, found.high)
                spread = "" if math.isnan(found.seed_spread) else f"{found.seed_spread:.6g}"
                out.writerow(
                    [
                        feature,
                        mode,
                        metric,
                        *("" if math.isnan(v) else f"{v:.6g}" for v in numbers),
                        found.scenes,
                        found.seeds,
                        spread,
                    ]
                )
    return text.getvalue()


_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


def latex_table(results: Results) -> str:
    """Return a ``tabular`` of means with intervals; the best of a column, and its ties, are bold."""
    metrics = metrics_of(results.rows)
    columns = [(mode, metric) for mode in results.modes for metric in metrics]
    cells: dict[tuple[str, str, str], str] = {}
    for mode, metric in columns:
        _, _, digits, higher = METRICS[metric]
        features, table = results.table(mode, metric)
        found = estimate(table)
        ranks = tied_ranks(table, differences(table, higher=higher), higher=higher)
        for i, feature in enumerate(features):
            if math.isnan(found[i].mean):
                continue
            half = (found[i].high - found[i].low) / 2
            text = f"{found[i].mean:.{digits}f}"
            text = rf"\mathbf{{{text}}}" if ranks[i][0] == 1 else text
            cells[feature, mode, metric] = rf"${text} \pm {half:.{digits}f}$"
    lines = [
        f"% {results.protocol}; half widths of 95 % bootstrap intervals over scenes and seeds",
        r"\begin{tabular}{l" + "c" * len(columns) + "}",
        r"\hline",
        " & ".join(
            ["Feature"]
            + [
                f"{mode} {METRICS[metric][0]} "
                + (r"$\uparrow$" if METRICS[metric][3] else r"$\downarrow$")
                for mode, metric in columns
            ]
        )
        + r" \\",
        r"\hline",
    ]
    for feature in results.features:
        row = [cells.get((feature, mode, metric), "--") for mode, metric in columns]
        if any(cell != "--" for cell in row):
            lines.append(" & ".join([feature.translate(_LATEX), *row]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])
