# SPDX-License-Identifier: Apache-2.0
"""Peers to slices, against the stores as the watches fill them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from wirekube.controllers.slices import ALL, SliceReconciler
from wirekube.runtime.reflector import Event
from wirekube.runtime.store import Store

LABEL = {"wirekube.io/vpn-enabled": "true"}


def peer(name: str, version: int = 1, **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"p-{name}", "resourceVersion": str(version), "generation": 1}
    return {"metadata": metadata, "spec": {"addresses": ["10.0.0.1/32"]}, "status": status}


def node(name: str, version: int = 1, *, member: bool = True) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), "labels": LABEL if member else {}}}


class World:
    """The API server's slices, with watches that follow at once unless they are held."""

    def __init__(self) -> None:
        self.nodes, self.peers, self.slices = Store(), Store(), Store()
        self.now, self.version, self.writes = 100.0, 10, 0
        self.members = 0
        self.held: list[Event] | None = None
        self.queue: set[tuple[str, str]] = {ALL}
        self.operator()

    def operator(self) -> None:
        """Start an operator that knows nothing but what the stores show."""
        self.reconciler = SliceReconciler(
            self, self.nodes, self.peers, self.slices, lambda: self.members, lambda: self.now
        )
        self.queue = {ALL}

    async def apply(self, _kind: Any, obj: Any, *, field_manager: str, force: bool = True) -> Any:
        self.version, self.writes = self.version + 1, self.writes + 1
        metadata = {"name": obj["metadata"]["name"], "uid": "s", "resourceVersion": str(self.version)}
        stored = copy.deepcopy(obj) | {"metadata": metadata}
        self.seen(self.slices.put(stored))
        return copy.deepcopy(stored)

    async def delete(self, _kind: Any, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        self.writes += 1
        self.seen(self.slices.remove(("", name)))

    def seen(self, events: list[Event]) -> None:
        for event in events:
            self.queue |= set(self.reconciler.slice_to_slices(event))

    def show(self, *peers: dict[str, Any]) -> None:
        for each in peers:
            for event in self.peers.put(each):
                self.queue |= set(self.reconciler.peer_to_slices(event))

    def vanish(self, name: str) -> None:
        for event in self.peers.remove(("", name)):
            self.queue |= set(self.reconciler.peer_to_slices(event))

    def node(self, obj: dict[str, Any]) -> None:
        for event in self.nodes.put(obj):
            self.queue |= set(self.reconciler.node_to_slices(event))

    async def settle(self) -> int:
        """Work until nothing is queued; return the number of writes."""
        before = self.writes
        while self.queue:
            key = self.queue.pop()
            result = await self.reconciler.reconcile(key)
            if result.after is not None:
                self.now += result.after
                self.queue.add(key)
        return self.writes - before

    def listed(self) -> dict[str, Any]:
        return {entry["name"]: entry for found in self.slices.items().values() for entry in found["peers"]}


@pytest.fixture
async def world() -> World:
    made = World()
    made.show(*(peer(f"n{number}") for number in range(40)))
    assert await made.settle() == 16  # of two or three each
    return made


async def test_one_change_is_one_write_whatever_the_number_of_peers(world: World) -> None:
    world.show(peer("n7", 2, candidates=[{"endpoint": "203.0.113.7:1", "type": "host"}]))
    assert await world.settle() == 1
    assert world.listed()["n7"]["status"]["candidates"] == [{"endpoint": "203.0.113.7:1", "type": "host"}]
    assert len(world.listed()) == 40


async def test_what_matters_to_nobody_is_not_written(world: World) -> None:
    world.show(peer("n7", 2, relay="r:1", peers={"direct": 4}))
    assert world.queue == set()
    world.node(node("n7", 2))
    assert world.queue == set()


async def test_a_restarted_operator_writes_nothing(world: World) -> None:
    world.operator()
    assert await world.settle() == 0


async def test_a_slice_that_somebody_changes_or_deletes_is_repaired(world: World) -> None:
    wanted = world.listed()
    damaged = world.slices.get(("", "peers-1"))
    assert damaged is not None
    world.version += 1
    world.seen(world.slices.put(damaged | {"peers": [], "metadata": damaged["metadata"] | {"resourceVersion": "99"}}))
    world.version = 99
    assert await world.settle() == 1
    world.seen(world.slices.remove(("", "peers-2")))
    assert await world.settle() == 1
    assert world.listed() == wanted


async def test_a_slice_of_somebody_elses_is_removed(world: World) -> None:
    foreign = {
        "metadata": {"name": "theirs", "uid": "x", "resourceVersion": "98"},
        "peers": [{"name": "n7"}, {"name": "y"}],
    }
    world.seen(world.slices.put(foreign))
    assert await world.settle() == 1
    assert ("", "theirs") not in world.slices.items()


async def test_a_peer_that_vanishes_stays_listed_while_its_node_is_in_the_mesh(world: World) -> None:
    world.node(node("n7"))
    world.vanish("n7")
    assert await world.settle() == 0
    world.node(node("n7", 2, member=False))
    assert await world.settle() == 1
    assert "n7" not in world.listed()


async def test_a_peer_without_a_node_goes_with_its_object(world: World) -> None:
    world.vanish("n7")
    assert await world.settle() == 1
    assert "n7" not in world.listed()


async def test_a_malformed_peer_is_left_out_and_the_others_stay(world: World) -> None:
    world.show(peer("n7", 2) | {"spec": {"addresses": "none"}})
    assert await world.settle() == 1
    assert len(world.listed()) == 39
    world.show(peer("n7", 3))
    await world.settle()
    assert len(world.listed()) == 40


async def test_a_failed_write_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise OSError("broken pipe")

    world.show(peer("n7", 2, publicKey="A" * 43 + "="))
    (key,) = world.queue
    with monkeypatch.context() as patch:
        patch.setattr(world, "apply", broken)
        world.now += 1
        with pytest.raises(OSError, match="broken"):
            await world.reconciler.reconcile(key)
    assert await world.settle() == 1
    assert world.listed()["n7"]["status"]["publicKey"] == "A" * 43 + "="


async def test_when_many_nodes_join_few_writes_carry_their_peers() -> None:
    world, writes = World(), 0
    world.members = 1000
    await world.settle()
    for number in range(1000):
        world.show(peer(f"n{number}"))
        world.now += 0.01
        ready = {key for key in world.queue if key != ALL}
        world.queue -= ready
        for key in ready:
            before = world.writes
            result = await world.reconciler.reconcile(key)
            writes += world.writes - before
            if result.after is not None:
                world.queue.add(key)
    writes += await world.settle()
    assert len(world.listed()) == 1000
    assert len(world.slices) == 16
    assert writes <= 3 * 16
