# SPDX-License-Identifier: Apache-2.0
"""A relay in a thread, agents' relay clients in the event loop, and a UDP socket that stands for WireGuard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from wirekube.agent.relayclient import RelayClient, RelayEvent, RelayServer
from wirekube.relay.server import RelayServer as Server
from wirekube.relay.sessions import Admission
from wirekube.wire import relay as wire
from wirekube.wire.endpoint import Endpoint

LOOPBACK = Endpoint.parse("127.0.0.1:0")
DEADLINE = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


class Relay:
    """A relay that can be stopped and started again with the same key and port."""

    def __init__(self) -> None:
        self.private = os.urandom(32)
        self.key = wire.public_key(self.private)
        self.address = LOOPBACK
        self.thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        self.server = Server(self.private, self.address, Admission(None))
        self.address = self.server.address
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def stop(self) -> None:
        if self.thread is not None:
            self.server.stop()
            self.thread.join(DEADLINE)
            assert not self.thread.is_alive()
            self.thread = None

    def config(self, public_key: bytes | None = None, *before: Endpoint) -> RelayServer:
        return RelayServer("relay.test:3478", (*before, self.address), public_key)


class Agent:
    def __init__(self) -> None:
        self.private = os.urandom(32)
        self.key = wire.public_key(self.private)
        self.wireguard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.wireguard.bind(("127.0.0.1", 0))
        self.wireguard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.events: list[RelayEvent] = []
        self.news = asyncio.Event()
        self.client = RelayClient(self.private, mark=None, on_event=self._event, rng=random.Random(1))
        self.client.set_underlay("127.0.0.1", self.wireguard.getsockname()[1])
        self.task = asyncio.get_running_loop().create_task(self.client.run())

    def _event(self, event: RelayEvent) -> None:
        self.events.append(event)
        self.news.set()

    async def event(self, kind: type, match: Callable[[RelayEvent], bool] = lambda _: True) -> RelayEvent:
        """Wait for an event, and take it and all before it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self.news.clear()
                for index, event in enumerate(self.events):
                    if isinstance(event, kind) and match(event):
                        del self.events[: index + 1]
                        return event
                await self.news.wait()

    async def packet(self) -> bytes:
        """The next datagram that WireGuard gets."""
        async with asyncio.timeout(DEADLINE):
            return await asyncio.get_running_loop().sock_recv(self.wireguard, 65535)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - counters have no event
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.wireguard.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    relay = Relay()
    yield relay
    relay.stop()


@pytest.fixture
async def make_agent() -> AsyncIterator[Callable[[], Agent]]:
    agents: list[Agent] = []

    def make() -> Agent:
        agents.append(Agent())
        return agents[-1]

    yield make
    for agent in agents:
        await agent.close()
