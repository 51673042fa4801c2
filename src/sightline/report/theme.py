"""The one look of all pages, and the pieces they are made of.

A page is a single file: styles, scripts and pictures are inside it, and a content security policy
forbids the browser to load anything else or to run any script but ours. Other pages and the app
take the same colours from `stylesheet`.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import UInt8

from sightline.report.colormap import css_gradient
from sightline.report.markup import Child, Html, element, escape, join

_MARK = Html(
    '<svg viewBox="0 0 24 24" aria-hidden="true">'
    '<path d="M3 12 15 4.5v15z"/><path d="M3 12h18" stroke-dasharray="0.1 4"/>'
    '<circle cx="21" cy="12" r="1.4"/></svg>'
)
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='#0b6b87' "
    "stroke-width='2.4' stroke-linejoin='round'><path d='M3 12 15 4.5v15z'/>"
    "<circle cx='21' cy='12' r='1.4'/></svg>"
)


def read_asset(name: str) -> str:
    """Return one of the package's own style sheets or scripts."""
    return resources.files("sightline.report").joinpath("assets", name).read_text("utf-8")


def stylesheet(*names: str) -> str:
    """Return the shared style sheet followed by the named ones."""
    return "\n".join(read_asset(name) for name in ("theme.css", *names))


def page(
    title: str,
    *body: Child,
    styles: Sequence[str] = (),
    script: str = "",
    policy: str = "",
) -> str:
    """Return a whole HTML document.

    Args:
        title: Of the browser's tab.
        body: Content of ``<body>``.
        styles: Assets added to the shared style sheet.
        script: JavaScript run after the body; the only script that the policy allows.
        policy: Further directives of the content security policy.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    rules = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src 'sha256-{digest}'{policy}"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=rules),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="robots", content="noindex"),
        element("link", rel="icon", href=f"data:image/svg+xml,{_ICON.replace('#', '%23')}"),
        element("title", title),
        element("style", Html(stylesheet(*styles))),
    )
    tail = element("script", Html(script)) if script else None
    return f"<!doctype html>\n{element('html', head, element('body', *body, tail), lang='en')}\n"


def brand(kind: str) -> Html:
    """Return the small line above a page's title."""
    return element("div", _MARK, element("span", f"sightline {kind}"), class_="brand")


def section(heading: str, *children: Child, note: Child = None) -> Html | None:
    """Return a headed section; None when it would be empty."""
    content = join(children)
    if not content:
        return None
    header = element("header", element("h2", heading), element("p", note) if note else None)
    return element("section", header, content)


def tiles(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Return large numbers in a row, each as (what, value, unit)."""
    return element(
        "dl",
        [
            element(
                "div",
                element("dt", what),
                element("dd", value, element("small", unit) if unit else None),
            )
            for what, value, unit in entries
        ],
        class_="tiles",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    unit: str = ""
    is_number: bool = False
    """Right-aligned; cells of one column carry the same count of digits."""


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    footer: Sequence[str] | None = None,
    *,
    kind: str | None = None,
) -> Html:
    """Return a table with right-aligned numbers; without column names it has no head."""
    side = [("num" if column.is_number else None) for column in columns]

    def line(cells: Sequence[str]) -> Html:
        return element(
            "tr", [element("td", cell, class_=c) for cell, c in zip(cells, side, strict=True)]
        )

    names = [
        element(
            "th",
            column.name,
            element("small", column.unit) if column.unit else None,
            class_=c,
            scope="col",
        )
        for column, c in zip(columns, side, strict=True)
    ]
    has_head = any(column.name for column in columns)
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", names)) if has_head else None,
            element("tbody", [line(row) for row in rows]),
            element("tfoot", line(footer)) if footer else None,
            class_=kind,
        ),
        class_="scroll",
    )


def scale_bar(
    colors: UInt8[np.ndarray, "256 3"], ticks: Sequence[tuple[float, str]], label: str
) -> Html:
    """Return a colour bar with ticks, each as (fraction from the left, text)."""
    marks = [
        element("span", text, style=f"left:{100 * min(max(at, 0.0), 1.0):.1f}%")
        for at, text in ticks
    ]
    return element(
        "div",
        element("div", class_="bar", style=f"background:{css_gradient(colors)}"),
        element("div", marks, class_="ticks"),
        element("div", label),
        class_="scale",
    )


def command_block(command: str) -> Html:
    """Return the section that ends every page."""
    return element(
        "section",
        element("header", element("h2", "Make it again")),
        element(
            "div",
            element("pre", escape(command)),
            element("button", "Copy", type="button", hidden=True),
            class_="command",
        ),
    )
