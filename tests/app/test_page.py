"""Each tab's main path in a browser, on made-up input, to a file that is downloaded."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sightline.datasets.synthetic import make_scene, write_scene
from sightline.segmentation.synthetic import write_dataset
from tests.app.conftest import (
    JOB,
    App,
    card_state,
    choose,
    command_of,
    fetch,
    fill,
    open_tab,
    pick,
    press,
    send,
    wait_done,
    wait_ready,
)
from tests.browser import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures with known cameras."""
    return small_scene(tmp_path_factory.mktemp("scene"))


def small_scene(folder: Path) -> list[Path]:
    write_scene(make_scene(6, 48, 64, kind="simple", num_points=300), folder)
    cameras = folder / "transforms.json"
    # A file dialogue sends files without their folders.
    cameras.write_text(cameras.read_text().replace('"images/', '"').replace('"./images/', '"'))
    return [cameras, *sorted((folder / "images").iterdir())]


def open_frame(page: Page) -> None:
    """Wait until the scene in the card is drawn."""
    page.wait_for(
        "(() => { const v = document.querySelector('#reconstruct-card iframe')?.contentWindow"
        "?.sightline; return !!v && v.isSettled() && v.state.frames > 0; })()",
        JOB,
    )


def test_pictures_become_a_scene_that_is_seen_and_downloaded(page: Page, scene: list[Path]) -> None:
    send(page, "reconstruct-files", scene)
    choose(page, "reconstruct", "resolution", "64")
    page.evaluate("document.querySelector('#reconstruct-more button').click()")
    choose(page, "reconstruct", "steps", "30")
    assert command_of(page, "reconstruct").startswith("sightline reconstruct")
    press(page, "reconstruct-start")
    heard = wait_done(page, "reconstruct-card")
    assert len(heard) >= 2  # the bar has moved
    assert sorted(heard, key=int) == heard  # and never back
    open_frame(page)
    header = "document.querySelector('#reconstruct-card iframe').contentWindow.sightline.scene"
    assert page.evaluate(f"{header}.cameras.length") == 6
    assert page.evaluate(f"{header}.splats.count") > 50
    page.evaluate("document.querySelector('#reconstruct-card iframe').scrollIntoView()")
    spread = page.evaluate(
        """(() => {
          const view = document.querySelector('#reconstruct-card iframe').contentWindow;
          const c = view.document.getElementById('view'), copy = document.createElement('canvas');
          Object.assign(copy, { width: 64, height: 48 });
          const pen = copy.getContext('2d');
          view.sightline.control.changed();
          return new Promise((resolve) => view.requestAnimationFrame(() =>
            view.requestAnimationFrame(() => {
              pen.drawImage(c, 0, 0, 64, 48);
              resolve([...pen.getImageData(0, 0, 64, 48).data]);
            })));
        })()"""
    )
    picture = np.array(spread).reshape(48, 64, 4)[..., :3]
    assert picture.std() > 10  # not blank
    page.evaluate("document.querySelector('#reconstruct-card [data-format=spz]').click()")
    page.wait_for("!!document.querySelector('#reconstruct-card a[href$=\".spz\"]')", JOB)
    size, start, _ = fetch(page, '#reconstruct-card a[href$=".spz"]')
    assert size > 500
    assert start[:2] == "\x1f\x8b"
    _, start, _ = fetch(page, '#reconstruct-card a[href$="splats.ply"]')
    assert start.startswith("ply\n")
    _, start, kind = fetch(page, '#reconstruct-card a[href*="report.html"]')
    assert start.startswith("<!doctype html>")
    assert kind.startswith("text/html")
    # The gallery knows it, and shows it again.
    open_tab(page, "Gallery")
    page.wait_for("document.querySelectorAll('#gallery .sl-open').length > 0", JOB)
    page.evaluate("document.querySelector('#gallery .sl-open').click()")
    wait_done(page, "gallery-card")
    page.wait_for("!!document.querySelector('#gallery-card iframe')", JOB)


def test_example_is_found_again_after_a_reload_and_stops_when_told(page: Page, app: App) -> None:
    press(page, "demo-start")
    page.wait_for("location.search.includes('job=')", JOB)
    job = page.evaluate("new URL(location.href).searchParams.get('job')")
    page.goto(f"{app.home}?job={job}", JOB)
    wait_ready(page)
    page.wait_for(
        "document.querySelector('#reconstruct-card .sl-card')?.dataset.state === 'running'", JOB
    )
    page.evaluate("document.querySelector('#reconstruct-card .sl-cancel').click()")
    page.wait_for(
        "document.querySelector('#reconstruct-card .sl-card').dataset.state === 'cancelled'", JOB
    )
    # What is finished is kept, so it can go on.
    page.wait_for("!!document.querySelector('#reconstruct-card .sl-primary')", JOB)
    assert card_state(page, "reconstruct-card") == "cancelled"


def test_wrong_options_are_said_at_once(page: Page) -> None:
    fill(page, "reconstruct-resolution", "3")
    page.wait_for(
        "document.querySelector('#reconstruct-command').textContent.includes('must be 16 or more')",
        JOB,
    )
    press(page, "reconstruct-start")
    page.wait_for("!!document.querySelector('#reconstruct-card .sl-error')", JOB)


def test_weights_are_checked_and_kept(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "unknown.safetensors"
    save_file({"some.weight": torch.zeros(3, 4)}, file)
    open_tab(page, "Models")
    send(page, "models-check-files", [file])
    press(page, "models-check-start")
    wait_done(page, "models-check-card")
    text = page.evaluate("document.querySelector('#models-check-card .sl-facts').textContent")
    assert "verdict" in text
    press(page, "models-keep")
    page.wait_for(
        "document.querySelector('#models-kept').textContent.includes('unknown.safetensors')", JOB
    )
    assert page.evaluate("document.querySelector('#models-catalogue').textContent").count("MB") == 0
    assert "vggt_1b" in page.evaluate("document.querySelector('#models-catalogue').textContent")


def test_data_is_prepared_and_its_manifest_downloaded(page: Page, tmp_path: Path) -> None:
    files = []
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"photo_{number}.png")
        files.append(tmp_path / f"photo_{number}.png")
    open_tab(page, "Data")
    send(page, "prepare-files", files)
    choose(page, "prepare", "size", "32")
    press(page, "prepare-start")
    wait_done(page, "prepare-card")
    size, start, _ = fetch(page, '#prepare-card a[href$="manifest.json"]')
    assert size > 500
    assert start.lstrip().startswith("{")
    page.wait_for("document.querySelectorAll('#prepare-card .sl-gallery img').length === 3", JOB)


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


def test_marked_objects_are_found_in_other_pictures(page: Page, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "coco", 3, height=96, width=128, seed=3)
    pictures = sorted((data / "images").iterdir())
    open_tab(page, "Segment")
    send(page, "segment-board", pictures[:1])
    page.wait_for("!!document.querySelector('#segment-board .sl-canvas').width", JOB)
    page.evaluate(
        "(() => { const n = document.querySelector('#segment-board input[type=text]'); n.value ="
        " 'thing'; n.nextElementSibling.click(); })()"
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
    page.wait_for(
        "document.querySelector('#segment-board > * .sl-marker > .sl-note, #segment-board .sl-marker"
        " > .sl-note').textContent.startsWith('2 marks of 1 class')",
        JOB,
    )
    time.sleep(0.5)  # the painted mask is made into a picture
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
    time.sleep(0.5)
    press(page, "segment-correct")
    page.wait_for(f"new URL(location.href).searchParams.get('job') !== {first!r}", JOB)
    wait_done(page, "segment-fit-card")
    told = page.evaluate("document.querySelector('#segment-fit-card').textContent")
    assert "--negatives" in told


def test_page_fits_a_phone(page: Page, app: App) -> None:
    page.resize(390, 844, scale=1, touch=True)
    page.goto(app.home, JOB)
    wait_ready(page)
    titles = page.evaluate(
        "[...document.querySelectorAll('#tabs > div [role=tab]')].map((t) => t.textContent.trim())"
    )
    assert {"Reconstruct", "Models", "Data", "Probe", "Segment", "Gallery"} <= set(titles)
    for title in titles:
        open_tab(page, title)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, title
    assert page.evaluate("document.querySelector('footer')?.offsetHeight ?? 0") == 0
