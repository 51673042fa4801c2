"""What every request passes before anything reads it: host, token, origin, size, session.

- Host: a page elsewhere whose name is made to point to this machine (DNS rebinding) sends its own
  name; only addresses and names of this machine are answered.
- Token: asked for when the server listens to more than this machine.
- Origin: a request that changes something, or opens a socket, and comes from another site's page,
  is refused, cookies or not.
- Size: a body is counted while it comes in.
- Session: the user's id, from a signed key, goes to ``scope["state"]["owner"]``.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.app.sessions import (
    KEY_COOKIE,
    KEY_HEADER,
    TOKEN_COOKIE,
    TOKEN_HEADER,
    Sessions,
    same,
)

API = "/api/v1"
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::\d{1,5})?")
_YEAR = 365 * 24 * 3600
_CONTENT = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""Pages of the app load nothing from elsewhere, whatever they contain."""
_HEADERS = {
    "content-security-policy": _CONTENT,
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come in.

    Attributes:
        host: The address that the server listens to.
        token: What visitors must show; None on the loopback address.
        names: Further names under which this machine is reached.
        body_bytes: Of a request, where nothing else is said.
        upload_bytes: Of a file that is sent.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    names: tuple[str, ...] = ()
    body_bytes: int = 4 << 20
    upload_bytes: int = 16 << 30
    uploads: tuple[str, ...] = (f"{API}/uploads",)
    events: tuple[str, ...] = field(default=("/gradio_api/",))
    """Paths of the page's own calls, which may carry small pictures."""

    def knows(self, host: str) -> bool:
        """Tell whether a ``Host`` header names this machine."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        return _is_address(name) or name in {self.host.lower(), *_own_names(self.names)}

    def most_bytes(self, path: str) -> int:
        """Return how large a request may be."""
        if path in self.uploads:
            return self.upload_bytes
        return 16 * self.body_bytes if path.startswith(self.events) else self.body_bytes


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names(names: Iterable[str]) -> set[str]:
    return {socket.gethostname().lower(), *(name.lower() for name in names)}


class _TooMuch(Exception):
    """A body has grown above its limit."""


class Gate:
    """The first middleware."""

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions) -> None:
        """Stand before ``app``."""
        self._app = app
        self._access = access
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = _cookies(headers.get("cookie", ""))
        reply = self._refuse(scope, headers, cookies)
        if reply is None and scope["type"] == "http":
            reply = self._welcome(scope, cookies)
        if reply is not None:
            await answer(reply, scope, receive, send)
            return
        owner, fresh = self._owner(scope, headers, cookies)
        scope.setdefault("state", {})["owner"] = owner
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await self._pass(scope, receive, send, fresh)

    def _refuse(self, scope: Scope, headers: Headers, cookies: dict[str, str]) -> Response | None:
        access, path = self._access, scope["path"]
        if len(headers.getlist("host")) != 1 or not access.knows(headers["host"]):
            return refusal(403, "this server does not answer to that host name; use its address")
        if access.token is not None and not self._shows_token(scope, headers, cookies):
            return refusal(401, f"this server asks for its token: send it as {TOKEN_HEADER}")
        if scope["type"] == "websocket" or scope["method"] not in _SAFE:
            if not _same_site(headers):
                return refusal(403, "this request comes from the page of another site; refused")
            if path.startswith(API) and KEY_HEADER not in headers and KEY_COOKIE in cookies:
                told = "origin" in headers or "sec-fetch-site" in headers
                if not told:
                    return refusal(403, f"send the key as {KEY_HEADER}, not as a cookie")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 15:
            return refusal(400, "the length of the request is no number; send it again")
        if int(length) > access.most_bytes(path):
            return refusal(413, f"the request may have up to {access.most_bytes(path)} bytes")
        return None

    def _shows_token(self, scope: Scope, headers: Headers, cookies: dict[str, str]) -> bool:
        wanted = self._access.token
        assert wanted is not None
        given = [headers.get(TOKEN_HEADER), cookies.get(TOKEN_COOKIE)]
        if scope["path"] == "/" and scope["type"] == "http":
            given.append(_query(scope).get("token"))
        return any([same(one, wanted) for one in given])  # noqa: C419 - all, for equal times

    def _welcome(self, scope: Scope, cookies: dict[str, str]) -> Response | None:
        """Put a token or a key that came in the address into cookies, and clean the address."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return None
        query = _query(scope)
        if not {"token", "key"} & query.keys():
            return None
        response = RedirectResponse("/", status_code=303)
        secure = scope.get("scheme") == "https"
        if self._access.token is not None and same(query.get("token"), self._access.token):
            _keep(response, TOKEN_COOKIE, self._access.token, secure)
        if self._sessions.owner_of(query.get("key")) is not None:
            _keep(response, KEY_COOKIE, query["key"], secure)
        return response

    def _owner(
        self, scope: Scope, headers: Headers, cookies: dict[str, str]
    ) -> tuple[str | None, str | None]:
        """Return the user, and the new key where a visitor of the page has none yet."""
        if KEY_HEADER in headers:
            return self._sessions.owner_of(headers[KEY_HEADER]), None
        owner = self._sessions.owner_of(cookies.get(KEY_COOKIE))
        if owner is not None or scope["type"] != "http" or scope["path"] != "/":
            return owner, None
        key = self._sessions.new_key()
        return self._sessions.owner_of(key), key

    async def _pass(self, scope: Scope, receive: Receive, send: Send, fresh: str | None) -> None:
        limit, seen, started = self._access.most_bytes(scope["path"]), 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _TooMuch
            return message

        async def dressed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if fresh is not None:
                    cookie = Response()
                    _keep(cookie, KEY_COOKIE, fresh, scope.get("scheme") == "https")
                    headers.append("set-cookie", cookie.headers["set-cookie"])
            await send(message)

        try:
            await self._app(scope, counted, dressed)
        except _TooMuch:
            if not started:
                too_much = refusal(413, f"the request may have up to {limit} bytes")
                await too_much(scope, receive, send)


def _cookies(text: str) -> dict[str, str]:
    if len(text) > 16_000:
        return {}
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(text).items()}
    except Exception:  # noqa: BLE001 - of whatever kind, it is no cookie of ours
        return {}


def _query(scope: Scope) -> dict[str, str]:
    text = scope.get("query_string", b"").decode("latin-1")
    if len(text) > 4000:
        return {}
    return {name: values[-1] for name, values in parse_qs(text).items()}


def _same_site(headers: Headers) -> bool:
    """Tell whether a browser says that the request is the app's own, or it is no browser."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers["host"].lower()
    except ValueError:
        return False


def _keep(response: Response, name: str, value: str, secure: bool) -> None:
    response.set_cookie(
        name, value, max_age=_YEAR, httponly=True, samesite="strict", secure=secure, path="/"
    )


def refusal(status: int, sentence: str) -> JSONResponse:
    """Return the answer to a request that is not let in."""
    return JSONResponse({"error": sentence}, status_code=status, headers=_HEADERS)


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer; a socket is closed with its sentence."""
    if scope["type"] == "http":
        await response(scope, receive, send)
        return
    await receive()  # websocket.connect
    content: Any = json.loads(bytes(response.body))["error"]
    await send({"type": "websocket.close", "code": 1008, "reason": str(content)[:100]})
