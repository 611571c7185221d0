# SPDX-License-Identifier: Apache-2.0
"""Relays in threads, alone or behind one address, agents' relay clients, and a UDP socket that stands for WireGuard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

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

    def __init__(self, private: bytes | None = None, server: type[Server] = Server) -> None:
        self.private = private or os.urandom(32)
        self.make = server
        self.key = wire.public_key(self.private)
        self.address = LOOPBACK
        self.thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        self.server = self.make(self.private, self.address, Admission(None))
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


class Nameless(Server):
    """A relay from before relay processes had names: its whole nonce is random."""

    @property
    def _process(self) -> bytes:
        return os.urandom(wire.PROCESS)

    @_process.setter
    def _process(self, name: bytes) -> None:
        pass


class Balancer:
    """Relays with one key behind one address. `order` says which of them the next connections get, round and round."""

    def __init__(self, *kinds: type[Server]) -> None:
        private = os.urandom(32)
        self.relays = [Relay(private, kind) for kind in kinds]
        self.key = self.relays[0].key
        self.order = list(range(len(kinds)))
        self.connections = 0
        self._open: list[tuple[int, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = Endpoint.of(*self.server.sockets[0].getsockname())

    def config(self, replicas: int | None = None, name: str = "relay.test:3478") -> RelayServer:
        return RelayServer(name, (self.address,), self.key, replicas or len(self.relays))

    def counters(self, name: str) -> list[int]:
        return [getattr(relay.server.counters, name) for relay in self.relays]

    def kill(self, index: int) -> None:
        """End a relay as SIGKILL does: the system resets its connections, and refuses new ones."""
        for at, writer in self._open:
            if at == index:
                writer.transport.abort()
        self.relays[index].stop()

    async def stop(self) -> None:
        self.server.close()
        for _, writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        for relay in self.relays:
            await asyncio.to_thread(relay.stop)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index = self.order[self.connections % len(self.order)]
        self.connections += 1
        try:
            back, forth = await asyncio.open_connection(*self.relays[index].address.sockaddr()[:2])
        except OSError:
            writer.transport.abort()
            return
        self._open += [(index, writer), (index, forth)]
        for pipe in (self._copy(reader, forth), self._copy(back, writer)):
            task = asyncio.get_running_loop().create_task(pipe)
            self._tasks.add(task)

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


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


@pytest.fixture
async def make_balancer() -> AsyncIterator[Callable[..., Awaitable[Balancer]]]:
    made: list[Balancer] = []

    async def make(*kinds: type[Server]) -> Balancer:
        made.append(Balancer(*(kinds or (Server, Server))))
        await made[-1].start()
        return made[-1]

    yield make
    for balancer in made:
        await balancer.stop()
