"""The tab of weights: what exists, what is here, what a file is."""

from typing import TYPE_CHECKING, Any

from sightline.app.jobs.weights import FOLDERS
from sightline.app.page.panel import QUIET, Page, job_panel
from sightline.app.page.sent import sent_files
from sightline.app.page.widgets import error_markup, intro
from sightline.errors import SightlineError
from sightline.report.markup import Html, element

if TYPE_CHECKING:
    import gradio as gr


def models_tab(page: Page) -> None:
    """Make the tab."""
    import gradio as gr

    from sightline.hub import CATALOGUE

    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            intro(
                "A checkpoint is recognised by its tensors and compared name by name and shape by "
                "shape. Nothing in it is ever run.",
                heading="Check a file",
            )
            check = job_panel(
                page,
                "models-check",
                place=["Models"],
                main=(),
                button="Check",
                caption=".pt, .pth or .safetensors",
            )
            with gr.Row():
                target = gr.Dropdown(
                    choices=list(FOLDERS),
                    value=FOLDERS[0],
                    label="folder below models/",
                    elem_id="models-keep-folder",
                )
                keep = gr.Button("Keep these weights on the server", elem_id="models-keep")
            kept = gr.HTML("", elem_id="models-kept")
        with gr.Column(min_width=320):
            intro("Published weights by name, or any file of a repository.", heading="Download")
            job_panel(
                page,
                "models-download",
                place=["Models"],
                main=("name", "target"),
                button="Download",
                choices={"name": list(CATALOGUE)},
                defaults={"name": "dinov2_vits14"},
            )
            loaded = gr.HTML(_loaded_markup(page), elem_id="models-loaded")
            with gr.Row():
                look = gr.Button("Look again", elem_id="models-look")
                unload = gr.Button("Unload", elem_id="models-unload")
    gr.HTML(_catalogue_markup(), elem_id="models-catalogue", apply_default_css=False)

    def take(request: gr.Request, value: Any, folder: str) -> tuple[Any, ...]:  # noqa: ANN401
        try:
            owner = page.owner(request)
            names = [page.jobs.keep_weights(owner, upload, folder) for upload in sent_files(value)]
            text = f"kept as {', '.join(names)}" if names else "send a file first"
        except SightlineError as error:
            return error_markup(str(error)), *(gr.skip() for _ in page.weights)
        choices = gr.update(choices=page.weight_choices(owner))
        return str(element("p", text, class_="sl-note")), *(choices for _ in page.weights)

    def unloaded() -> str:
        page.jobs.unload()
        return _loaded_markup(page)

    assert check.files is not None
    sent = [check.files, target]
    page.last.append(lambda: keep.click(take, sent, [kept, *page.weights], **QUIET))
    look.click(lambda: _loaded_markup(page), None, loaded, **QUIET)
    unload.click(unloaded, None, loaded, **QUIET)


def _loaded_markup(page: Page) -> str:
    """Return what is in memory now."""
    rows = []
    for lane in page.jobs.loaded():
        names = ", ".join(lane["loaded"]) or "no network"
        memory = lane.get("memory")
        size = "" if not memory else f"{memory / 1e9:.2f} GB"
        rows.append(_row(lane["lane"], names, "busy" if lane["busy"] else "waits", size))
    if not rows:
        return str(element("p", "Nothing is loaded.", class_="sl-note"))
    return str(element("table", element("tbody", rows), class_="sl-facts"))


def _row(*cells: str, kind: str | None = None) -> Html:
    return element("tr", [element("td", cell) for cell in cells], class_=kind)


def _catalogue_markup() -> str:
    """Return the published weights with size, memory, licence and whether they are here."""
    from sightline.hub import CATALOGUE, cached

    rows, family = [], ""
    for entry in CATALOGUE.values():
        if entry.family != family:
            family = entry.family
            rows.append(_row(family, kind="family"))
        here = "" if cached(entry.name) is None else "here"
        access = "gated" if entry.gated else "free"
        rows.append(
            element(
                "tr",
                element("td", entry.name),
                element("td", f"{entry.parameters / 1e6:.1f} M", class_="num"),
                element("td", f"{entry.memory / 1e9:.2f} GB", class_="num"),
                element("td", here),
                element("td", access),
                element("td", entry.licence),
            )
        )
    names = ("name", "parameters", "memory", "", "access", "licence")
    head = element(
        "tr",
        [element("th", n, class_="num" if n in ("parameters", "memory") else None) for n in names],
    )
    table = element(
        "table", element("thead", head), element("tbody", rows), class_="sl-facts sl-models"
    )
    return str(
        element(
            "details",
            element("summary", f"All {len(CATALOGUE)} published weights"),
            element("div", table, class_="sl-scroll"),
            class_="sl-part",
        )
    )


def fill_choices(page: Page, request: "gr.Request") -> list[dict[str, Any]]:
    """Return the updates of all choices of weights, for a page that is loaded or a tab opened."""
    import gradio as gr

    try:
        owner = page.owner(request)
    except SightlineError:  # not known yet: the page tells when something is started
        owner = None
    choices = page.weight_choices(owner)
    return [gr.update(choices=choices) for _ in page.weights]
