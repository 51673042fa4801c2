"""Put the page together."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sightline.app.page.look import MARK
from sightline.app.page.models_tab import fill_choices
from sightline.app.page.panel import QUIET, Page
from sightline.app.page.segment_tab import segment_tab
from sightline.app.page.tabs import TABS, gallery_tab, reconstruct_tab
from sightline.app.page.widgets import opener
from sightline.report.markup import Html, element

if TYPE_CHECKING:
    import gradio as gr

    from sightline.app.jobs.manager import Jobs


def build_page(jobs: "Jobs", owner: Callable[["gr.Request"], str]) -> "gr.Blocks":
    """Return the page; mount it with the options of `look.page_options`.

    Args:
        jobs: Runs and keeps the jobs.
        owner: From a request of Gradio to the id of its user, as in the HTTP API.
    """
    import gradio as gr

    page = Page(jobs=jobs, owner=owner)
    with gr.Blocks(title="sightline", analytics_enabled=False) as blocks:
        heading = element(
            "div",
            Html(MARK),
            element("b", "sightline"),
            element("span", "photos and video into 3D, on this machine"),
            class_="sl-brand",
        )
        gr.HTML(str(heading), apply_default_css=False)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Reconstruct", id="Reconstruct"):
                panel = reconstruct_tab(page)
            for title, make in TABS.items():
                with gr.Tab(title, id=title):
                    make(page)
            with gr.Tab("Segment", id="Segment"):
                segment_tab(page, panel)
            with gr.Tab("Gallery", id="Gallery"):
                gallery_tab()
        opener(page.places)
        for finish in page.last:
            finish()

        def fill(request: gr.Request) -> list[dict[str, Any]]:
            return fill_choices(page, request)

        # A training that has ended since offers its weights as soon as another tab is opened.
        gr.on([blocks.load, tabs.change], fill, None, page.weights, **QUIET)
    return blocks
