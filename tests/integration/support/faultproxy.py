# SPDX-License-Identifier: Apache-2.0
"""An HTTP proxy in front of a real API server, which makes what a real one cannot be made to show on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from wirekube.lab.controlplane import ControlPlane


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    watch: bool
    at: float = field(default_factory=time.monotonic)

    @property
    def lease(self) -> bool:
        """Whether it concerns the operator's own Lease."""
        return "/namespaces/wirekube-system/leases" in self.path


@dataclass(frozen=True)
class Fault:
    """What becomes of a request.

    Attributes:
        status: answered with this code instead of by the server; 0 lets the server answer.
        headers: of that answer.
        delay: seconds before anything happens.
        cut: a watch ends at once ("start"), or in the middle of the line of its first event ("line").
        event: a line that a watch gets before it ends.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: str = ""
    event: dict[str, Any] | None = None


class FaultProxy:
    """Passes requests on, but for those that `fault` gives a fault for.

    Attributes:
        fault: is asked for each request.
        requests: all so far.
        faulted: those that got a fault.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.requests: list[Request] = []
        self.faulted: list[Request] = []
        self.upstream = urlsplit(plane.url)
        self.context = ssl.create_default_context(cafile=str(plane.folder / "pki" / "ca.crt"))
        self.healed = threading.Event()
        self._open: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("ProxyHandler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] - clients leave when they like
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def breaks(self, fault: Callable[[Request], Fault | None]) -> None:
        """From now on; watches that are open end, so that their clients ask again."""
        self.healed.clear()
        self.faulted = []
        self.fault = fault
        self.cut()

    def heals(self) -> None:
        """All is well again; what was delayed goes on."""
        self.fault = lambda request: None
        self.healed.set()

    def cut(self) -> None:
        """Break all watches."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.heals()
        self._server.shutdown()
        self.cut()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def streaming(self, connection: socket.socket) -> Any:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, url.path, "watch" in parse_qs(url.query))
        self.proxy.requests.append(request)
        fault = self.proxy.fault(request)
        if fault is not None:
            self.proxy.faulted.append(request)
            self.proxy.healed.wait(fault.delay)
            if fault.status:
                return self._answer(fault.status, fault.headers)
            if fault.cut == "start" or fault.event:
                return self._stream(iter([json.dumps(fault.event).encode() + b"\n"] if fault.event else []))
        return self._forward(request, body, fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names are http.server's

    def _forward(self, request: Request, body: bytes, fault: Fault | None) -> None:
        upstream = self.proxy.upstream
        connection = http.client.HTTPSConnection(
            str(upstream.hostname), upstream.port, context=self.proxy.context, timeout=None if request.watch else 30
        )
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
        with contextlib.closing(connection):
            try:
                connection.request(self.command, self.path, body or None, headers | {"Accept-Encoding": "identity"})
                answer = connection.getresponse()
            except OSError:
                return self._answer(502, {})
            if not request.watch or answer.status != 200:
                return self._answer(answer.status, dict(answer.getheaders()), answer.read())
            lines = iter(answer.readline, b"")
            return self._stream((line[: len(line) // 2] for line in lines) if fault and fault.cut == "line" else lines)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"made up by the proxy\n") -> None:
        self.send_response(status)
        for name in ("Content-Type", "Retry-After"):
            if name in headers:
                self.send_header(name, headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, lines: Any) -> None:
        """Send lines as they come; one without its end is the last."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        with self.proxy.streaming(self.connection):
            for line in lines:
                self.wfile.write(line)
                if not line.endswith(b"\n"):
                    return

    def log_message(self, format: str, *args: object) -> None:
        pass
