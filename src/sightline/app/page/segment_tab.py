"""The tab that finds marked objects everywhere."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from sightline.app.page.marks import store_marks
from sightline.app.page.panel import QUIET, Page, Panel, again, job_panel
from sightline.app.page.sent import sent_files, sent_job, sent_list, shown_files
from sightline.app.page.widgets import gallery, intro, marking_board, mistakes_board
from sightline.backbones import BACKBONES
from sightline.errors import InputError

_SHARED = ("backbone", "sam", "proposals", "device")


def segment_tab(page: Page, reconstruct: Panel) -> None:
    """Make the tab; masks go on to the panel ``reconstruct``."""
    import gradio as gr

    intro(
        "Name an object, mark it in a few pictures, and it is found in all others without "
        "training.",
        heading="1. Mark objects",
    )
    board = marking_board(
        "segment-board", "Pictures to mark objects in", "Drop one to ten pictures here"
    )
    fit = job_panel(
        page,
        "segment-fit",
        place=["Segment"],
        main=_SHARED,
        button="Build the memory bank",
        defaults={"backbone": "colour"},
        choices={"backbone": ["colour", *BACKBONES]},
        hidden=("negatives",),
        filled=("references",),
        starts=False,
    )
    intro("", heading="2. Find them")
    predict = job_panel(
        page,
        "segment-predict",
        place=["Segment"],
        main=("vis_thr", "nms_thr", "sam", "proposals"),
        button="Find objects",
        caption="Pictures to search",
        filled=("bank",),
        starts=False,
    )
    intro(
        "Build the bank again without the mistakes, or let the masks tell a reconstruction what "
        "to keep.",
        heading="3. Correct and use",
    )
    mistakes = mistakes_board("segment-mistakes")
    with gr.Row():
        correct = gr.Button("Build the bank again without mistakes", elem_id="segment-correct")
        send = gr.Button("Reconstruct only what was found", elem_id="segment-send")
    with gr.Accordion(
        "Carry the objects onto the splats of a scene", open=False, elem_id="segment-carry"
    ):
        scenes = gallery("segment-scenes", ["reconstruct", "demo"])
        chosen = gr.Textbox(label="scene", interactive=False, elem_id="segment-scene")
        lift = job_panel(
            page,
            "segment-lift",
            place=["Segment", "#segment-carry"],
            main=("vis_thr", "unnumbered"),
            button="Lift onto splats",
            hidden=("masks",),
            filled=("bank",),
            starts=False,
        )
    with gr.Accordion("Score the bank on annotated pictures", open=False, elem_id="segment-score"):
        score = job_panel(
            page,
            "segment-evaluate",
            place=["Segment", "#segment-score"],
            main=("vis_thr", "keep_references"),
            button="Score",
            drop="dataset",
            filled=("bank",),
            starts=False,
        )

    def references(owner: str, value: Any) -> list[str]:  # noqa: ANN401
        marks = sent_list(value, "marks")
        return store_marks(page.jobs.uploads, owner, shown_files(value), marks)

    def build(request: gr.Request, marked: Any, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
        return again(
            page.submit(
                request,
                lambda owner: fit.request(raw, files={"references": references(owner, marked)}),
            )
        )

    def rebuild(
        request: gr.Request,
        marked: Any,  # noqa: ANN401
        found: Any,  # noqa: ANN401
        searched: Any,  # noqa: ANN401
        *raw: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        def wanted(owner: str) -> Any:  # noqa: ANN401
            pictures = shown_files(searched)
            names = {PurePosixPath(name).name: id for id, name in pictures.items()}
            wrong = [
                {**mistake, "image": names.get(str(mistake.get("image")))}
                for mistake in sent_list(found, "mistakes")
            ]
            if not wrong:
                raise InputError("click what was wrongly found first")
            negatives = store_marks(page.jobs.uploads, owner, pictures, wrong)
            files = {"references": references(owner, marked), "negatives": negatives}
            return fit.request(raw, files=files)

        return again(page.submit(request, wanted))

    def with_bank(panel: Panel) -> Callable[..., dict[str, Any]]:
        def start(request: gr.Request, bank: Any, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
            def wanted(owner: str) -> Any:  # noqa: ANN401
                return panel.request(raw, files={"bank": [_bank(bank)]})

            return again(page.submit(request, wanted))

        return start

    def carry(request: gr.Request, bank: Any, scene: str, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
        def wanted(owner: str) -> Any:  # noqa: ANN401
            if not scene:
                raise InputError("choose a scene first")
            return lift.request(raw, scene=scene, files={"bank": [_bank(bank)]})

        return again(page.submit(request, wanted))

    def masked(
        request: gr.Request,
        found: Any,  # noqa: ANN401
        searched: Any,  # noqa: ANN401
        *raw: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        def wanted(owner: str) -> Any:  # noqa: ANN401
            job = sent_job(found)
            if job is None:
                raise InputError("find objects first; their masks are what is sent")
            masks = [n for n in page.jobs.results(owner, job) if n.startswith("found/masks/")]
            files = {"masks": [f"{job}/{name}" for name in masks]}
            return reconstruct.request(raw, inputs=list(sent_files(searched)), files=files)

        return again(page.submit(request, wanted))

    def opened(card: Any) -> dict[str, Any]:  # noqa: ANN401
        return again({"job": sent_job(card)})

    assert predict.files is not None
    fit.button.click(build, [board, *fit.inputs], fit.card, **QUIET)
    for panel in (predict, score):
        start = with_bank(panel)
        panel.button.click(start, [fit.card, *panel.inputs], panel.card, **QUIET)
    predict.card.submit(opened, predict.card, mistakes, **QUIET)
    correct.click(rebuild, [board, mistakes, predict.files, *fit.inputs], fit.card, **QUIET)
    send.click(
        masked, [predict.card, predict.files, *reconstruct.inputs], reconstruct.card, **QUIET
    ).then(None, js="() => window.sightlinePage.openTab('Reconstruct')")
    scenes.select(lambda value: sent_job(value) or "", scenes, chosen, **QUIET)
    lift.button.click(carry, [fit.card, chosen, *lift.inputs], lift.card, **QUIET)


def _bank(card: Any) -> str:  # noqa: ANN401
    job = sent_job(card)
    if job is None:
        raise InputError("build a memory bank first")
    return f"{job}/bank.safetensors"
