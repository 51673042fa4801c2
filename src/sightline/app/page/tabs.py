"""The tabs, each a few panels joined together."""

from typing import Any

from sightline.app.jobs.kinds import KINDS
from sightline.app.jobs.request import Request
from sightline.app.page.models_tab import models_tab
from sightline.app.page.panel import QUIET, Page, again, job_panel
from sightline.app.page.segment_tab import segment_tab
from sightline.app.page.widgets import gallery, intro, job_card
from sightline.backbones import BACKBONES
from sightline.errors import SightlineError

_TRAIN_MAIN = ("data", "model", "backbone", "checkpoint", "epochs", "batch_size", "lr", "device")
_TRAINED = {"train-dino": "DINO", "train-vggt": "VGGT", "train-splatt3r": "Splatt3R"}
_TRAIN_START = {"epochs": 5}
"""As the scene builder's form begins."""


def reconstruct_tab(page: Page) -> Any:  # noqa: ANN401
    """Make the tab that turns pictures into a scene; returns its panel."""
    import gradio as gr

    buttons = []

    def beside() -> None:
        text = "No photos at hand? Try the built-in example"
        buttons.append(gr.Button(text, elem_id="demo-start"))

    panel = job_panel(
        page,
        "reconstruct",
        tab="Reconstruct",
        main=("geometry", "checkpoint", "splats", "resolution", "num_frames", "test_every"),
        button="Reconstruct",
        caption="Photos, a video, or a scene with cameras",
        hint="Drop files or a folder here, or tap to choose",
        choices={"features": list(BACKBONES)},
        also=("demo",),
        beside=beside,
    )

    def start(request: gr.Request) -> dict[str, Any]:
        return again(page.submit(request, lambda owner: Request(kind="demo")))

    buttons[0].click(start, None, panel.card, **QUIET)
    return panel


def data_tab(page: Page) -> None:
    """Make the tab that brings raw data into one form."""
    intro("Pictures, infrared, thermal, depth, satellite rasters and video become one data set.")
    job_panel(
        page,
        "prepare",
        tab="Data",
        main=("size", "mode", "max_video_frames", "val_split"),
        button="Prepare",
        caption="Pictures, rasters, videos or folders of them",
    )


def train_tab(page: Page) -> None:
    """Make the tab with one training a sub-tab."""
    import gradio as gr

    with gr.Tabs():
        for name, kind in KINDS.items():
            if not name.startswith("train"):
                continue
            known = (*kind.options(), *kind.roles)
            with gr.Tab(_TRAINED.get(name, name.removeprefix("train-")), id=name):
                intro(kind.title)
                job_panel(
                    page,
                    name,
                    tab="Train",
                    main=[option for option in _TRAIN_MAIN if option in known],
                    button="Start training",
                    defaults={k: v for k, v in _TRAIN_START.items() if k in known},
                    caption="The data set: pictures, or a folder of them" if kind.inputs else None,
                )


def probe_tab(page: Page) -> None:
    """Make the tab with the three steps of a probe and the grid."""
    import gradio as gr

    intro(
        "Which features know 3D? Points and features, then splats read out of the features, then "
        "a video. Each step keeps what came before it."
    )
    buttons = []

    def beside() -> None:
        with gr.Row():
            buttons.append(gr.Button("2. Splats from features", elem_id="probe-demo-splats"))
            buttons.append(gr.Button("3. Video", elem_id="probe-demo-video"))

    panel = job_panel(
        page,
        "probe-demo",
        tab="Probe",
        main=("feature", "checkpoint", "geometry", "geometry_checkpoint", "mode", "steps", "path"),
        button="1. Points and features",
        caption="Two or more photos of one place",
        choices={"feature": list(BACKBONES)},
        hidden=("until",),
        starts=False,
        beside=beside,
    )

    def first_step(request: gr.Request, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
        return again(page.submit(request, lambda owner: panel.request(raw, until="cloud")))

    def further(until: str) -> Any:  # noqa: ANN401
        def step(request: gr.Request, card: Any, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
            job = (card or {}).get("job")
            if job is None:
                return again({"error": "begin with step 1"})
            try:
                options = {**panel.request(raw, inputs=()).options, "until": until}
                return again({"job": page.jobs.resume(page.owner(request), job, options).id})
            except SightlineError as error:
                return again({"job": job, "note": str(error)})

        return step

    panel.button.click(first_step, panel.inputs, panel.card, **QUIET)
    for button, until in zip(buttons, ("splats", "video"), strict=True):
        button.click(further(until), [panel.card, *panel.inputs], panel.card, **QUIET)
    with gr.Accordion("Compare many features: a grid with error bars", open=False):
        job_panel(
            page,
            "probe-run",
            tab="Probe",
            main=("protocol", "features", "modes", "geometry"),
            button="Run the grid",
            caption="Photos of one place, or a scene with cameras",
        )


def gallery_tab() -> None:
    """Make the tab with everything that was run."""
    shown = gallery("gallery")
    card = job_card("gallery-card", list(KINDS), "Gallery")

    def choose(value: Any) -> dict[str, Any]:  # noqa: ANN401
        return again({"job": (value or {}).get("job")})

    shown.select(choose, shown, card, **QUIET)


TABS = {
    "Models": models_tab,
    "Data": data_tab,
    "Train": train_tab,
    "Probe": probe_tab,
}
"""Title -> what makes the tab, for those that stand alone."""

__all__ = ["TABS", "gallery_tab", "reconstruct_tab", "segment_tab"]
