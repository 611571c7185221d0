# SPDX-License-Identifier: Apache-2.0
"""Node to Peer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.controllers import networks
from wirekube.controllers.peers import FULL_RETRY, PeerReconciler, add_index
from wirekube.runtime.store import Store

from .conftest import Written

LABEL = {"wirekube.io/vpn-enabled": "true"}


def node(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"n-{name}", "labels": LABEL, **metadata},
    }


def stored(body: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return body | {"metadata": {"uid": f"p-{body['metadata']['name']}", **body["metadata"], **metadata}}


class World:
    def __init__(self, written: Any) -> None:
        self.nodes, self.meshes, self.peers, self.written = Store(), Store(), Store(), written
        networks.add_indexes(self.nodes, self.peers)
        add_index(self.peers)
        self.meshes.put({"metadata": {"name": "default"}, "status": {"meshCIDRs": ["10.9.0.0/29"]}})
        self.reconciler = PeerReconciler(written, self.nodes, self.meshes, self.peers, written)

    async def reconcile(self, name: str) -> list[Any]:
        self.written.calls.clear()
        await self.reconciler.reconcile(("", name))
        return list(self.written.calls)


@pytest.fixture
def world(written: Any) -> World:
    return World(written)


async def test_a_labelled_node_gets_a_peer_once(world: World) -> None:
    world.nodes.put(node("a", annotations={"wirekube.io/endpoint": "203.0.113.5:51820"}))
    ((verb, body),) = await world.reconcile("a")
    assert verb == "apply"
    assert body["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n-a"}]
    assert body["spec"]["endpoint"] == "203.0.113.5:51820"
    assert "uid" not in body["metadata"]
    world.peers.put(stored(body))
    assert await world.reconcile("a") == []


async def test_addresses_differ_before_the_store_shows_our_writes(world: World) -> None:
    given = set()
    for name in "abcdef":
        world.nodes.put(node(name))
        ((_, body),) = await world.reconcile(name)
        given.add(body["spec"]["addresses"][0])
    assert len(given) == 6


async def test_of_two_peers_with_one_address_the_older_keeps_it(world: World) -> None:
    for name, minute in (("a", 1), ("b", 2)):
        world.nodes.put(node(name))
        body = {"metadata": {"name": name}, "spec": {"addresses": ["10.9.0.3/32"]}}
        world.peers.put(stored(body, creationTimestamp=f"2026-01-01T00:0{minute}:00Z"))
    ((_, older),) = await world.reconcile("a")  # sent for the owner reference
    ((_, younger),) = await world.reconcile("b")
    assert older["spec"]["addresses"] == ["10.9.0.3/32"]
    assert younger["spec"]["addresses"] != ["10.9.0.3/32"]
    assert younger["metadata"]["uid"] == "p-b"


async def test_a_malformed_annotation_is_an_event_and_no_endpoint(world: World) -> None:
    world.nodes.put(node("a", annotations={"wirekube.io/endpoint": "nonsense"}))
    for _ in range(2):
        ((_, body),) = await world.reconcile("a")
        assert "endpoint" not in body["spec"]
    assert world.written.events == [("a", "InvalidEndpoint")]


async def test_a_peer_goes_with_its_label_and_only_that_very_peer(world: World) -> None:
    world.nodes.put(node("a"))
    ((_, body),) = await world.reconcile("a")
    world.peers.put(stored(body))
    world.nodes.put(node("a", labels={}, resourceVersion="2"))
    assert await world.reconcile("a") == [("delete", ("a", "p-a"))]


async def test_another_clusters_addresses_and_owner_give_way(world: World) -> None:
    world.nodes.put(node("a"))
    ((_, body),) = await world.reconcile("a")
    given = body["spec"]["addresses"]
    foreign = {"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n-elsewhere"}
    other = next(f"10.9.0.{place}/32" for place in range(1, 7) if f"10.9.0.{place}/32" not in given)
    world.peers.put(stored({"metadata": {"name": "a", "ownerReferences": [foreign]}, "spec": {"addresses": [other]}}))
    ((_, again),) = await world.reconcile("a")
    assert again["spec"]["addresses"] == given
    # Server-side apply leaves what another manager owns; the garbage collector takes that away.
    both = again["metadata"] | {"ownerReferences": [foreign, *again["metadata"]["ownerReferences"]]}
    world.peers.put(stored(again | {"metadata": both}))
    assert await world.reconcile("a") == []


async def test_a_peer_of_a_node_that_is_not_here_goes_with_an_event(world: World) -> None:
    foreign = {"apiVersion": "v1", "kind": "Node", "name": "b", "uid": "n-elsewhere"}
    world.peers.put(stored({"metadata": {"name": "b", "ownerReferences": [foreign]}, "spec": {}}))
    assert await world.reconcile("b") == [("delete", ("b", "p-b"))]
    assert world.written.events == [("b", "NoNode")]


async def test_a_peer_that_a_person_made_stays(world: World) -> None:
    world.peers.put(stored({"metadata": {"name": "mine"}, "spec": {}}))
    assert await world.reconcile("mine") == []


async def test_without_ranges_nothing_is_written(world: World) -> None:
    world.meshes.put({"metadata": {"name": "default", "resourceVersion": "2"}})
    world.nodes.put(node("a"))
    assert await world.reconcile("a") == []


async def test_in_a_full_range_a_node_waits_for_room_and_says_so(world: World) -> None:
    for name in "abcdef":
        world.nodes.put(node(name))
        ((_, body),) = await world.reconcile(name)
        world.peers.put(stored(body))
    world.nodes.put(node("g"))
    world.written.calls.clear()
    assert (await world.reconciler.reconcile(("", "g"))).after == FULL_RETRY
    assert world.written.calls == []
    assert world.written.events == [("g", "NoMeshAddress")]
    world.nodes.put(node("a", labels={}, resourceVersion="2"))
    assert await world.reconcile("a") == [("delete", ("a", "p-a"))]
    world.peers.remove(("", "a"))
    ((verb, _),) = await world.reconcile("g")
    assert verb == "apply"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.booleans()), max_size=40))
async def test_no_two_nodes_ever_have_one_address(steps: list[tuple[str, bool, bool]]) -> None:
    """Nodes come and go; the store shows some of our writes late; an operator that starts anew knows the store alone."""
    world = World(Written())
    held: dict[str, Any] = {}  # what the API server has
    for version, (name, joins, late) in enumerate(steps):
        world.nodes.put(node(name, labels=LABEL if joins else {}, resourceVersion=str(version)))
        for verb, what in await world.reconcile(name):
            if verb == "delete":
                held.pop(name)
                world.peers.remove(("", name))
            else:
                held[name] = stored(what, creationTimestamp=f"2026-01-01T00:{version:02}:00Z")
        if not late:
            for each in held.values():
                world.peers.put(each | {"metadata": each["metadata"] | {"resourceVersion": str(version)}})
        addresses = [text for each in held.values() for text in each["spec"]["addresses"]]
        assert len(addresses) == len(set(addresses))
