# SPDX-License-Identifier: Apache-2.0
"""A scripted API server on loopback, and waiting for conditions."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


class Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        url = urlsplit(self.path)
        params = {name: values[0] for name, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if url.path.rstrip("/") == "/version":
            return self._send(200, {"gitVersion": "v1.37.0"}, {})
        self.stub.requests.append(
            {
                "method": self.command,
                "path": url.path,
                "params": params,
                "headers": dict(self.headers),
                "body": json.loads(body) if body else None,
            }
        )
        if params.get("watch") == "true":
            return self._watch()
        try:
            return self._send(*self.stub.answers.get_nowait())
        except queue.Empty:
            return self._send(500, "nothing scripted", {})

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self) -> None:
        try:
            status, lines, headers = self.stub.watches.get_nowait()
        except queue.Empty:
            status, lines, headers = 200, [None], {}
        if status != 200:
            return self._send(status, lines, headers)
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for line in lines:
            if line is None:
                self.stub.released.wait(20)
            else:
                self.wfile.write((line if isinstance(line, str) else json.dumps(line) + "\n").encode())
        self.close_connection = True
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


class Stub:
    """Answers `/version`; every other request is recorded and gets the next scripted answer of its sort.

    An answer is (status, body, headers). A watch answer's body is a list of lines; None in it keeps the stream open
    until `release`. Without a script a watch stays open and anything else is 500.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: queue.Queue[tuple[int, Any, dict[str, str]]] = queue.Queue()
        self.watches: queue.Queue[tuple[int, Any, dict[str, str]]] = queue.Queue()
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("StubHandler", (Handler,), {"stub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, status: int, body: Any, **headers: str) -> None:
        self.answers.put((status, body, {name.replace("_", "-"): value for name, value in headers.items()}))

    def items(self, version: str, *names: str, **more: Any) -> None:
        self.answer(
            200, {"items": [thing(n, version) for n in names], "metadata": {"resourceVersion": version, **more}}
        )

    def watch(self, *lines: Any, status: int = 200) -> None:
        self.watches.put((status, lines[0] if status != 200 else list(lines), {}))

    def sorts(self) -> list[str]:
        """The requests so far: LIST, or WATCH@VERSION."""
        return [f"WATCH@{r['params']['resourceVersion']}" if "watch" in r["params"] else "LIST" for r in self.requests]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def thing(name: str, version: str, uid: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": version, "managedFields": []}}


@pytest.fixture(name="thing")
def _thing() -> Callable[..., dict[str, Any]]:
    return thing


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def kubeconfig(stub: Stub, tmp_path: Path) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": stub.url}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    async def wait(condition: Callable[[], Any]) -> None:
        with anyio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - conditions are of many sorts
                await anyio.sleep(0.01)

    return wait
