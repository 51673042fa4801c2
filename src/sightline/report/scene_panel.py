"""The controls of the shared scene: what can be shown, hidden, coloured and measured."""

from typing import Any

from sightline.report.colormap import TURBO, css_gradient
from sightline.report.markup import Html, element

_KEYS = (
    ("Drag", "turn around what you look at"),
    ("Right drag, two fingers", "shift"),
    ("Wheel, pinch", "nearer, farther"),
    ("Double click", "look at that spot and turn around it"),
    ("Click on a camera", "stand where the photo was taken"),
    ("Ctrl click on a photo", "choose the photos whose points are shown"),
    ("[  ]", "previous, next camera"),
    ("W A S D  Q E", "fly; with Shift faster"),
    ("Arrow keys", "turn"),
    ("1  2  3  4", "splats, points, cameras, photos"),
    ("C  V", "compare with the photo; colour, depth, normals side by side"),
    ("L", "measure a length between two clicks"),
    ("K", "remember this view for the camera path"),
    ("R", "back to the first view"),
    ("P", "save the picture"),
    ("M  H", "controls, this help"),
)
_SWATCHES = (("#000000", "Black"), ("#7f8487", "Grey"), ("#ffffff", "White"))


def panel(header: dict[str, Any]) -> Html:
    """Return the controls that fit a scene."""
    splats, points, cameras = header["splats"], header["points"], header["cameras"]
    photos = cameras and header["thumbnails"]
    return element(
        "aside",
        _box("show-splats", "Splats", "1") if splats else None,
        _box("show-points", "Points", "2") if points else None,
        _box("show-cameras", "Cameras", "3") if cameras else None,
        _box("show-photos", "Photos on cameras", "4") if photos else None,
        _color_choice(header),
        element(
            "div",
            _button("compare", "Photo over it", "C") if photos else None,
            _button("panels", "Side by side", "V") if photos else None,
            class_="row",
        )
        if photos
        else None,
        _group("Filters", *_filters(header)),
        _group("Sizes and background", *_sizes(header)),
        _group("Measure", *_measure()),
        _group("Camera path", *_path()),
        element(
            "div",
            _button("reset", "Reset view"),
            _button("picture", "Save picture"),
            class_="row",
        ),
        id="panel",
        class_="glass",
        hidden=True,
    )


def side() -> list[Html]:
    """Return the two round buttons of the corner."""
    return [
        element(
            "div",
            element(
                "button", "?", type="button", id="question", aria_label="Help", title="Help (H)"
            ),
            element(
                "button",
                "\u2630",
                type="button",
                id="menu",
                aria_label="Controls",
                title="Controls (M)",
            ),
            class_="corner",
        )
    ]


def overlays(header: dict[str, Any]) -> list[Html | None]:
    """Return what lies over the picture: the photo to compare with, lengths, a depth scale."""
    wipe = element(
        "div",
        element("img", alt="Photo of this camera"),
        element("div", class_="rule"),
        element("span", "photo", class_="tag left"),
        element("span", "scene", class_="tag right"),
        element(
            "input", type="range", min=0, max=100, value=50, step=0.5, aria_label="Photo or scene"
        ),
        id="wipe",
        class_="wipe",
        hidden=True,
    )
    panes = [
        element("figure", element("canvas"), element("figcaption", name), data_mode=mode)
        for mode, name in (("color", "scene"), ("depth", "depth"), ("normal", "normals"))
        if mode != "normal" or header["splats"]
    ]
    photo = element("figure", element("img", alt=""), element("figcaption", "photo"))
    scale = element(
        "div",
        element("output", id="near"),
        element("i", style=f"background:{css_gradient(TURBO[::-1])}"),
        element("output", id="far"),
        id="depth-scale",
        class_="glass",
        hidden=True,
    )
    return [
        wipe if header["cameras"] else None,
        element("div", photo, panes, id="panes", class_="glass", hidden=True)
        if header["cameras"]
        else None,
        element("div", id="lengths", aria_live="polite"),
        scale,
        element("div", id="where", class_="glass", hidden=True),
    ]


def help_box() -> Html:
    """Return the list of keys and gestures."""
    rows = [element("tr", element("td", key), element("td", what)) for key, what in _KEYS]
    return element(
        "div",
        element("h2", "Getting around"),
        element("table", element("tbody", rows)),
        id="help",
        class_="glass",
        hidden=True,
    )


def status() -> Html:
    """Return the box that says what is going on."""
    return element("div", "Loading\u2026", id="status", class_="glass", role="status")


def _box(name: str, what: str, key: str | None = None) -> Html:
    return element(
        "label",
        element("input", type="checkbox", id=name),
        element("span", what),
        element("kbd", key) if key else None,
    )


def _button(name: str, what: str, key: str | None = None) -> Html:
    hint = None if key is None else f"{what} ({key})"
    return element("button", what, type="button", id=name, title=hint)


def _slider(name: str, what: str, low: int, high: int, value: int, step: float) -> Html:
    return element(
        "label",
        element("div", element("span", what), element("output", id=f"{name}-value")),
        element("input", type="range", id=name, min=low, max=high, value=value, step=step),
        class_="slider",
    )


def _choice(name: str, what: str, options: list[tuple[str, str]]) -> Html:
    return element(
        "label",
        element("span", what),
        element("select", [element("option", text, value=v) for v, text in options], id=name),
        class_="choice",
    )


def _group(title: str, *content: Html | None) -> Html | None:
    inside = [part for part in content if part is not None]
    if not inside:
        return None
    return element("details", element("summary", title), inside)


def _color_choice(header: dict[str, Any]) -> Html:
    options = [("color", "colour"), ("depth", "depth")]
    if header["splats"]:
        options.append(("normal", "normals"))
    if header["painted"]:
        options.append(("paint", "features"))
    return _choice("mode", "Show", options)


def _filters(header: dict[str, Any]) -> list[Html | None]:
    points = header["points"]
    views = [("all", "all photos"), ("here", "where I stand"), ("chosen", "chosen photos")]
    sources = [("own", "depth maps"), ("other", "point map")]
    return [
        _slider("confidence", "Hide least confident", 0, 99, 25, 1.0)
        if points and points["shown"]
        else None,
        _choice("seen", "Points of", views) if header["has_seen"] else None,
        _choice("source", "Points from", sources) if header["other_points"] else None,
        _box("hide-sky", "Hide sky") if header["has_sky"] else None,
        _box("hide-black", "Hide near-black"),
        _box("hide-white", "Hide near-white"),
        _slider("crop", "Keep within", 0, 100, 100, 1.0),
    ]


def _sizes(header: dict[str, Any]) -> list[Html | None]:
    swatches = [
        element("button", type="button", data_color=color, aria_label=name, title=name)
        for color, name in _SWATCHES
    ]
    return [
        _slider("point-size", "Point size", 1, 12, 2, 0.5) if header["points"] else None,
        _slider("camera-size", "Camera size", -3, 3, 0, 0.1) if header["cameras"] else None,
        element(
            "div",
            element("span", "Background"),
            swatches,
            element("input", type="color", id="background", aria_label="Another background"),
            class_="swatches",
        ),
    ]


def _measure() -> list[Html]:
    return [
        element(
            "div",
            _button("measure", "Measure", "L"),
            _button("unmeasure", "Clear"),
            class_="row",
        ),
        element(
            "label",
            element("span", "The last length is"),
            element("input", type="number", id="real-length", min=0, step="any", placeholder="?"),
            element("span", "m"),
            class_="choice",
        ),
    ]


def _path() -> list[Html]:
    return [
        element(
            "div",
            _button("keep-view", "Add view", "K"),
            _button("drop-views", "Clear"),
            class_="row",
        ),
        element(
            "div",
            _button("play", "Play"),
            _button("record", "Record video"),
            class_="row",
        ),
        element("p", id="path-note", class_="note"),
    ]
