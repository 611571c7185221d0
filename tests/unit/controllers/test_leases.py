# SPDX-License-Identifier: Apache-2.0
"""The edge of the tracker: which keys are queued, how often, and which Leases go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from wirekube.controllers import leases as module
from wirekube.controllers.leases import Leases
from wirekube.controllers.liveness import Timing
from wirekube.runtime.errors import Unavailable
from wirekube.runtime.store import Event, Store

MESH = ("", "default")


class Mirror:
    """A reflector's store and handlers, fed by the test."""

    def __init__(self) -> None:
        self.store, self.synced, self.following_since = Store(), anyio.Event(), 0.0
        self.synced.set()
        self._handlers: list[Callable[[Event], None]] = []

    def add_handler(self, handler: Callable[[Event], None]) -> None:
        self._handlers.append(handler)

    def emit(self, events: list[Event]) -> None:
        for event in events:
            for handler in self._handlers:
                handler(event)


class World:
    def __init__(self) -> None:
        self.held, self.peers = Mirror(), Mirror()
        self.now, self.serial = 0.0, 0
        self.queued: list[tuple[str, str]] = []
        self.deleted: list[tuple[str, str | None]] = []
        self.refuse = 0
        mirrors: Any = self.held, self.peers
        self.leases = Leases(self, *mirrors, Timing(20, 50), clock=lambda: self.now)
        self.leases.tell(self.queued.append, self.queued.append)

    async def delete(self, _kind: Any, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        assert namespace == "wirekube-node-lease"
        if self.refuse:
            self.refuse -= 1
            raise Unavailable(0, "connection refused")
        self.deleted.append((name, uid))
        self.held.emit(self.held.store.remove((namespace, name)))

    def member(self, *names: str) -> None:
        for name in names:
            self.peers.store.put({"metadata": {"name": name}})

    def renew(self, *names: str) -> None:
        for name in names:
            self.serial += 1
            metadata = {"name": name, "namespace": "wirekube-node-lease", "uid": f"u-{name}"}
            metadata["resourceVersion"] = str(self.serial)
            self.held.emit(self.held.store.put({"metadata": metadata, "spec": {"renewTime": str(self.serial)}}))

    async def until(self, probe: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not probe():  # noqa: ASYNC110 - one poll for all conditions
                await asyncio.sleep(0.002)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "CLEAR_SECONDS", 0.001)
    world = World()
    async with running(world):
        yield world


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.leases.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_many_renewals_queue_nothing_once_every_agent_is_known(world: World) -> None:
    names = [f"n{index}" for index in range(1000)]
    world.member(*names)
    world.renew(*names)
    world.renew(*names)
    await world.until(lambda: len(world.queued) > 1000)
    assert world.queued.count(MESH) <= 2
    world.queued.clear()
    for _ in range(5):
        world.now += 20
        world.renew(*names)
        await asyncio.sleep(0)
    world.renew("n1")
    await world.until(lambda: world.leases.census is not None and world.leases.census.alive == 1000)
    assert world.queued == []


async def test_a_lease_that_is_left_over_is_deleted_even_if_not_at_once(world: World) -> None:
    world.member("a")
    world.renew("a", "b")
    world.refuse = 1
    world.now = 20.0
    world.renew("a")
    world.now = 50.0
    world.renew("c")  # wakes it
    await world.until(lambda: world.deleted == [("b", "u-b")])
    assert world.held.store.get(("wirekube-node-lease", "a")) is not None


async def test_the_clock_of_a_member_whose_lease_was_deleted_goes_on(world: World) -> None:
    world.member("a", "b", "c")
    world.renew("a", "b", "c")
    world.renew("a", "b", "c")
    await world.until(lambda: world.queued.count(("", "c")) == 1)
    world.held.emit(world.held.store.remove(("wirekube-node-lease", "c")))
    for _ in range(3):
        world.now += 20
        world.renew("a", "b")
    await world.until(lambda: world.leases.silent("c", shown=False))
    assert world.queued.count(("", "c")) == 2


async def test_while_the_watch_does_not_follow_nothing_is_said(world: World) -> None:
    world.member("a", "b", "c")
    world.renew("a", "b", "c")
    world.renew("a", "b", "c")
    await world.until(lambda: ("", "c") in world.queued)
    mirror: Any = world.held
    mirror.following_since = None
    world.now = 500.0
    world.member("d")
    world.renew("d")
    await world.until(lambda: world.leases.census is not None and world.leases.census.total == 4)  # it has looked
    assert not world.leases.silent("c", shown=False)
    mirror.following_since = world.now = 520.0
    world.member("e")
    world.renew("e")
    await world.until(lambda: world.leases.census is not None and world.leases.census.total == 5)
    assert not world.leases.silent("c", shown=False)
    assert world.queued.count(("", "c")) == 1
