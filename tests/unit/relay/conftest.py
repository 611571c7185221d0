# SPDX-License-Identifier: Apache-2.0
"""A relay in a thread, and a blocking client that speaks the protocol by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from wirekube.relay import server
from wirekube.relay.server import Limits, RelayServer
from wirekube.relay.sessions import Admission
from wirekube.wire import relay as wire
from wirekube.wire.endpoint import Endpoint

LOOPBACK = Endpoint.parse("127.0.0.1:0")
DEADLINE = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


class HandClient:
    def __init__(self, address: Endpoint, relay_key: bytes) -> None:
        self.private = os.urandom(32)
        self.key = wire.public_key(self.private)
        self.relay_key = relay_key
        self.address = address
        self.connect()

    def connect(self) -> None:
        self.sock = socket.create_connection(self.address.sockaddr(), timeout=DEADLINE)
        self.file = self.sock.makefile("rb")

    def send(self, kind: int, body: bytes = b"") -> None:
        self.sock.sendall(wire.frame(kind, body))

    def receive(self) -> tuple[int, bytes]:
        """The next frame; (0, b"") at the end of the connection."""
        try:
            header = self.file.read(5)
            if len(header) < 5:
                return 0, b""
            length, kind = wire.HEADER.unpack(header)
            return kind, self.file.read(length - 1)
        except ConnectionError:
            return 0, b""

    def expect(self, kind: int) -> bytes:
        got, body = self.receive()
        assert got == kind, (got, body)
        return body

    def register(self) -> HandClient:
        handshake = wire.ClientHandshake(self.private, os.urandom(16), self.relay_key)
        self.send(wire.HELLO, handshake.hello.body())
        self.send(wire.PROOF, handshake.proof(wire.parse_challenge(self.expect(wire.CHALLENGE))))
        handshake.accept(self.expect(wire.WELCOME))
        return self

    def ended(self) -> str:
        """Wait for the relay to close; return its last words."""
        text = ""
        while (got := self.receive())[0]:
            if got[0] in {wire.ERROR, wire.CLOSE}:
                text = wire.parse_text(got[1])
        return text

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class World:
    """One relay; `client()` connects to it."""

    def __init__(self, limits: Limits, admission: Admission, poll: Callable[[], Admission | None]) -> None:
        self.private = os.urandom(32)
        self.relay_key = wire.public_key(self.private)
        self.server = RelayServer(self.private, LOOPBACK, admission, stun=LOOPBACK, limits=limits, poll=poll)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        self.clients: list[HandClient] = []

    def client(self) -> HandClient:
        self.clients.append(HandClient(self.server.address, self.relay_key))
        return self.clients[-1]

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.stop()
        self.thread.join(DEADLINE)
        for client in self.clients:
            client.close()
        assert not self.thread.is_alive()


MakeRelay = Callable[..., World]


@pytest.fixture
def make_relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRelay]:
    monkeypatch.setattr(server, "TICK", 0.05)
    with contextlib.ExitStack() as stack:

        def make(
            admission: Admission | None = None,
            poll: Callable[[], Admission | None] = lambda: None,
            limits: Limits | None = None,
        ) -> World:
            world = World(limits or Limits(), admission or Admission(None), poll)
            stack.callback(world.stop)
            return world

        yield make
