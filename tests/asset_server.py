"""A real HTTP server on this machine that can be told to misbehave, one path at a time."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit


@dataclass
class Served:
    """What one path answers. Lists are used up, one item per request; then the path behaves."""

    content: bytes = b""
    etag: str | None = '"v1"'
    last_modified: str | None = None
    ranges: Literal["honour", "ignore", "shift", "unnamed", "other-total", "refuse"] = "honour"
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answered before anything else
    break_after: list[int] = field(default_factory=list)  # bytes of the body, then the connection is cut
    stall_after: list[int] = field(default_factory=list)  # bytes of the body, then nothing more comes
    claimed_length: int | None = None  # Content-Length, whatever the truth
    no_length: bool = False  # no Content-Length; the end of the connection ends the body
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    block: int = 1 << 16
    pause: float = 0.0  # seconds between blocks


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class AssetServer:
    """`files` maps paths to what they answer; `requests` is what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.scheme = "http"
        self.sent = 0  # bytes of all bodies
        self.released = threading.Event()  # ends stalls and pauses
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *about: None  # clients that go away in the middle are what is tested

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}/{path}"

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """From now on https only. To be called before the first request."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "https"

    def add(self, path: str, content: bytes = b"", **behaviour: object) -> Served:
        self.files[f"/{path}"] = served = Served(content, **behaviour)  # type: ignore[arg-type]
        return served

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == f"/{path}"]

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def asset_server() -> Iterator[AssetServer]:
    """A running server; it and its connections end with the block."""
    server = AssetServer()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(5)


def _handler(server: AssetServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return None

        def do_GET(self) -> None:
            path = urlsplit(self.path).path  # a proxy is asked for whole addresses
            server.note(Request(path, {name.lower(): value for name, value in self.headers.items()}))
            served = server.files.get(path)
            if served is None:
                self._head(404, {"Content-Length": "0"})
            elif served.statuses:
                status, headers = served.statuses.pop(0)
                self._head(status, {"Content-Length": "0", **headers})
            elif served.redirect is not None:
                self._head(302, {"Content-Length": "0", "Location": served.redirect, **served.headers})
            else:
                self._serve(served)

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _serve(self, served: Served) -> None:
            headers = {"Content-Type": served.content_type, **served.headers}
            if served.etag:
                headers["ETag"] = served.etag
            if served.last_modified:
                headers["Last-Modified"] = served.last_modified
            status, start = 200, 0
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range")
            same = condition is None or condition in (served.etag, served.last_modified)
            if wanted and same and served.ranges != "ignore":
                start, total = int(wanted[1]), len(served.content)
                if start >= total or served.ranges == "refuse":
                    self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{total}"})
                    return
                status = 206
                shown = start + 7 if served.ranges == "shift" else start
                claimed = total + 5 if served.ranges == "other-total" else total
                if served.ranges != "unnamed":
                    headers["Content-Range"] = f"bytes {shown}-{claimed - 1}/{claimed}"
            body = served.content[start:]
            if served.no_length:
                headers["Connection"] = "close"
            else:
                length = len(body) if served.claimed_length is None else served.claimed_length
                headers["Content-Length"] = str(length)
            self._head(status, headers)
            self._body(served, body)

        def _body(self, served: Served, body: bytes) -> None:
            cut = served.break_after.pop(0) if served.break_after else None
            stall = served.stall_after.pop(0) if served.stall_after else None
            end = min(n for n in (cut, stall, len(body)) if n is not None)
            try:
                for at in range(0, end, served.block):
                    piece = body[at : min(at + served.block, end)]
                    self.wfile.write(piece)
                    self.wfile.flush()
                    server.sent += len(piece)
                    if served.pause:
                        server.released.wait(served.pause)
                if stall is not None:
                    server.released.wait(30)
            except OSError:  # the client has gone, as some tests want it to
                self.close_connection = True
            if cut is not None or stall is not None or served.no_length or served.claimed_length is not None:
                self.close_connection = True

    return Handler
