"""Each tab's main path in a browser, on made-up input, to a file that is downloaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.app.conftest import (
    JOB,
    App,
    card_state,
    choose,
    command_of,
    fetch,
    fill,
    look_at,
    open_tab,
    press,
    send,
    wait_done,
    wait_drawn,
    wait_ready,
)
from tests.browser import Page

pytestmark = pytest.mark.browser


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
    wait_drawn(page, "reconstruct-card")
    header = "document.querySelector('#reconstruct-card iframe').contentWindow.sightline.scene"
    assert page.evaluate(f"{header}.cameras.length") == 4
    assert page.evaluate(f"{header}.splats.count") > 50
    assert look_at(page, "reconstruct-card").std() > 10  # not blank
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
    # The gallery knows it, shows it again, and removes it when asked twice.
    job = page.evaluate("new URL(location.href).searchParams.get('job')")
    open_tab(page, "Gallery")
    own = f"#gallery article[data-job='{job}']"
    page.wait_for(f'!!document.querySelector("{own} .sl-open")', JOB)
    page.evaluate(f'document.querySelector("{own} .sl-open").click()')
    wait_done(page, "gallery-card")
    wait_drawn(page, "gallery-card")
    for _ in range(2):
        page.evaluate(f'document.querySelector("{own} .sl-delete").click()')
    page.wait_for(f'!document.querySelector("{own}")', JOB)


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
    first = "document.querySelector('#prepare-card .sl-records tbody td')"
    assert page.evaluate(f"{first}.textContent") == "images/photo_0.png"


def test_page_fits_a_phone(page: Page, app: App) -> None:
    page.resize(390, 844, scale=1, touch=True)
    page.goto(app.home, JOB)
    wait_ready(page)
    titles = page.evaluate(
        "[...document.querySelectorAll('#tabs > div [role=tab]')].map((t) => t.textContent.trim())"
    )
    assert {"Reconstruct", "Models", "Data", "Train", "Probe", "Segment", "Gallery"} <= set(titles)
    for title in titles:
        open_tab(page, title)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, title
    assert page.evaluate("document.querySelector('footer')?.offsetHeight ?? 0") == 0
