"""Take the pictures of docs/app.md from a running app, at a desktop's and at a phone's width.

sightline app --no-browser                  (prints its address with the key)
python docs/make_app_pictures.py "ADDRESS" JOB docs/images/app [OTHER ...]

JOB is the id of a finished reconstruction, for the pictures of the viewer; OTHER are ids of other
finished jobs (a training, a score), of which the card is taken. Use the built-in example and drawn
data: photos of others have licences of their own.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from sightline.segmentation.synthetic import write_dataset
from tests.browser import Page, open_browser

WAIT = 600.0
MOST = 60_000
"""Bytes of a picture."""
TABS = ("Reconstruct", "Models", "Data", "Train", "Probe", "Segment", "Gallery")


def main(address: str, job: str, folder: str, *others: str) -> None:
    """Take all pictures."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    home = address.split("?")[0]
    with open_browser() as browser, tempfile.TemporaryDirectory() as scratch:
        marked = write_dataset(Path(scratch) / "marks", 3, seed=1) / "images" / "0000.png"
        for suffix, width, height in (("", 1280, 860), ("-phone", 390, 844)):
            with browser.page() as page:
                page.resize(width, height, scale=1 if width > 600 else 2, touch=width < 600)
                page.goto(address, WAIT)
                ready(page)
                for tab in TABS:
                    page.evaluate(f"window.sightlinePage.openTab('{tab}')")
                    prepare(page, tab, marked)
                    rest(page)
                    save(page, target / f"{tab.lower()}{suffix}.webp")
                page.goto(f"{home}?job={job}", WAIT)
                ready(page)
                show_result(page)
                save(page, target / f"result{suffix}.webp")
                for other in others:
                    page.goto(f"{home}?job={other}", WAIT)
                    ready(page)
                    save(page, target / f"{show_card(page)}-result{suffix}.webp")
            with browser.page() as page:
                page.resize(width, height, scale=1 if width > 600 else 2, touch=width < 600)
                page.goto(address, WAIT)
                page.goto(f"{home}runs/{job}/viewer", WAIT)
                settle(page, lambda text: text)
                page.evaluate("document.getElementById('panels').click()")
                settle(page, lambda text: text)
                rest(page)
                save(page, target / f"viewer{suffix}.webp")


def ready(page: Page) -> None:
    """Wait until the page's own parts are there."""
    page.wait_for(
        "!!window.sightlinePage && document.querySelectorAll('.sl-drop').length > 0", WAIT
    )


def rest(page: Page) -> None:
    """Give pictures and fonts their time."""
    page.evaluate("new Promise((done) => setTimeout(done, 2500))")


def prepare(page: Page, tab: str, marked: Path) -> None:
    """Fill in what shows what a tab is for."""
    if tab != "Segment":
        return
    page.upload("#segment-board input[type=file]", [marked])
    page.wait_for("!!document.querySelector('#segment-board .sl-canvas')?.width", WAIT)
    page.wait_for("document.querySelectorAll('#segment-board .sl-board figure').length > 0", WAIT)
    page.evaluate(
        "(() => { const n = document.querySelector('#segment-board input[type=text]');"
        " n.value = 'leaf'; n.nextElementSibling.click(); })()"
    )
    left, top, width, height = page.evaluate(
        "(() => { const b = document.querySelector('#segment-board .sl-canvas')"
        ".getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    page.drag((left + 0.1 * width, top + 0.1 * height), (left + 0.4 * width, top + 0.45 * height))
    page.evaluate("window.scrollTo(0, 0)")


def show_result(page: Page) -> None:
    """Wait for the viewer in the card, and bring it into sight."""
    frame = "document.querySelector('#reconstruct-card iframe')"
    page.wait_for(f"!!{frame}", WAIT)
    settle(page, lambda text: text.replace("sightline.", f"{frame}.contentWindow.sightline."))
    page.evaluate("document.querySelector('#reconstruct-card').scrollIntoView()")
    rest(page)


def show_card(page: Page) -> str:
    """Bring the card that the address names into sight; return the kind of its job."""
    shown = ".sl-card[data-state=done]:not([hidden])"
    page.wait_for(f"!!document.querySelector('{shown} .sl-downloads')", WAIT)
    page.evaluate(f"document.querySelector('{shown}').scrollIntoView()")
    rest(page)
    name = f"document.querySelector('{shown}').closest('[id$=-card]').id"
    return str(page.evaluate(name)).removesuffix("-card")


def settle(page: Page, within: Callable[[str], str]) -> None:
    """Wait until the scene is drawn."""
    page.wait_for(
        within("(() => { try { return sightline.isSettled() && sightline.state.frames > 0; }")
        + " catch { return false; } })()",
        WAIT,
    )


def save(page: Page, file: Path) -> None:
    """Save what is on the screen within the limit of size."""
    picture = Image.fromarray(page.screenshot())
    for quality in (82, 72, 60, 48, 36, 24):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size < MOST:
            return
    raise SystemExit(f"{file} does not fit into {MOST} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
