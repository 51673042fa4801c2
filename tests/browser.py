"""Drive headless Chromium over its DevTools protocol, with every host but this one unreachable.

Tests that use it carry the marker ``browser`` and skip where no Chromium is installed.
"""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--force-color-profile=srgb",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


def chromium_binary() -> str | None:
    """Return the browser's path, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One tab. What it logged is in ``errors``, what it asked the network for in ``requests``."""

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self._socket = connect(address, max_size=None, open_timeout=30, compression=None)
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.messages: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, timeout: float = 300, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that arrive meanwhile are noted."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        deadline = time.monotonic() + timeout
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.01, deadline - time.monotonic())))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled":
            text = " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
            (self.errors if params["type"] in ("error", "assert") else self.messages).append(text)
        elif method == "Log.entryAdded":
            entry = params["entry"]
            (self.errors if entry["level"] == "error" else self.messages).append(entry["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def external_requests(self) -> list[str]:
        """Return what was asked of anything but this page, its own data and this machine."""
        own = ("data:", "blob:", "file:", "http://127.0.0.1", "ws://127.0.0.1", "about:")
        return [url for url in self.requests if not url.startswith(own)]

    def resize(
        self, width: int, height: int, *, scale: float = 1, dark: bool = False, touch: bool = False
    ) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def goto(self, address: str, timeout: float = 300) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'",
                      timeout)  # fmt: skip

    def evaluate(self, expression: str, timeout: float = 300) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate",
            timeout=timeout,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 300) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true in {timeout} s: {expression}; errors: {self.errors}")
            time.sleep(0.05)

    def upload(self, selector: str, files: Sequence[Path]) -> None:
        """Give files to a file input, as its dialogue would."""
        found = self.call(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        self.call(
            "DOM.setFileInputFiles",
            files=[str(file) for file in files],
            objectId=found["result"]["objectId"],
        )

    def screenshot(self, path: Path | None = None, *, full: bool = False) -> np.ndarray:
        """Return what is on the screen (or the whole page) as RGB rows."""
        import io

        from PIL import Image

        reply = self.call(
            "Page.captureScreenshot", timeout=240, format="png", captureBeyondViewport=full
        )
        data = base64.b64decode(reply["data"])
        if path is not None:
            path.write_bytes(data)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def mouse(self, kind: str, x: float, y: float, **params: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **params)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 6) -> None:
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        for i in range(1, steps + 1):
            at = [a + (b - a) * i / steps for a, b in zip(start, end, strict=True)]
            self.mouse("mouseMoved", *at, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)


class Browser:
    """A running Chromium."""

    def __init__(self, binary: str, profile: Path) -> None:
        self._log = (profile / "stderr.txt").open("wb")
        self._process = subprocess.Popen(
            [binary, *_FLAGS, f"--user-data-dir={profile / 'profile'}", "about:blank"],
            stdout=self._log,
            stderr=self._log,
        )
        port_file = profile / "profile" / "DevToolsActivePort"
        deadline = time.monotonic() + 300
        while not (port_file.exists() and len(port_file.read_text().split("\n")) >= 2):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise RuntimeError("Chromium did not start")
            time.sleep(0.05)
        self._port, self._path = port_file.read_text().split("\n")[:2]

    def _command(self, method: str, **params: Any) -> dict[str, Any]:
        from websockets.sync.client import connect

        address = f"ws://127.0.0.1:{self._port}{self._path}"
        with connect(address, max_size=None, compression=None) as socket:
            socket.send(json.dumps({"id": 1, "method": method, "params": params}))
            while True:
                message = json.loads(socket.recv(timeout=300))
                if message.get("id") == 1:
                    return message["result"]

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Open a tab and close it again."""
        target = self._command("Target.createTarget", url="about:blank")["targetId"]
        page = Page(f"ws://127.0.0.1:{self._port}/devtools/page/{target}")
        try:
            yield page
        finally:
            page.close()
            self._command("Target.closeTarget", targetId=target)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium with a new profile and end it; skip the test where there is none."""
    binary = chromium_binary()
    if binary is None:
        pytest.skip("no Chromium is installed")
    pytest.importorskip("websockets", reason="the DevTools client needs websockets (with viser)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(binary, Path(folder))
        try:
            yield browser
        finally:
            browser.close()
