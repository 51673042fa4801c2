"""One server of the app and one browser for all tests of the page."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sightline.datasets.synthetic import make_scene, write_scene
from tests.app.served import (  # noqa: F401 - fixtures of tests without a browser
    application,
    client,
    context,
    fake_worker,
    open_jobs,
    owner,
    photo,
    visitor,
)
from tests.browser import Browser, Page, open_browser

_START = 900.0
JOB = 900.0
"""Seconds that a small job may take on a machine that is busy with others."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four small pictures with known cameras, as a file dialogue sends them: without folders."""
    folder = tmp_path_factory.mktemp("scene")
    write_scene(make_scene(4, 48, 64, kind="simple", num_points=300), folder)
    cameras = folder / "transforms.json"
    cameras.write_text(cameras.read_text().replace('"images/', '"').replace('"./images/', '"'))
    return [cameras, folder / "points.ply", *sorted((folder / "images").iterdir())]


@dataclass(frozen=True)
class App:
    """A running ``sightline app``."""

    address: str
    """With the key of the user who started it."""
    root: Path

    @property
    def home(self) -> str:
        return self.address.split("?")[0]


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    pytest.importorskip("gradio", reason="the app needs gradio (extra app)")
    folder = tmp_path_factory.mktemp("app")
    words = ["--root", "jobs", "--models", "models", "--port", "0", "--no-browser"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with (folder / "stderr.txt").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sightline", "app", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            deadline = time.monotonic() + _START
            line = process.stdout.readline().strip()
            assert line.startswith("http"), (folder / "stderr.txt").read_text()
            assert time.monotonic() < deadline
            yield App(address=line, root=folder / "jobs")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[Page]:
    """The page of the app, opened anew; it must stay without errors and foreign requests."""
    with browser.page() as opened:
        opened.resize(1280, 900)
        opened.goto(app.address, JOB)
        wait_ready(opened)
        yield opened
        assert opened.errors == []
        assert opened.external_requests() == []


def wait_ready(page: Page) -> None:
    """Wait until the tabs and the page's own parts are there."""
    page.wait_for(
        "!!window.sightlinePage && document.querySelectorAll('[role=tab]').length >= 6 "
        "&& document.querySelectorAll('.sl-drop').length > 0",
        JOB,
    )


def open_tab(page: Page, title: str) -> None:
    page.evaluate(f"window.sightlinePage.openTab('{title}')")
    page.wait_for(
        f"[...document.querySelectorAll('[role=tab][aria-selected=true]')]"
        f".some((t) => t.textContent.trim() === '{title}')",
        JOB,
    )


def send(page: Page, box: str, files: list[Path]) -> None:
    """Send files by a drop zone and wait until they have arrived."""
    page.wait_for(f"!!document.querySelector('#{box} input[type=file]')", JOB)
    page.upload(f"#{box} input[type=file]", files)
    page.wait_for(
        f"document.querySelector('#{box} .sl-note').textContent.startsWith('{len(files)} file')"
        f" && !document.querySelector('#{box} .sl-note').textContent.includes('on the way')",
        JOB,
    )
    page.wait_for("true")


def choose(page: Page, kind: str, option: str, value: str) -> None:
    """Type an option's value, and wait until the command to copy has it."""
    control = f"{kind}-{option}"
    page.wait_for(f"!!document.querySelector('#{control} input, #{control} textarea')", JOB)
    deadline = time.monotonic() + JOB
    while f"--{option}={value}" not in command_of(page, kind):
        assert time.monotonic() < deadline, (option, command_of(page, kind))
        fill(page, control, value)  # again, where the page was not awake yet
        for _ in range(40):
            time.sleep(0.1)
            if f"--{option}={value}" in command_of(page, kind):
                break


def fill(page: Page, control: str, value: str) -> None:
    """Type into a text or number field."""
    page.evaluate(
        f"""(() => {{
          const field = document.querySelector('#{control} input, #{control} textarea');
          const kind = field.tagName === 'INPUT' ? HTMLInputElement : HTMLTextAreaElement;
          Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, {value!r});
          for (const name of ['input', 'change', 'blur'])
            field.dispatchEvent(new Event(name, {{ bubbles: true }}));
        }})()"""
    )


def command_of(page: Page, kind: str) -> str:
    return page.evaluate(f"document.querySelector('#{kind}-command')?.textContent.trim() ?? ''")


def pick(page: Page, control: str, value: str) -> None:
    """Choose from a list by typing, as a hand would."""
    page.wait_for(f"!!document.querySelector('#{control} input')", JOB)
    kind, _, option = control.rpartition("-")
    deadline = time.monotonic() + JOB
    while f"--{option}={value}" not in command_of(page, kind):
        assert time.monotonic() < deadline, (option, command_of(page, kind))
        page.evaluate(f"document.querySelector('#{control} input').focus()")
        fill(page, control, value)
        page.evaluate(
            f"document.querySelector('#{control} input').dispatchEvent(new KeyboardEvent("
            "'keydown', {key: 'Enter', bubbles: true}))"
        )
        time.sleep(1.0)


def press(page: Page, name: str) -> None:
    page.evaluate(
        f"(document.querySelector('#{name} button') ?? document.getElementById('{name}')).click()"
    )


def card_state(page: Page, card: str) -> str | None:
    return page.evaluate(f"document.querySelector('#{card} .sl-card')?.dataset.state ?? null")


def wait_done(page: Page, card: str) -> list[str]:
    """Wait until a card's job has ended well; return what its bar said on the way."""
    heard: list[str] = []
    deadline = time.monotonic() + JOB
    look = (
        f"(() => {{ const c = document.querySelector('#{card} .sl-card'); return [c?.dataset.state,"
        " c?.querySelector('.sl-bar')?.getAttribute('aria-valuenow') ?? null,"
        " c?.querySelector('.sl-error')?.textContent ?? null, !!c?.querySelector('.sl-out .sl-log')];"
        " })()"
    )
    while time.monotonic() < deadline:
        state, percent, error, is_drawn = page.evaluate(look)
        if percent is not None and (not heard or heard[-1] != percent):
            heard.append(percent)
        assert not error, error
        assert state not in ("failed", "cancelled", "interrupted"), state
        if state == "done" and is_drawn:
            return heard
        time.sleep(0.1)
    raise TimeoutError(f"the job of {card} has not ended: {page.evaluate(look)}")


def wait_drawn(page: Page, card: str) -> None:
    """Wait until the 3D view in a card is drawn."""
    page.wait_for(
        f"(() => {{ const v = document.querySelector('#{card} iframe')?.contentWindow?.sightline;"
        " return !!v && v.isSettled() && v.state.frames > 0; })()",
        JOB,
    )


def look_at(page: Page, card: str) -> np.ndarray:
    """Return the middle of the 3D view in a card, as RGB rows of the screen."""
    left, top, width, height = page.evaluate(
        f"(() => {{ const f = document.querySelector('#{card} iframe'); f.scrollIntoView();"
        " const b = f.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    rows = slice(int(top + height / 3), int(top + 2 * height / 3))
    return page.screenshot()[rows, int(left + width / 3) : int(left + 2 * width / 3)]


def fetch(page: Page, selector: str) -> tuple[int, str, str]:
    """Fetch where a link points to; return its size, its first letters and its type."""
    found = page.evaluate(
        f"""(async () => {{
          const answer = await fetch(document.querySelector({selector!r}).href);
          const bytes = new Uint8Array(await answer.arrayBuffer());
          return [bytes.length, String.fromCharCode(...bytes.subarray(0, 16)),
            answer.headers.get('content-type')];
        }})()""",
        JOB,
    )
    return found[0], found[1], found[2]
