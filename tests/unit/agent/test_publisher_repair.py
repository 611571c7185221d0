# SPDX-License-Identifier: Apache-2.0
"""A node's status that somebody else changes is written again; one that the watch has not shown yet is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from wirekube.agent.keys import NodeKey
from wirekube.agent.peersource import Snapshot
from wirekube.agent.publisher import Publisher
from wirekube.agent.report import NodeView

KEY = NodeKey(b"\1" * 32, b"\2" * 32, None)


class World:
    """Our Peer at the API server, as the watch shows it."""

    def __init__(self) -> None:
        self.own: dict[str, Any] = {"metadata": {"name": "me", "uid": "1", "generation": 1}}
        self.writes: list[dict[str, Any]] = []
        view = NodeView("me", "Running", key=KEY)
        self.publisher = Publisher(self, lambda: view)  # type: ignore[arg-type]

    async def publish(self, status: dict[str, Any]) -> bool:
        self.writes.append(copy.deepcopy(status))
        return True

    def show_last_write(self, **others: Any) -> None:
        """The watch shows what we wrote, and what others wrote beside it."""
        status = copy.deepcopy(self.writes[-1])
        status["conditions"] += others.pop("conditions", [])
        self.own = self.own | {"status": status | others}

    async def look(self) -> int:
        """Return how many writes there are after the publisher looked twice."""
        for _ in range(2):
            await self.publisher._publish(Snapshot(None, self.own, (self.own,), live=True, left=False))
        return len(self.writes)


@pytest.fixture
async def world() -> World:
    made = World()
    assert await made.look() == 1
    return made


async def test_what_the_watch_does_not_show_yet_is_not_written_again(world: World) -> None:
    assert await world.look() == 1
    world.show_last_write()
    assert await world.look() == 1


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"conditions": "none"},
        "text",
        None,
        {"publicKey": "another", "conditions": []},
    ],
)
async def test_a_status_that_somebody_else_changed_is_written_again_once(world: World, damage: Any) -> None:
    world.show_last_write()
    await world.look()
    world.own = world.own | {"status": damage}
    assert await world.look() == 2
    first, second = ({**write, "conditions": len(write["conditions"])} for write in world.writes)
    assert first == second
    assert await world.look() == 2, "nobody knows yet whether it worked"


async def test_somebody_who_changes_it_all_the_time_is_not_raced(world: World) -> None:
    for _ in range(5):
        world.show_last_write()
        await world.look()
        world.own = world.own | {"status": {}}
        await world.look()
    assert len(world.writes) == 2
    wait = await world.publisher._publish(Snapshot(None, world.own, (world.own,), live=True, left=False))
    assert wait is not None
    assert 10 < wait <= 15


async def test_what_others_write_beside_it_is_theirs(world: World) -> None:
    world.show_last_write()
    await world.look()
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": ""}
    world.show_last_write(conditions=[ready], other=7)
    assert await world.look() == 1
