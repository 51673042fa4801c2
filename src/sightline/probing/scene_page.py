"""One scene of a grid: photos, renders of every feature, error maps, feature PCA, videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.io.arrays import read_npz
from sightline.probing import files
from sightline.probing.results import METRICS, Row, metrics_of
from sightline.probing.visibility import counted_pixels
from sightline.report.colormap import MAGMA
from sightline.report.figures import ERROR_LIMIT, encode_jpegs, error_picture, to_pixels
from sightline.report.markup import Html, data_uri, element
from sightline.report.numbers import format_number
from sightline.report.theme import Column, brand, command_block, page, scale_bar, section, table

_BUDGET = 3_000_000
_SIDE = 420
_MOST_FEATURES = 24
_MOST_VIEWS = 3
_VIDEO_BUDGET = 12_000_000


def scene_page(
    scene: str,
    rows: Sequence[Row],
    companions: Sequence[dict[str, Any]],
    output: Path,
    command: str,
) -> str:
    """Return the page of one scene."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    first = min(row.seed for row in rows)
    parts: list[Html | None] = []
    for mode in modes:
        chosen = [row for row in rows if row.mode == mode and row.seed == first]
        parts.append(_renders(mode, chosen[:_MOST_FEATURES]))
    parts += [_videos(companions, output), _features(rows, first), _scores(rows)]
    main = element(
        "main",
        brand("probe"),
        element("h1", scene),
        element(
            "p",
            element("a", "All scenes", href="../report.html"),
            f" \u00b7 {len(rows)} probes \u00b7 renders of seed {first}",
            class_="summary",
        ),
        parts,
        command_block(command),
    )
    return page(f"{scene} \u00b7 probe", main, policy="; media-src data:")


def strip(rows: Sequence[Row]) -> Html | None:
    """Return the photo of one test view and each feature's render of it, side by side."""
    rows = [row for row in rows if row.test][:_MOST_FEATURES]
    if not rows:
        return None
    photos = _photos(rows[0])
    view = _best_view(rows[0])
    pictures = [to_pixels(photos[view])]
    captions = [("photo", rows[0].test[view])]
    for row in rows:
        pictures.append(to_pixels(_renders_of(row)[view]))
        captions.append((row.feature, f"{format_number(row.scores['psnr'][view], 2)} dB"))
    return _sheet(pictures, captions)


def _best_view(row: Row) -> int:
    """Return the view that shows most scored pixels."""
    return int(np.argmax(row.scores["mask"]))


def _photos(row: Row) -> Tensor:
    scene = files.read_scene(row.inputs[0] / "scene.npz")
    return scene.targets[scene.num_train :]


def _renders_of(row: Row) -> Tensor:
    return torch.from_numpy(read_npz(row.folder / "renders.npz")["renders"])


def _sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[tuple[str, str]], *, paired: bool = False
) -> Html:
    """Lay pictures out with captions below; ``paired`` keeps each two side by side."""
    jpegs = encode_jpegs(pictures, long_side=_SIDE, budget=_BUDGET // 4)
    figures = [
        element(
            "figure",
            element("img", src=data_uri(data, "image/jpeg"), alt=name, loading="lazy"),
            element("figcaption", element("b", name), element("span", text)),
        )
        for data, (name, text) in zip(jpegs, captions, strict=True)
    ]
    if not paired:
        return element("div", figures, class_="grid depths", style="--least:190px")
    side = "display:grid;grid-template-columns:1fr 1fr;gap:8px"
    pairs = [element("div", figures[i : i + 2], style=side) for i in range(0, len(figures), 2)]
    # One pair a row on a phone, where pictures of half a column would be too small.
    columns = "grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))"
    return element("div", pairs, class_="grid depths", style=f"{columns};margin-bottom:24px")


def _counted(photo: Tensor, mask: Tensor) -> np.ndarray:
    """Return a photo whose pixels that are not scored are faint."""
    pixels = photo.float() / 255
    return to_pixels(torch.where(mask, pixels, 0.85 + 0.15 * pixels))


def _scores(rows: Sequence[Row]) -> Html | None:
    metrics = metrics_of(rows)
    columns = [Column(name="Feature"), Column(name="Mode"), Column(name="Seed", is_number=True)]
    columns += [Column(name=METRICS[m][0], unit=METRICS[m][1], is_number=True) for m in metrics]
    columns += [Column(name="Scored", unit="%", is_number=True)]
    cells = [
        [
            row.feature,
            row.mode,
            str(row.seed),
            *(format_number(row.mean(m), METRICS[m][2]) for m in metrics),
            format_number(100 * row.mean("mask"), 0),
        ]
        for row in rows
    ]
    return section("Scores", element("div", table(columns, cells), class_="narrow"))


def _renders(mode: str, rows: Sequence[Row]) -> Html | None:
    rows = [row for row in rows if row.test]
    if not rows:
        return None
    photos = _photos(rows[0])
    scene_views = range(min(_MOST_VIEWS, len(photos)))
    masks = counted_pixels(files.read_cloud(rows[0].inputs[1] / "cloud.npz").masks)
    parts: list[Html] = []
    for view in scene_views:
        share = f"{format_number(100 * rows[0].scores['mask'][view], 0)} % scored"
        pictures = [to_pixels(photos[view]), _counted(photos[view], masks[view])]
        captions = [("photo", rows[0].test[view]), ("", share)]
        for row in rows:
            render = _renders_of(row)[view]
            score = f"{format_number(row.scores['psnr'][view], 2)} dB"
            pictures += [to_pixels(render), error_picture(render, photos[view])]
            captions += [(row.feature, score), ("", "error")]
        parts.append(_sheet(pictures, captions, paired=True))
    ticks = [(0.0, "0"), (0.5, f"{ERROR_LIMIT / 2:g}"), (1.0, f"{ERROR_LIMIT:g}")]
    bar = scale_bar(MAGMA, ticks, "mean absolute difference of the channels, of 1")
    return section(f"Mode {mode}", *parts, bar)


def _features(rows: Sequence[Row], seed: int) -> Html | None:
    pictures, captions = [], []
    seen = set()
    for row in rows:
        if len(row.inputs) < 3 or row.seed != seed or row.feature in seen:
            continue
        seen.add(row.feature)
        colors = torch.from_numpy(read_npz(row.inputs[2] / "pca.npz")["colors"])
        larger = torch.nn.functional.interpolate(
            colors[:1].float() / 255,
            scale_factor=max(1, 256 // max(colors.shape[-2:])),
            mode="nearest",
        )
        pictures.append(to_pixels(larger[0]))
        captions.append((row.feature, "first training view"))
    if not pictures:
        return None
    note = "First three principal components, axes fixed over the scene"
    return section("Features", _sheet(pictures, captions), note=note)


def _videos(companions: Sequence[dict[str, Any]], output: Path) -> Html | None:
    """Return the videos inside the page while they fit, and links to the files."""
    items: list[Html] = []
    left = _VIDEO_BUDGET
    for cell in companions:
        if cell["kind"] != "video":
            continue
        for mode, name in cell["summary"]["files"].items():
            file: Path = cell["folder"] / name
            movie = None
            if file.stat().st_size <= left:
                left -= file.stat().st_size
                movie = element(
                    "video",
                    src=data_uri(file.read_bytes(), "video/mp4"),
                    controls=True,
                    loop=True,
                    muted=True,
                    playsinline=True,
                    preload="metadata",
                    style="display:block;width:100%;border-radius:8px",
                )
            shown = "" if mode == "rgb" else f", {mode}"
            text = f"{cell['mode']}, {cell['summary']['path']}{shown}"
            link = element("a", text, href=f"../{file.relative_to(output).as_posix()}")
            caption = element("figcaption", element("b", cell["feature"]), link)
            items.append(element("figure", movie, caption))
    grid = element("div", items, class_="grid depths", style="--least:240px")
    return section("Videos", grid) if items else None
