# SPDX-License-Identifier: Apache-2.0
"""Where the relays are, by which keys, and how it stands with them."""

from __future__ import annotations

from typing import Any

from wirekube.agent.facts import RelayFacts
from wirekube.agent.relayclient import RelayDown, RelayLost, RelayServer, RelayUp
from wirekube.agent.relays import Relays
from wirekube.agent.report import RelayView
from wirekube.wire.endpoint import Endpoint

ONE, OTHER = Endpoint.parse("203.0.113.1:3478"), Endpoint.parse("203.0.113.2:3478")
KEY = b"k" * 32


class World:
    def __init__(self, **keys: bytes) -> None:
        self.up: list[str] = []
        self.told: list[str] = []
        self.keys = keys
        resolver: Any = self
        self.relays = Relays(
            resolver,
            self.keys,
            up=lambda: self.up,
            pinned=lambda: self.told.append("pinned"),
            changed=lambda: self.told.append("changed"),
        )

    async def resolve(self, _name: str) -> tuple[Endpoint, ...]:
        return (OTHER,)

    def hear(self, event: Any) -> list[str]:
        self.told.clear()
        self.relays.event(event)
        return self.told


def server(name: str) -> RelayServer:
    return RelayServer(name, (ONE,), None, 1)


async def test_the_operators_addresses_come_first_and_a_relay_without_a_name_is_not_asked_for() -> None:
    world = World(**{"r:1": KEY})
    world.relays.named = (RelayFacts("r:1", (ONE,), None, 2), RelayFacts("wirekube-relay", (ONE,), b"m" * 32))
    assert await world.relays.servers() == [
        RelayServer("r:1", (ONE, OTHER), KEY, 2),
        RelayServer("wirekube-relay", (ONE,), b"m" * 32, 1),
    ]


def test_the_first_key_that_a_relay_shows_is_kept_and_said_to_be_taken_at_first_sight() -> None:
    world = World()
    world.relays.named = (RelayFacts("r:1", (ONE,), None),)
    world.up = ["r:1"]
    assert world.hear(RelayUp(server("r:1"), 0.1, KEY)) == ["pinned", "changed"]
    assert world.keys == {"r:1": KEY}
    assert world.relays.view == RelayView("r:1", "", trusted_at_first_sight=True)
    assert world.hear(RelayUp(server("r:1"), 0.1, KEY)) == []
    world.relays.named = (RelayFacts("r:1", (ONE,), KEY),)
    world.hear(RelayUp(server("r:1"), 0.1, KEY))
    assert world.relays.view == RelayView("r:1", "", trusted_at_first_sight=False)


def test_another_relay_is_shown_when_the_first_is_lost_and_the_reason_when_all_are() -> None:
    world = World(a=KEY, b=KEY)
    world.up = ["a", "b"]
    world.hear(RelayUp(server("a"), 0.1, KEY))
    world.up = ["b"]
    assert world.hear(RelayLost(server("a"), "no answer for 3 s")) == ["changed"]
    assert world.relays.view.name == "b"
    world.up = []
    assert world.hear(RelayDown(server("b"), "refused")) == ["changed"]
    assert world.relays.view == RelayView(None, "refused")
    assert world.hear(RelayDown(server("b"), "refused")) == []
