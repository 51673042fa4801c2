"""The tabs, each a few panels joined together."""

import re
from typing import Any

from sightline.app.jobs.kinds import KINDS
from sightline.app.jobs.request import Request
from sightline.app.page.models_tab import models_tab
from sightline.app.page.panel import QUIET, Page, again, job_panel
from sightline.app.page.segment_tab import segment_tab
from sightline.app.page.sent import sent_job
from sightline.app.page.widgets import gallery, intro, job_card
from sightline.backbones import BACKBONES
from sightline.errors import SightlineError
from sightline.training.settings import TRAINERS

_TRAININGS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "train-dino": ("DINO", ("model", "checkpoint", "epochs"), {"epochs": 5}),
    "train-vggt": ("VGGT", ("model", "encoder", "checkpoint", "steps"), {"steps": 1000}),
    "train-splatt3r": (
        "Splatt3R",
        ("backbone", "train", "size", "checkpoint", "steps"),
        {"steps": 1000, "train": "gaussian_head"},
    ),
}
"""Kind -> title of its tab, its own options that are shown at once, and what the form begins with:
five epochs as in the scene builder, steps where rooms have no end, and no fusion before there is a
backbone to fuse."""
_TRAIN_MAIN = ("batch_size", "lr", "device", "seed")
_VITS = [name for name in BACKBONES if re.fullmatch(r"dinov[23]_vit[a-z0-9]+(_reg|plus)?", name)]
_TRAIN_CHOICES = {
    "model": ["dinov3_tiny", "dinov2_tiny", *_VITS],
    "encoder": ["conv", *_VITS],
    "backbone": list(BACKBONES),
}


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
        place=["Reconstruct"],
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
        place=["Data"],
        main=("size", "mode", "max_video_frames", "val_split"),
        button="Prepare",
        caption="Pictures, rasters, videos or folders of them",
    )


def train_tab(page: Page) -> None:
    """Make the tab with one training a sub-tab."""
    import gradio as gr

    with gr.Tabs():
        for name, (title, main, defaults) in _TRAININGS.items():
            with gr.Tab(title, id=name):
                intro(f"Train {TRAINERS[name.removeprefix('train-')].what}.")
                job_panel(
                    page,
                    name,
                    place=["Train", title],
                    main=(*main, *_TRAIN_MAIN),
                    button="Start training",
                    defaults=defaults,
                    choices=_TRAIN_CHOICES,
                    drop="data",
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
        place=["Probe"],
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
            job = sent_job(card)
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
    title = "Compare many features: a grid with error bars"
    with gr.Accordion(title, open=False, elem_id="probe-grid"):
        job_panel(
            page,
            "probe-run",
            place=["Probe", "#probe-grid"],
            main=("protocol", "features", "modes", "geometry"),
            button="Run the grid",
            defaults={"features": ["iuvrgb"]},
            caption="Photos of one place, or a scene with cameras",
        )


def gallery_tab() -> None:
    """Make the tab with everything that was run."""
    shown = gallery("gallery")
    card = job_card("gallery-card", list(KINDS))

    def choose(value: Any) -> dict[str, Any]:  # noqa: ANN401
        return again({"job": sent_job(value)})

    shown.select(choose, shown, card, **QUIET)


TABS = {
    "Models": models_tab,
    "Data": data_tab,
    "Train": train_tab,
    "Probe": probe_tab,
}
"""Title -> what makes the tab, for those that stand alone."""

__all__ = ["TABS", "gallery_tab", "reconstruct_tab", "segment_tab"]
