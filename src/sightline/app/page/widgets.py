"""The page's own parts: drop zone, job card, marking board, gallery, a command to copy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sightline.report.markup import Html, element, escape

if TYPE_CHECKING:
    import gradio as gr

ACCEPT = {
    "picture": "image/*,.heic,.heif,.tif,.tiff",
    "video": "video/*,.mov,.mkv,.avi",
    "text": ".json,.txt,.bin,.csv,.yaml",
    "weights": ".pt,.pth,.safetensors,.ckpt,.bin",
    "scene": ".ply,.splat,.spz,.glb",
}
"""Kind of file -> what the browser's file dialogue shows."""


def _own(name: str, value: Any, elem_id: str, **props: Any) -> "gr.HTML":  # noqa: ANN401
    import gradio as gr

    return gr.HTML(
        value=value,
        html_template="<div></div>",
        js_on_load=f"window.sightlinePage.{name}(element.firstElementChild, props, trigger, watch)",
        apply_default_css=False,
        elem_id=elem_id,
        **props,
    )


def files_box(
    elem_id: str,
    label: str,
    kinds: Sequence[str],
    *,
    many: bool = True,
    hint: str = "Drop here, or tap to choose",
) -> "gr.HTML":
    """Return a drop zone; its value is ``{"files": [{id, name, kind, size}], "pending": n}``."""
    accept = ",".join(ACCEPT[kind] for kind in kinds)
    return _own("files", {"files": []}, elem_id, accept=accept, many=many, caption=label, hint=hint)


def job_card(elem_id: str, kinds: Sequence[str]) -> "gr.HTML":
    """Return the card of one job.

    Its value is ``{"job": id}`` or ``{"error": text}``; it fires ``submit`` when a job has ended.

    Args:
        elem_id: Of the page.
        kinds: Jobs of these kinds are shown again after a reload.
    """
    return _own("card", {}, elem_id, kinds=list(kinds))


def opener(places: Mapping[str, Sequence[str]]) -> "gr.HTML":
    """Return what opens, after a reload, the place of the job that the address names.

    Args:
        places: Kind of job -> titles of tabs and ``#`` ids of accordions, from the outside in.
    """
    return _own("opener", {}, "opener", places={k: list(v) for k, v in places.items()})


def marking_board(elem_id: str, label: str, hint: str) -> "gr.HTML":
    """Return the board on which objects are marked; see ``assets/marker.js`` for its value."""
    return _own("marker", {"files": [], "marks": []}, elem_id, caption=label, hint=hint)


def mistakes_board(elem_id: str) -> "gr.HTML":
    """Return the pictures of a prediction, on which wrong finds are clicked."""
    return _own("mistakes", {}, elem_id)


def gallery(elem_id: str, only: Sequence[str] | None = None) -> "gr.HTML":
    """Return the list of jobs; it fires ``select`` with ``{"job": id}``."""
    return _own("gallery", {}, elem_id, only=None if only is None else list(only))


def command_box(elem_id: str) -> "gr.HTML":
    """Return the place for a command to copy; its value comes from `command_markup`."""
    import gradio as gr

    return gr.HTML(value="", apply_default_css=False, elem_id=elem_id, js_on_load=_COPY)


def command_markup(command: str) -> str:
    """Return a command with a button that copies it."""
    return str(
        element(
            "div",
            element("pre", escape(command)),
            element("button", "Copy", type="button", class_="sl-copy"),
            class_="sl-command",
        )
    )


def error_markup(text: str) -> str:
    """Return what is wrong, as one line."""
    return str(element("p", text, class_="sl-error", role="alert"))


def intro(text: str, *, heading: str | None = None) -> "gr.HTML":
    """Return a few words about a tab."""
    import gradio as gr

    content = element(
        "div",
        element("h2", heading) if heading else None,
        element("p", Html(text)),
        class_="sl-intro",
    )
    return gr.HTML(str(content), apply_default_css=False)


_COPY = """
element.addEventListener('click', async (event) => {
  if (!event.target.classList.contains('sl-copy')) return;
  const button = event.target, text = button.previousElementSibling.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    button.textContent = 'Select and copy';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});
"""
