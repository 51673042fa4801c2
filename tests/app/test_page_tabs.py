"""The tabs in which one step follows another: Probe, Segment and Train, to files downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.segmentation.synthetic import write_dataset
from tests.app.conftest import (
    JOB,
    choose,
    command_of,
    fetch,
    open_tab,
    pick,
    press,
    send,
    wait_done,
    wait_drawn,
    wait_ready,
)
from tests.browser import Page

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_probe_goes_on_step_by_step(page: Page, scene: list[Path]) -> None:
    open_tab(page, "Probe")
    send(page, "probe-demo-files", scene)
    pick(page, "probe-demo-feature", "iuvrgb")
    for option, value in (("geometry", "auto"), ("steps", "16")):
        choose(page, "probe-demo", option, value)
    page.evaluate("document.querySelector('#probe-demo-more button').click()")
    choose(page, "probe-demo", "protocol", "fast")
    press(page, "probe-demo-start")
    wait_done(page, "probe-demo-card")
    page.wait_for("!!document.querySelector('#probe-demo-card a[href$=\"points.ply\"]')", JOB)
    assert not page.evaluate("!!document.querySelector('#probe-demo-card a[href$=\"splats.ply\"]')")
    press(page, "probe-demo-splats")
    page.wait_for("!!document.querySelector('#probe-demo-card a[href$=\"splats.ply\"]')", JOB)
    _, start, _ = fetch(page, '#probe-demo-card a[href$="splats.ply"]')
    assert start.startswith("ply\n")
    wait_drawn(page, "probe-demo-card")
    # The third step begins on top of it; three hundred frames are not waited for.
    press(page, "probe-demo-video")
    state = "document.querySelector('#probe-demo-card .sl-card').dataset.state"
    page.wait_for(f"['queued', 'running'].includes({state})", JOB)
    assert "--until" not in command_of(page, "probe-demo")
    page.evaluate("document.querySelector('#probe-demo-card .sl-cancel').click()")
    page.wait_for(f"{state} === 'cancelled'", JOB)
    page.wait_for("!!document.querySelector('#probe-demo-card a[href$=\"splats.ply\"]')", JOB)


def test_marked_objects_are_found_in_other_pictures(page: Page, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "coco", 3, height=96, width=128, seed=3)
    pictures = sorted((data / "images").iterdir())
    label = json.loads((data / "instances.json").read_text())["categories"][0]["name"]
    open_tab(page, "Segment")
    send(page, "segment-board", pictures[:1])
    page.wait_for("!!document.querySelector('#segment-board .sl-canvas').width", JOB)
    page.evaluate(
        "(() => { const n = document.querySelector('#segment-board input[type=text]'); n.value ="
        f" {label!r}; n.nextElementSibling.click(); }})()"
    )
    page.evaluate("document.querySelector('#segment-board .sl-canvas').scrollIntoView()")
    left, top, width, height = page.evaluate(
        "(() => { const b = document.querySelector('#segment-board .sl-canvas')"
        ".getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    height = min(height, 800 - top)
    page.drag((left + width * 0.2, top + height * 0.1), (left + width * 0.6, top + height * 0.7))
    page.evaluate("document.querySelector('#segment-board [data-tool=paint]').click()")
    page.drag((left + width * 0.7, top + height * 0.3), (left + width * 0.8, top + height * 0.4))
    said = "document.querySelector('#segment-board .sl-marker > .sl-note').textContent"
    page.wait_for(f"{said} === '2 marks of 1 class'", JOB)
    press(page, "segment-fit-start")
    wait_done(page, "segment-fit-card")
    size, _, _ = fetch(page, '#segment-fit-card a[href$="bank.safetensors"]')
    assert size > 1000
    send(page, "segment-predict-files", pictures[1:2])
    choose(page, "segment-predict", "vis-thr", "0.01")
    press(page, "segment-predict-start")
    wait_done(page, "segment-predict-card")
    _, start, _ = fetch(page, '#segment-predict-card a[href$="results.json"]')
    assert start.startswith("[")
    page.wait_for("document.querySelectorAll('#segment-mistakes figure button').length > 0", JOB)
    page.evaluate("document.querySelector('#segment-mistakes figure button').click()")
    page.wait_for(
        "document.querySelector('#segment-mistakes').textContent.includes('1 marked as wrong')", JOB
    )
    first = page.evaluate("new URL(location.href).searchParams.get('job')")
    press(page, "segment-correct")
    page.wait_for(f"new URL(location.href).searchParams.get('job') !== {first!r}", JOB)
    wait_done(page, "segment-fit-card")
    told = page.evaluate("document.querySelector('#segment-fit-card').textContent")
    assert "--negatives" in told
    page.evaluate("document.querySelector('#segment-score button').click()")
    send(page, "segment-evaluate-dataset", [data / "instances.json", *pictures])
    press(page, "segment-evaluate-start")
    wait_done(page, "segment-evaluate-card")
    told = page.evaluate("document.querySelector('#segment-evaluate-card .sl-facts').textContent")
    assert "mIoU" in told
    _, start, _ = fetch(page, '#segment-evaluate-card a[href$="scores.json"]')
    assert start.startswith("{")


def test_training_is_followed_to_a_checkpoint_that_is_downloaded(
    page: Page, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pictures = [tmp_path / f"{number}.png" for number in range(8)]
    for file in pictures:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    open_tab(page, "Train")
    assert "--epochs=5" in command_of(page, "train-dino")  # as the form begins
    send(page, "train-dino-data", pictures)
    pick(page, "train-dino-model", "dinov3_tiny")
    page.evaluate("document.querySelector('#train-dino-more button').click()")
    short = {"epochs": "2", "batch-size": "4", "log-every": "1"}
    crops = {"global-size": "32", "local-size": "16", "local-crops": "2"}
    heads = {"prototypes": "32", "head-hidden": "32"}
    for option, value in {**short, **crops, **heads}.items():
        choose(page, "train-dino", option, value)
    press(page, "train-dino-start")
    wait_done(page, "train-dino-card")
    curves = page.evaluate(
        "[...document.querySelectorAll('#train-dino-card .sl-curve figcaption')].map((c) => "
        "c.textContent.replace(/ [^ ]+$/, ''))"
    )
    assert curves[:2] == ["loss", "lr"]
    assert curves[2] == "effective_rank, validation"  # before the parts of the loss
    assert page.evaluate("document.querySelectorAll('#train-dino-card .sl-gallery img').length") > 0
    size, start, _ = fetch(page, '#train-dino-card a[href$="dinov3_custom.pt"]')
    assert size > 10_000
    assert start.startswith("PK")
    _, start, _ = fetch(page, '#train-dino-card a[href*="report.html"]')
    assert start.startswith("<!doctype html>")
    # A reload opens its tab, unless a hand has chosen another one meanwhile: that one stays.
    page.goto(page.evaluate("location.href"), JOB)
    wait_ready(page)
    chosen = page.evaluate(
        """(async () => {
          const tab = (name) => [...document.querySelectorAll('[role=tab]')].find(
            (t) => t.textContent.trim() === name);
          const pause = (ms) => new Promise((done) => setTimeout(done, ms));
          while (tab('Train').getAttribute('aria-selected') !== 'true') await pause(5);
          tab('Gallery').click();
          await pause(1500);
          return tab('Gallery').getAttribute('aria-selected');
        })()""",
        JOB,
    )
    assert chosen == "true"
    # A reload finds it again, in a tab inside a tab.
    page.goto(page.evaluate("location.href"), JOB)
    wait_ready(page)
    page.wait_for("!!document.querySelector('#train-dino-card a[href$=\"dinov3_custom.pt\"]')", JOB)
    # Its weights can be chosen in other tabs, without a file being sent again.
    open_tab(page, "Reconstruct")
    field = "document.querySelector('#reconstruct-checkpoint input')"
    page.wait_for(f"!!{field}", JOB)
    page.evaluate(f"{field}.dispatchEvent(new FocusEvent('focus'))")
    entries = "[...document.querySelectorAll('#reconstruct-checkpoint [role=option]')]"
    entry = f"{entries}.find((o) => o.textContent.includes('dinov3_custom.pt of Train DINO'))"
    page.wait_for(f"!!{entry}", JOB)
    page.evaluate(f"{entry}.dispatchEvent(new MouseEvent('mousedown', {{ bubbles: true }}))")
    made = "--checkpoint=run/checkpoints/dinov3_custom.pt"
    command = "document.querySelector('#reconstruct-command').textContent"
    page.wait_for(f"{command}.includes({made!r})", JOB)
