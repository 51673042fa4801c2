"""The report's sections made of pictures, each with its own budget of bytes."""

from collections.abc import Sequence

import numpy as np

from sightline.report import figures
from sightline.report.charts import nice_ticks
from sightline.report.colormap import MAGMA, TURBO
from sightline.report.data import Comparison, DepthPicture, InputPhoto, NamedPicture
from sightline.report.figures import Pixels, encode_jpegs, to_pixels
from sightline.report.markup import Child, Html, data_uri, element, file_name
from sightline.report.numbers import format_number, format_tick
from sightline.report.plan import CameraPlan, camera_plan
from sightline.report.scores import Scores, describe_metric, rank, spread
from sightline.report.theme import scale_bar, section

# Bytes of JPEG files; base64 adds a third. Together they keep every page below 8 MB.
_HERO_BUDGET = 1_100_000
_PAIRS_BUDGET = 2_200_000
_DEPTH_BUDGET = 700_000
_FEATURES_BUDGET = 500_000
_SHEET_BUDGET = 1_100_000

_MOST_PAIRS = 12
_MOST_DEPTHS = 8
_MOST_THUMBS = 400
_MOST_NAMES = 1000


def hero(comparisons: Sequence[Comparison], scores: Scores) -> Html | None:
    """Return the page's first picture: photos under a slider over their renders.

    One wide picture is the median view; narrow or small ones leave room for the worst and best.
    """
    if not comparisons:
        return None
    ranked = rank(comparisons, scores)
    height, width = ranked[0].photo.shape[1:]
    room = 3 if width < 0.9 * height else 2 if width < 720 else 1
    places = {1: ((0.5, "Median"),), 2: ((0.0, "Worst"), (1.0, "Best"))}.get(
        room, ((0.0, "Worst"), (0.5, "Median"), (1.0, "Best"))
    )
    chosen: dict[int, str] = {}
    for at, label in places:
        chosen.setdefault(round(at * (len(ranked) - 1)), label)
    if len(chosen) == 1:
        chosen = dict.fromkeys(chosen, "" if len(ranked) == 1 else "Median")
    views = [ranked[index] for index in chosen]
    pictures = [to_pixels(p) for view in views for p in (view.photo, view.render)]
    files = encode_jpegs(pictures, long_side=1600, budget=_HERO_BUDGET, quality=90)
    items = []
    for i, (view, label) in enumerate(zip(views, chosen.values(), strict=True)):
        rows, columns = pictures[2 * i].shape[:2]
        wipe = element(
            "div",
            _image(files[2 * i], pictures[2 * i], f"Photo {view.name}"),
            element(
                "div",
                _image(files[2 * i + 1], pictures[2 * i + 1], f"Render of {view.name}"),
                class_="over",
            ),
            element("div", class_="rule"),
            element("span", "Photo", class_="tag left"),
            element("span", "Render", class_="tag right"),
            element(
                "input", type="range", min=0, max=100, value=50, step=0.5,
                aria_label=f"Photo or render of {view.name}",
            ),
            class_="wipe",
            style=f"aspect-ratio:{columns}/{rows}",
        )  # fmt: skip
        caption = element(
            "figcaption",
            element("span", _label(view, label), file_name(view.name)),
            _score_line(view.name, scores),
        )
        extra = "extra" if len(views) > 1 and i != len(views) // 2 else None
        fit = f"max-width:calc(80vh*{columns / rows:.4f})"  # the whole picture on one screen
        items.append(element("figure", wipe, caption, class_=extra, style=fit))
    return element("div", items, class_="hero", style=f"--columns:{len(items)}")


def _label(view: Comparison, label: str) -> str | None:
    if not view.held_out:
        return "Training view: "
    return f"{label} held-out view: " if label else None


def compared_views(comparisons: Sequence[Comparison], scores: Scores) -> Html | None:
    """Return photo, render and error of the views, from worst to best when too many."""
    if not comparisons:
        return None
    shown: Sequence[Comparison] = comparisons
    note = "Photo, render, and where they differ"
    held_out = comparisons[0].held_out
    if not held_out:
        note += "; the splats were fitted to these, so new views may look worse"
    if len(comparisons) > _MOST_PAIRS:
        ranked = rank(comparisons, scores)
        shown = [ranked[i] for i in spread(len(ranked), _MOST_PAIRS)]
        note += f"; {len(shown)} of {len(comparisons)}, from worst to best"
    photos = [to_pixels(view.photo) for view in shown]
    renders = [to_pixels(view.render) for view in shown]
    errors = [figures.error_picture(view.render, view.photo) for view in shown]
    pictures = photos + renders + errors
    files = encode_jpegs(pictures, long_side=640, budget=_PAIRS_BUDGET, quality=87)
    count = len(shown)
    items = []
    for i, view in enumerate(shown):
        parts = [
            element("div", _image(files[at], pictures[at], f"{what} {view.name}"))
            for at, what in (
                (i, "Photo"),
                (i + count, "Render of"),
                (i + 2 * count, "Error of the render of"),
            )
        ]
        caption = element("figcaption", file_name(view.name), _score_line(view.name, scores))
        items.append(element("figure", element("div", parts, class_="triple"), caption))
    height, width = photos[0].shape[:2]
    least = 560 if width > height else 380
    ticks = [(v / figures.ERROR_LIMIT, format_tick(v)) for v in (0.0, 0.05, 0.1, 0.15, 0.2)]
    return section(
        "Held-out views" if held_out else "Training views",
        element("div", items, class_="triples", style=f"--least:{least}px"),
        scale_bar(MAGMA, ticks, "Mean absolute difference of the colour channels, full range 1"),
        note=note,
    )


def cameras_from_above(plan: CameraPlan | None) -> Html | None:
    """Return the drawing of the cameras with its legend."""
    drawing = camera_plan(plan) if plan is not None else None
    if plan is None or drawing is None:
        return None
    used = int(plan.registered.sum())
    held = sum(1 for view in plan.test if bool(plan.registered[view]))
    legend: list[Child] = [
        element("span", element("i"), f"{used - held} {'training views' if held else 'views'}")
    ]
    if held:
        legend.append(element("span", element("i"), f"{held} held out", class_="held"))
    if plan.points is not None and len(plan.points):
        legend.append(element("span", element("i"), "points", class_="cloud"))
    return section(
        "Cameras",
        element("figure", drawing, class_="card plan"),
        element("div", legend, class_="legend"),
        note="From above, up being the cameras\u2019 mean up",
    )


def depth_pictures(depths: Sequence[DepthPicture], *, metric: bool) -> Html | None:
    """Return depth in turbo, all pictures on one scale, with its bar."""
    if not depths:
        return None
    shown = [depths[i] for i in spread(len(depths), _MOST_DEPTHS)]
    masks = [figures.depth_mask(item.depth, item.valid) for item in shown]
    near, far = figures.depth_range([item.depth for item in shown], masks)
    pictures = [
        figures.depth_picture(item.depth, mask, near, far)
        for item, mask in zip(shown, masks, strict=True)
    ]
    files = encode_jpegs(pictures, long_side=520, budget=_DEPTH_BUDGET, quality=88)
    ticks = [near, *(v for v in nice_ticks(near, far, 7) if near < v < far), far]
    at = 1 - figures.depth_fraction(np.array(ticks), near, far)
    marks, last = [], -1.0
    for place, value in zip(at.tolist(), ticks, strict=True):
        if place - last >= 0.14 or value == far:  # inverse depth crowds the far end
            if value == far and marks[1:] and place - last < 0.14:
                marks.pop()
            marks.append((place, format_tick(float(f"{value:.3g}"))))
            last = place
    unit = "metres" if metric else "scene units"
    return section(
        "Depth",
        _gallery([item.name for item in shown], pictures, files),
        scale_bar(TURBO[::-1], marks, f"Depth along the optical axis, {unit}; grey: unknown"),
        note=None if len(shown) == len(depths) else f"{len(shown)} of {len(depths)} views",
    )


def feature_pictures(features: Sequence[NamedPicture]) -> Html | None:
    """Return the pictures of features."""
    if not features:
        return None
    shown = [features[i] for i in spread(len(features), _MOST_DEPTHS)]
    pictures = [to_pixels(item.picture) for item in shown]
    files = encode_jpegs(pictures, long_side=520, budget=_FEATURES_BUDGET, quality=88)
    return section(
        "Features",
        _gallery([item.name for item in shown], pictures, files),
        note="The first three principal components, the same axes in every picture",
    )


def contact_sheet(photos: Sequence[InputPhoto]) -> Html | None:
    """Return all input pictures small, the rejected ones with the reason."""
    if not photos:
        return None
    indices = spread(len(photos), _MOST_THUMBS)
    side = 260 if len(indices) <= 60 else 200 if len(indices) <= 150 else 140
    # Shrunk one by one: a thousand full-size photos do not fit into memory at once.
    small = {
        i: figures.shrink(to_pixels(picture), side)
        for i in indices
        if (picture := photos[i].picture) is not None
    }
    files = dict(
        zip(
            small,
            encode_jpegs(list(small.values()), long_side=side, budget=_SHEET_BUDGET, quality=80),
            strict=True,
        )
    )
    items = []
    for i in indices:
        photo = photos[i]
        kind = "out" if not photo.registered else "held" if photo.held_out else None
        thumb = (
            _image(files[i], small[i], photo.name) if i in files else element("div", class_="blank")
        )
        why = None
        if not photo.registered:
            why = element("span", photo.reason or "not registered", class_="why")
        elif photo.held_out:
            why = " \u00b7 held out"
        caption = element("figcaption", file_name(photo.name), why)
        items.append(element("figure", thumb, caption, class_=kind))
    kept = sum(photo.registered for photo in photos)
    note = f"{kept} of {len(photos)} registered"
    if any(photo.held_out for photo in photos):
        note += f", {sum(photo.held_out for photo in photos)} held out (framed)"
    if len(indices) < len(photos):
        note += f"; {len(indices)} are shown"
    hidden = [
        element("li", file_name(p.name), f": {p.reason or 'not registered'}")
        for i, p in enumerate(photos)
        if i not in set(indices) and not p.registered
    ]
    rest = None
    if hidden:
        rest = element(
            "details",
            element("summary", f"{len(hidden)} more were rejected"),
            element("ul", hidden[:_MOST_NAMES]),
        )
    least = 120 if len(indices) <= 60 else 96
    return section(
        "Pictures",
        element("div", items, class_="grid sheet", style=f"--least:{least}px"),
        rest,
        note=note,
    )


def _image(file: bytes, pixels: Pixels, alt: str) -> Html:
    height, width = pixels.shape[:2]
    return element(
        "img",
        src=data_uri(file, "image/jpeg"),
        alt=alt,
        width=width,
        height=height,
        decoding="async",
    )


def _gallery(names: Sequence[str], pictures: Sequence[Pixels], files: Sequence[bytes]) -> Html:
    items = [
        element("figure", _image(file, pixels, name), element("figcaption", file_name(name)))
        for name, pixels, file in zip(names, pictures, files, strict=True)
    ]
    height, width = pictures[0].shape[:2]
    least = 180 if width < height else 260
    return element("div", items, class_="grid depths", style=f"--least:{least}px")


def _score_line(name: str, scores: Scores) -> Html:
    parts = []
    for metric in ("psnr", "ssim"):
        if name in scores.get(metric, {}):
            label, unit, digits = describe_metric(metric)
            value = f"{format_number(scores[metric][name], digits)} {unit}".rstrip()
            parts.append(element("span", f"{label} ", element("b", value)))
    return element("span", [[" \u00b7 ", part] if i else part for i, part in enumerate(parts)])
