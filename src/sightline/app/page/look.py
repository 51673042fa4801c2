"""How the page looks: the colours of every sightline page, system fonts, no footer."""

from importlib import resources
from typing import Any

from sightline.report.theme import read_asset

_SCRIPTS = ("api.js", "files.js", "training.js", "data.js", "card.js", "marker.js", "gallery.js")
MARK = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M3 12 15 4.5v15z"/>'
    '<path d="M3 12h18" stroke-dasharray="0.1 4"/><circle cx="21" cy="12" r="1.4"/></svg>'
)


def page_asset(name: str) -> str:
    """Return one of the page's own scripts or style sheets."""
    return resources.files("sightline.app.page").joinpath("assets", name).read_text("utf-8")


def page_options() -> dict[str, Any]:
    """Return what ``gradio.mount_gradio_app`` needs to show the page as it is meant.

    Everything is inside the page or comes from this server: no font, script or picture of others.
    """
    variables = read_asset("theme.css").split("*, *::before", 1)[0]
    scripts = "\n".join(page_asset(name) for name in _SCRIPTS)
    return {
        "theme": _theme(),
        "css": variables + page_asset("page.css"),
        "head": (
            f'<meta name="robots" content="noindex"><script>"use strict";{{\n{scripts}\n}}</script>'
        ),
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "enable_monitoring": False,
    }


def _theme() -> Any:  # noqa: ANN401
    from gradio.themes import Base, Font
    from gradio.themes.utils.sizes import radius_md, text_md

    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    theme = Base(
        font=[Font(name) for name in sans],
        font_mono=[Font(name) for name in mono],
        radius_size=radius_md,
        text_size=text_md,
    )
    look = {
        "body_background_fill": "var(--page)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--well)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--edge)",
        "block_border_width": "1px",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--ink)",
        "block_title_text_weight": "500",
        "block_info_text_color": "var(--soft)",
        "block_shadow": "none",
        "border_color_primary": "var(--edge)",
        "border_color_accent": "var(--accent)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--well)",
        "link_text_color": "var(--accent)",
        "input_background_fill": "var(--well)",
        "input_border_color": "var(--edge)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--faint)",
        "checkbox_background_color": "var(--card)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color": "var(--faint)",
        "checkbox_border_color_selected": "var(--accent)",
        "checkbox_label_background_fill": "transparent",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent)",
        "button_primary_text_color": "var(--accent-ink)",
        "button_primary_border_color": "var(--accent)",
        "button_secondary_background_fill": "var(--card)",
        "button_secondary_background_fill_hover": "var(--well)",
        "button_secondary_text_color": "var(--accent)",
        "button_secondary_border_color": "var(--edge)",
        "table_border_color": "var(--edge)",
    }
    # The variables follow the browser's scheme by themselves, so both of Gradio's modes take them.
    known = set(dir(theme))
    dark = {f"{name}_dark": value for name, value in look.items() if f"{name}_dark" in known}
    return theme.set(**look, **dark)
