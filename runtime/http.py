# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server in threads of its own, for health, metrics and the local status socket.

It never touches the event loop: a route reads immutable snapshots, so that a stuck loop can still be asked why.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from urllib.parse import parse_qsl, urlsplit

from ..telemetry.logs import get_logger

log = get_logger("http")

IDLE_TIMEOUT = 30.0
POLL = 0.5  # seconds between looks at whether to stop: more often costs an idle agent CPU, more rarely delays its end


@dataclass(frozen=True)
class Response:
    """What a route answers: status code, body and its media type."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        """Answer with plain text."""
        return cls(status, text.encode())


Route = Callable[[dict[str, str]], Response]


class HttpServer:
    """Serve GET and HEAD on TCP or on a Unix socket.

    Args:
        address: `(host, port)` (port 0 takes a free one), or the path of a Unix socket. The socket has mode 0600; one
            that a dead process left is replaced, one that somebody listens on is not.
        routes: by path; a route gets the query (a parameter without a value is there with an empty one) and runs in
            the server's threads. A path that ends in `/` also serves what is below it, with the rest of the path in
            the parameter `path`. An exception becomes a 500 without its text.
    """

    def __init__(self, address: tuple[str, int] | str, routes: Mapping[str, Route]) -> None:
        self.address = address
        self._routes = dict(routes)
        self._server: _TcpServer | _UnixServer | None = None
        self._thread: threading.Thread | None = None
        self._inode = 0

    @property
    def port(self) -> int:
        """The TCP port in use; 0 on a Unix socket or before `start`."""
        return self._server.server_address[1] if isinstance(self._server, _TcpServer) else 0

    @property
    def started(self) -> bool:
        """Whether it is between `start` and `close`."""
        return self._server is not None

    def start(self) -> None:
        """Bind and serve in the background.

        Raises:
            OSError: the address is in use, or cannot be bound; for a Unix socket also when a live server has it.
        """
        if isinstance(self.address, str):
            _remove_stale(self.address)
            self._server = _unix_server(self.address, self._routes)
            self._inode = Path(self.address).stat().st_ino
        else:
            self._server = _TcpServer(self.address, _handler(self._routes))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL,), name=f"http-{self.address}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and remove the Unix socket if it is still ours. Answers under way may be cut off."""
        server, self._server = self._server, None
        if server is None:
            return
        if isinstance(self.address, str):
            self._unlink_own(Path(self.address))
        server.shutdown()
        server.server_close()
        if self._thread is not None:
            self._thread.join()

    def _unlink_own(self, path: Path) -> None:
        # A successor may have replaced the socket during a hand-over; its inode differs.
        if path.exists() and path.stat().st_ino == self._inode:
            path.unlink()


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _UnixServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


def _unix_server(path: str, routes: dict[str, Route]) -> _UnixServer:
    """Bind under a private name and rename, so that the socket never stands there with a wider mode."""
    temporary = f"{path}.{os.getpid()}"
    Path(temporary).unlink(missing_ok=True)
    server = _UnixServer(temporary, _handler(routes))
    try:
        Path(temporary).chmod(0o600)
        Path(temporary).rename(path)
    except OSError:
        server.server_close()
        Path(temporary).unlink(missing_ok=True)
        raise
    return server


def _remove_stale(path: str) -> None:
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "is in the way and no socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another process listens on this socket", path)


def _find(routes: Mapping[str, Route], path: str) -> tuple[Route, dict[str, str]] | None:
    """Return the route of a path and what it adds to the query: the exact one, else the longest that ends in `/`."""
    if path in routes:
        return routes[path], {}
    for prefix in sorted(routes, key=len, reverse=True):
        if prefix.endswith("/") and path.startswith(prefix):
            return routes[prefix], {"path": path.removeprefix(prefix)}
    return None


def answer(routes: Mapping[str, Route], target: str) -> Response:
    """Answer one request target (path and query); 404 for an unknown path, 500 when the route fails."""
    url = urlsplit(target)
    found = _find(routes, url.path)
    if found is None:
        return Response.text("not found\n", 404)
    route, extra = found
    try:
        return route(dict(parse_qsl(url.query, keep_blank_values=True)) | extra)
    except Exception:
        log.exception("a route failed", path=url.path)
        return Response.text("internal error\n", 500)


def _handler(routes: Mapping[str, Route]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_TIMEOUT
        protocol_version = "HTTP/1.1"
        server_version = "wirekube"
        sys_version = ""

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, with_body: bool) -> None:
            response = answer(routes, self.path)
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug("request", line=format % args)

        def address_string(self) -> str:
            return "local" if isinstance(self.client_address, str) else str(self.client_address[0])

    return Handler
