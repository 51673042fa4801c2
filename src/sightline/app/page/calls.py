"""What a browser may ask of Gradio: the page, what it is made of, and its events; never a file.

Gradio takes up any file of the machine, and any address, that an event's data name in its form for
files: it compares paths with the folder of uploads only in servers that it has started itself, and
ours is mounted (gradio 6.31, ``processing_utils._check_allowed``). It has doors for purposes that
this page does not have, too. Files of the app's users come and go by the HTTP API alone, which knows
whose they are.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.app.gate import answer, refusal

_PAGE = ("/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt")
_PARTS = ("/assets/", "/static/")
_EVENTS = "/gradio_api/run/predict"
"""Of the page's events none is queued."""


class PageCalls:
    """Stands before Gradio's application."""

    def __init__(self, app: ASGIApp, events: Mapping[int, int]) -> None:
        """Take Gradio's application, and how many values each event of the page sends."""
        self._app = app
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path, is_http = scope["path"], scope["type"] == "http"
        if not is_http or not (path in (*_PAGE, _EVENTS) or path.startswith(_PARTS)):
            nothing = refusal(404, "there is nothing at this address; open the page at /")
            await answer(nothing, scope, receive, send)
            return
        if scope["method"] == "POST":
            body = await _read(receive)
            sentence = self._fault(body)
            if sentence is not None:
                await answer(refusal(400, sentence), scope, receive, send)
                return
            receive = _again(body, receive)
        # What an address says after its question mark is for the page's own script.
        await self._app({**scope, "query_string": b""}, receive, send)

    def _fault(self, body: bytes) -> str | None:
        """Return what is wrong with an event, None where nothing is."""
        try:
            event = json.loads(body)  # as Gradio reads it
        except (ValueError, RecursionError):
            event = None
        event = event if isinstance(event, dict) else {}
        number = event.get("fn_index")
        if type(number) is not int or number not in self._events:
            return "expected the JSON of an event of the page; use the API for other purposes"
        values = event.get("data")
        if not isinstance(values, list) or len(values) != self._events[number]:
            return f"expected {self._events[number]} values of the page; load it again"
        return _fault_inside(event)


def _fault_inside(event: Any) -> str | None:  # noqa: ANN401
    """Return what is wrong with a value anywhere in an event."""
    rest = [event]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if "path" in value or "meta" in value:  # the form of a file of Gradio's, or part of it
                return "an event of the page names no files; send them to the API's uploads"
            rest.extend((*value, *value.values()))
        elif isinstance(value, list):
            rest.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            return "expected finite numbers; correct them on the page"
        elif isinstance(value, str) and not value.isascii() and not _is_text(value):
            return "expected text; half a character came"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


async def _read(receive: Receive) -> bytes:
    """Return a request's body, whose size the gate bounds."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what hands out a body that has been read, and then what else comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
