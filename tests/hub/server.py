"""A server on this machine that behaves as badly as it is told to."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Site:
    """What the server serves, how it misbehaves, and what it was asked for.

    Attributes:
        files: Path -> content.
        status: Path -> the status to answer with instead, and headers.
        cut: Path -> how many bytes to send before breaking off, used up one by one.
        redirects: Path -> address.
        ranges: Whether parts may be asked for.
        requests: (method, path, headers) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    claimed: int | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving() -> Iterator[Site]:
    """Serve a site until the block ends."""
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def empty(self, code: int, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, *, with_body: bool) -> None:
            path = self.path
            site.requests.append((self.command, path, dict(self.headers)))
            if path in site.redirects:
                return self.empty(302, {"Location": site.redirects[path]})
            if path in site.status:
                return self.empty(*site.status[path])
            if path not in site.files:
                return self.empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "c" * 40})
            data = site.files[path]
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            wanted = self.headers.get("Range", "")
            start = 0
            if site.ranges and wanted and self.headers.get("If-Range", tag) == tag:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(data):
                    return self.empty(416, {"Content-Range": f"bytes */{len(data)}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", tag)
            self.send_header("X-Repo-Commit", "c" * 40)
            size = len(data) - start if site.claimed is None else site.claimed
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if with_body:
                cuts = site.cut.get(path)
                stop = start + cuts.pop(0) if cuts else len(data)
                self.wfile.write(data[start:stop])
                if stop < len(data):
                    self.close_connection = True
            return None

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that hang up are part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
