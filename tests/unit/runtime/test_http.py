# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import http.client
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wirekube import telemetry
from wirekube.runtime.health import HealthServer
from wirekube.runtime.http import HttpServer, Response, Route


def fetch(port: int, target: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def fetch_unix(path: Path, target: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def broken(query: dict[str, str]) -> Response:
    raise RuntimeError("a secret")


ROUTES: dict[str, Route] = {
    "/echo": lambda query: Response.text(repr(sorted(query.items()))),
    "/tree/": lambda query: Response.text(query["path"]),
    "/broken": broken,
}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    made = HttpServer(("127.0.0.1", 0), ROUTES)
    made.start()
    yield made
    made.close()


def test_routes(server: HttpServer) -> None:
    assert fetch(server.port, "/echo?a=1&b") == (200, "[('a', '1'), ('b', '')]")
    assert fetch(server.port, "/tree/x/y") == (200, "x/y")
    assert fetch(server.port, "/nothing")[0] == 404
    assert fetch(server.port, "/echo", "HEAD") == (200, "")
    assert fetch(server.port, "/echo", "POST")[0] == 501


def test_a_failing_route_hides_its_text(server: HttpServer) -> None:
    assert fetch(server.port, "/broken") == (500, "internal error\n")


def test_unix_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    server = HttpServer(str(path), ROUTES)
    server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert fetch_unix(path, "/tree/z").endswith(b"\r\n\r\nz")
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = HttpServer(str(path), ROUTES)
    server.start()
    with pytest.raises(OSError, match="another process"):
        HttpServer(str(path), ROUTES).start()
    assert fetch_unix(path, "/tree/z").endswith(b"z")
    server.close()


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("mine")
    with pytest.raises(OSError, match="no socket"):
        HttpServer(str(path), ROUTES).start()
    assert path.read_text() == "mine"


@pytest.fixture
def health() -> Iterator[HealthServer]:
    tele = telemetry.setup("test")
    tele.meter.create_counter("seen").add(3)
    made = HealthServer(("127.0.0.1", 0), tele)
    made.add_check("good", lambda: None)
    made.start()
    yield made
    made.close()
    tele.shutdown()


def test_health(health: HealthServer) -> None:
    assert fetch(health.port, "/healthz") == (200, "ok")
    assert fetch(health.port, "/readyz") == (200, "ok")
    assert fetch(health.port, "/readyz?verbose") == (200, "[+]good ok\nreadyz check passed\n")
    assert "seen_total 3.0" in fetch(health.port, "/metrics")[1]


def test_a_failed_check(health: HealthServer) -> None:
    health.add_check("bad", lambda: "the reason")
    health.add_check("raises", lambda: str(1 // 0))
    status, body = fetch(health.port, "/readyz")
    assert status == 500
    assert body == (
        "[+]good ok\n[-]bad failed: reason withheld\n[-]raises failed: reason withheld\nreadyz check failed\n"
    )
    assert fetch(health.port, "/readyz?exclude=bad,raises") == (200, "ok")
    assert fetch(health.port, "/readyz/good") == (200, "ok")
    assert fetch(health.port, "/readyz/bad")[0] == 500
    assert fetch(health.port, "/readyz/none")[0] == 404
    assert fetch(health.port, "/healthz") == (200, "ok")
