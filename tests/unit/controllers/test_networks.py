# SPDX-License-Identifier: Apache-2.0
"""spec.routing of the Mesh: what gets into Peers, what the operator says about it, whom a change concerns."""

from __future__ import annotations

from typing import Any

import pytest

from wirekube.controllers import networks
from wirekube.controllers.keys import PeerStatusReconciler, add_indexes, mesh_to_peers, peer_to_peers
from wirekube.controllers.liveness import Timing, Tracker
from wirekube.controllers.networks import internal_addresses, node_to_nodes, pod_cidrs
from wirekube.controllers.peers import PeerReconciler, add_index, mesh_to_nodes
from wirekube.runtime.conditions import find_condition
from wirekube.runtime.store import Event, Store

MESH_KEY = ("", "default")
BOTH = {"nodeAddresses": "internal", "podCIDRs": True}


def node(name: str, *addresses: str, member: bool = True, pods: tuple[str, ...] = (), **metadata: Any) -> Any:
    labels = {"wirekube.io/vpn-enabled": "true"} if member else {}
    listed = [{"type": "InternalIP", "address": each} for each in addresses]
    return {
        "metadata": {"name": name, "uid": f"n-{name}", "labels": labels, **metadata},
        "spec": {"podCIDRs": list(pods)} if pods else {},
        "status": {"addresses": [{"type": "Hostname", "address": name}, *listed]},
    }


NOTHING_ASKED = {field: ("True", "NotRequested", f"the Peer has no {field}") for field in ("nodeAddresses", "podCIDRs")}


class World:
    """Both reconcilers over the same stores; what they write is there at once."""

    def __init__(self, written: Any) -> None:
        self.nodes, self.meshes, self.peers, self.written = Store(), Store(), Store(), written
        add_indexes(self.peers)
        networks.add_indexes(self.nodes, self.peers)
        add_index(self.peers)
        stores = self.nodes, self.meshes, self.peers
        self.peer, self.status = (
            PeerReconciler(written, *stores, written),
            PeerStatusReconciler(written, *stores, written, Tracker(Timing())),
        )

    def mesh(self, routing: Any = None, **status: Any) -> Any:
        self.meshes.remove(MESH_KEY)
        spec = {"routing": routing} if routing is not None else {}
        (event,) = self.meshes.put(
            {"metadata": {"name": "default"}, "spec": spec, "status": {"meshCIDRs": ["10.99.0.0/24"], **status}}
        )
        return event.new

    async def settle(self) -> None:
        for reconciler in (self.peer, self.status):
            for key in self.nodes.items():
                self.written.calls.clear()
                await reconciler.reconcile(key)
                for verb, body in self.written.calls:
                    self._write(key, verb, body)

    def _write(self, key: Any, verb: str, body: Any) -> None:
        old = self.peers.get(key) or {"metadata": {"uid": f"p-{key[1]}", "creationTimestamp": "2026-01-01T00:00:00Z"}}
        if verb == "apply":  # ours is the only field manager
            self.peers.put(old | {"spec": body["spec"], "metadata": old["metadata"] | body["metadata"]})
        else:
            self.peers.put(old | {"status": old.get("status", {}) | body["status"]})

    def spec(self, name: str) -> Any:
        return (self.peers.get(("", name)) or {})["spec"]

    def condition(self, name: str, kind: str) -> tuple[str, str, str] | None:
        found = find_condition((self.peers.get(("", name)) or {})["status"]["conditions"], kind)
        return (found["status"], found["reason"], found["message"]) if found else None


@pytest.fixture
def world(written: Any) -> World:
    return World(written)


def test_private_internal_addresses_of_a_node() -> None:
    addresses = (
        "192.168.1.5",
        "100.64.7.7",
        "203.0.113.5",
        "fd77::5",
        "2001:db8::5",
        "192.168.1.5",
        "host",
        "172.32.0.1",
    )
    found = node("a", *addresses)
    found["status"]["addresses"].append({"type": "ExternalIP", "address": "10.1.1.1"})
    assert internal_addresses(found) == ("192.168.1.5/32", "100.64.7.7/32", "fd77::5/128")
    assert internal_addresses({"metadata": {"name": "a"}}) == ()
    assert len(internal_addresses(node("a", *(f"10.0.0.{last}" for last in range(99))))) == 16


def test_pod_ranges_of_a_node() -> None:
    assert pod_cidrs(node("a", pods=("10.244.1.0/24", "fd01::/64"))) == ("10.244.1.0/24", "fd01::/64")
    assert pod_cidrs({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.1.0/24"}}) == ("10.244.1.0/24",)
    assert pod_cidrs(node("a")) == ()


async def test_what_the_mesh_asks_for_comes_and_goes(world: World) -> None:
    world.mesh()
    world.nodes.put(node("a", "192.168.1.5", pods=("10.244.1.0/24",)))
    await world.settle()
    assert world.spec("a").keys() == {"addresses"}
    assert world.condition("a", "NodeAddressesAccepted") == NOTHING_ASKED["nodeAddresses"]
    world.mesh(BOTH)
    await world.settle()
    assert world.spec("a")["nodeAddresses"] == ["192.168.1.5/32"]
    assert world.spec("a")["podCIDRs"] == ["10.244.1.0/24"]
    for kind in ("NodeAddressesAccepted", "PodCIDRsAccepted"):
        assert (world.condition("a", kind) or ())[:2] == ("True", "Accepted")
    world.mesh({"podCIDRs": False})
    await world.settle()
    assert world.spec("a").keys() == {"addresses"}
    assert world.condition("a", "NodeAddressesAccepted") == NOTHING_ASKED["nodeAddresses"]
    assert world.condition("a", "PodCIDRsAccepted") == NOTHING_ASKED["podCIDRs"]


async def test_why_an_address_is_left_out_is_said(world: World) -> None:
    world.mesh(BOTH | {"excludeCIDRs": ["10.7.0.0/16"]}, apiServers=["10.1.0.5"])
    world.nodes.put(node("api", "10.1.0.5", "fd77::5"))
    world.nodes.put(node("twin-a", "10.1.0.6", "10.1.0.16", pods=("10.244.1.0/24",)))
    world.nodes.put(node("twin-b", "10.1.0.6", pods=("10.244.0.0/16",)))
    world.nodes.put(node("out", "10.7.0.7"))
    await world.settle()
    await world.settle()
    why = "stays outside of the mesh: an API server is reached at this node"
    message = f"left out: 10.1.0.5/32 {why}; fd77::5/128 {why}"
    assert world.condition("api", "NodeAddressesAccepted") == ("False", "APIServerAddress", message)
    message = "left out: 10.1.0.6/32 is an address of the Node twin-b, too"
    assert world.condition("twin-a", "NodeAddressesAccepted") == ("False", "NodeAddressTaken", message)
    assert (world.condition("out", "NodeAddressesAccepted") or ())[:2] == ("False", "NodeAddressExcluded")
    assert (world.condition("twin-a", "PodCIDRsAccepted") or ())[:2] == ("True", "Accepted")
    status, reason, words = world.condition("twin-b", "PodCIDRsAccepted") or ("", "", "")
    assert (status, reason) == ("False", "PodCIDROverlaps")
    assert "a pod range of the Node twin-a" in words


async def test_an_address_that_a_node_outside_has_too_does_not_get_into_the_peer(world: World) -> None:
    world.mesh(BOTH)
    world.nodes.put(node("a", "10.1.0.6", "10.1.0.7"))
    ((event,), same) = world.nodes.put(node("other", "10.1.0.6", member=False)), node_to_nodes(world.nodes)
    assert same(event) == {("", "a"), ("", "other")}
    await world.settle()
    assert world.spec("a")["nodeAddresses"] == ["10.1.0.7/32"]
    message = "left out: 10.1.0.6/32 is an address of the Node other, too"
    assert world.condition("a", "NodeAddressesAccepted") == ("False", "NodeAddressTaken", message)
    (gone,) = world.nodes.remove(("", "other"))
    assert ("", "a") in same(gone)
    await world.settle()
    assert world.spec("a")["nodeAddresses"] == ["10.1.0.6/32", "10.1.0.7/32"]


def test_whom_other_routing_concerns(world: World) -> None:
    world.nodes.put(node("a"))
    world.peers.put({"metadata": {"name": "a"}, "spec": {"addresses": ["10.99.0.1/32"]}})
    event = Event("MODIFIED", MESH_KEY, world.mesh(), world.mesh(BOTH))
    assert mesh_to_nodes(world.nodes)(event) == [("", "a")]
    assert mesh_to_peers(world.peers)(event) == [("", "a")]
    excluded = {**BOTH, "excludeCIDRs": ["10.0.0.0/8"]}
    assert mesh_to_peers(world.peers)(Event("MODIFIED", MESH_KEY, world.mesh(BOTH), world.mesh(excluded))) == [
        ("", "a")
    ]


def test_whom_another_peer_concerns(world: World) -> None:
    for name, spec in (("a", {"nodeAddresses": ["10.1.0.6/32"]}), ("b", {"podCIDRs": ["10.244.1.0/24"]}), ("c", {})):
        world.peers.put({"metadata": {"name": name}, "spec": spec})
    old = world.peers.get(("", "c")) or {}
    moved = old | {"status": {"candidates": [{"endpoint": "10.1.0.6:51820", "type": "host"}]}}
    concerned = peer_to_peers(world.peers)
    assert concerned(Event("MODIFIED", ("", "c"), old, moved)) == {("", "c")}
    claiming = old | {"spec": {"nodeAddresses": ["10.1.0.6/32"]}}
    assert concerned(Event("MODIFIED", ("", "c"), old, claiming)) == {("", "a"), ("", "b"), ("", "c")}
