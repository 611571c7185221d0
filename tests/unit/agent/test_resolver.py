# SPDX-License-Identifier: Apache-2.0
"""The resolver against small DNS servers on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from wirekube.agent import resolve
from wirekube.agent.resolve import Resolver, split_host
from wirekube.wire.endpoint import Endpoint

pytestmark = pytest.mark.anyio

POD, HOST = "127.0.53.1", "127.0.53.2"


class Dns:
    """Answers A questions from a table; a name that is not in it does not exist, None is silence."""

    def __init__(self, address: str, port: int) -> None:
        self.table: dict[str, list[str] | None] = {}
        self.asked: list[str] = []
        self.silent = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(2048)
            if data == b"stop":
                return
            question = dns.message.from_wire(data)
            name = question.question[0].name.to_text(omit_final_dot=True)
            self.asked.append(name)
            answer = dns.message.make_response(question)
            answer.flags |= dns.flags.RA
            addresses = self.table.get(name, [])
            if addresses:
                answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "A", *addresses))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            if not self.silent and addresses is not None:
                self._socket.sendto(answer.to_wire(), client)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"stop", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()


@pytest.fixture
def servers() -> Iterator[tuple[Dns, Dns]]:
    """Two name servers on one port of two addresses, as resolv.conf has no word for a port."""
    pod = Dns(POD, 0)
    host = Dns(HOST, pod.port)
    yield pod, host
    pod.close()
    host.close()


@pytest.fixture
def resolver(servers: tuple[Dns, Dns], tmp_path: Path) -> Callable[[str], Resolver]:
    def make(search: str = "") -> Resolver:
        (tmp_path / "pod").write_text(f"nameserver {POD}\n{search}\n")
        (tmp_path / "host").write_text(f"nameserver {HOST}\n")
        return Resolver(tmp_path / "pod", [tmp_path / "host", tmp_path / "absent"], port=servers[0].port)

    return make


def at(*texts: str) -> tuple[Endpoint, ...]:
    return tuple(map(Endpoint.parse, texts))


async def test_an_address_needs_no_name_server(resolver: Callable[..., Resolver], servers: tuple[Dns, Dns]) -> None:
    assert await resolver().resolve("203.0.113.1:3478") == at("203.0.113.1:3478")
    assert servers[0].asked == servers[1].asked == []


@pytest.mark.parametrize("who", [0, 1])
async def test_either_resolver_is_enough_while_the_other_is_silent(
    resolver: Callable[..., Resolver], servers: tuple[Dns, Dns], who: int
) -> None:
    servers[who].table["stun.example"] = ["203.0.113.2", "203.0.113.1"]
    servers[1 - who].silent = True
    started = time.monotonic()
    assert await resolver().resolve("stun.example:3478") == at("203.0.113.1:3478", "203.0.113.2:3478")
    assert time.monotonic() - started < resolve.LIMIT_SECONDS


async def test_a_denial_does_not_beat_an_answer(resolver: Callable[..., Resolver], servers: tuple[Dns, Dns]) -> None:
    servers[1].table["stun.example"] = ["203.0.113.1"]
    assert await resolver().resolve("stun.example:3478") == at("203.0.113.1:3478")
    assert "stun.example" in servers[0].asked


@pytest.mark.parametrize(
    "name",
    [
        "relay.wirekube-system.svc",
        "relay.wirekube-system.svc.cluster.local",
        "relay.wirekube-system.svc.cluster.local.",
        "Relay.wirekube-system.SVC",
        "relay.wirekube-system.svc.corp.example",
    ],
)
async def test_cluster_names_are_asked_for_at_the_pods_resolver_alone(
    resolver: Callable[..., Resolver], servers: tuple[Dns, Dns], name: str
) -> None:
    servers[0].table[name.removesuffix(".")] = ["10.96.0.7"]
    made = resolver("search wirekube-system.svc.corp.example svc.corp.example corp.example")
    assert await made.resolve(f"{name}:3478") == at("10.96.0.7:3478")
    assert servers[1].asked == []


async def test_the_last_good_answer_is_kept(
    resolver: Callable[..., Resolver], servers: tuple[Dns, Dns], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers[0].table["stun.example"] = ["203.0.113.1"]
    made = resolver()
    assert await made.resolve("stun.example:3478")
    monkeypatch.setattr(resolve, "LIMIT_SECONDS", 0.2)
    for server in servers:
        server.silent = True
    started = time.monotonic()
    assert await made.resolve("stun.example:19302") == at("203.0.113.1:19302")
    assert time.monotonic() - started < 1.0
    assert made.last_good == {"stun.example": ("203.0.113.1",)}


async def test_a_name_that_nobody_knows_has_no_endpoints(resolver: Callable[..., Resolver]) -> None:
    assert await resolver().resolve("nowhere.example:3478") == ()


@pytest.mark.parametrize(
    "name", ["a..b", "x" * 64 + ".example", "-", "\u00e4" * 70], ids=["empty label", "long label", "dash", "long IDNA"]
)
async def test_a_name_that_is_none_has_no_endpoints(resolver: Callable[..., Resolver], name: str) -> None:
    assert await resolver().resolve(f"{name}:3478") == ()


def test_whom_it_asks(tmp_path: Path) -> None:
    pod, host = tmp_path / "pod", tmp_path / "host"
    pod.write_text("nameserver 10.96.0.10\nnameserver fe80::1%eth0\n")
    host.write_text("nameserver 192.168.1.1\nnameserver fd77::1\n")
    assert {str(ip) for ip in Resolver(pod, [host, tmp_path / "absent"]).servers()} >= {
        "10.96.0.10",
        "192.168.1.1",
        "fd77::1",
    }


async def test_without_any_resolver_there_is_no_answer(tmp_path: Path) -> None:
    assert await Resolver(tmp_path / "absent", []).resolve("stun.example:3478") == ()


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:x", "a:\u0661"])
def test_host_and_port_are_both_needed(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_host(text)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert split_host("[2001:db8::1]:3478") == ("2001:db8::1", 3478)
