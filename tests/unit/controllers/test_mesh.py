# SPDX-License-Identifier: Apache-2.0
"""The Mesh's status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wirekube.controllers.liveness import Census
from wirekube.controllers.main import ConfigError, from_environment
from wirekube.controllers.mesh import MeshReconciler, add_indexes
from wirekube.controllers.relay.state import nothing_seen
from wirekube.controllers.relays import LookupFailed, RelayResolver
from wirekube.runtime.conditions import find_condition
from wirekube.runtime.errors import Unavailable
from wirekube.runtime.store import Event, Store

KEY = ("", "default")


class World:
    def __init__(self, written: Any) -> None:
        self.now, self.lookups, self.answer = 0.0, 0, ["192.0.2.7:3478"]
        self.census: Census | None = None
        self.seen = nothing_seen()
        self.nodes, self.meshes, self.peers, self.written = Store(), Store(), Store(), written
        add_indexes(self.nodes, self.peers)
        self.reconciler = MeshReconciler(
            written,
            self.nodes,
            self.meshes,
            self.peers,
            written,
            lambda: self.census,
            relays=RelayResolver(self.look_up, lambda: self.now, lambda: self.seen),
            clock=lambda: self.now,
        )

    def node(self, obj: Any) -> None:
        for event in self.nodes.put(obj):
            self.reconciler.node_to_mesh(event)

    async def look_up(self, _host: str, _port: int) -> list[str]:
        self.lookups += 1
        if not self.answer:
            raise LookupFailed("no such name")
        return self.answer

    def put(self, status: Any = None, **spec: Any) -> None:
        self.meshes.remove(KEY)
        metadata = {"name": "default", "uid": "u", "generation": 1}
        self.meshes.put({"metadata": metadata, "spec": spec, "status": status or {}})

    async def status(self) -> Any:
        """Reconcile; take what was written into the store and return it, or None."""
        self.written.calls.clear()
        self.result = await self.reconciler.reconcile(KEY)
        if not self.written.calls:
            return None
        ((_, body),) = self.written.calls
        self.put(body["status"], **(self.meshes.get(KEY) or {})["spec"])
        return body["status"]


@pytest.fixture
def world(written: Any) -> World:
    return World(written)


def reason(status: Any, type: str) -> str:
    found = find_condition(status["conditions"], type)
    assert found is not None
    return f"{found['status']} {found['reason']}"


RELAY = {"provider": "external", "external": {"endpoint": "relay.example.com:3478"}}


async def test_while_most_agents_are_silent_the_mesh_says_so_once_and_is_not_ready(world: World) -> None:
    world.put()
    assert reason(await world.status(), "AgentsReporting") == "Unknown NoAgents"
    world.census = Census(total=2, silent=0, alive=2)
    assert reason(await world.status(), "AgentsReporting") == "True AgentsReport"
    world.census = Census(total=3, silent=0, alive=3)
    assert await world.status() is None
    world.census = Census(total=3, silent=2, alive=1)
    status = await world.status()
    assert reason(status, "AgentsReporting") == reason(status, "Ready") == "False MostAgentsSilent"
    found = find_condition(status["conditions"], "AgentsReporting")
    assert found is not None
    assert found["message"].startswith("2 of 3 agents")
    for unknown in (None, Census(total=3, silent=0, alive=0)):  # a new operator leaves what is shown
        world.census = unknown
        assert await world.status() is None
    world.census = Census(total=3, silent=1, alive=2)
    status = await world.status()
    assert (reason(status, "AgentsReporting"), reason(status, "Ready")) == ("True AgentsReport", "True Ready")
    world.census = Census()
    assert reason(await world.status(), "AgentsReporting") == "Unknown NoAgents"
    told = [each for _, each in world.written.events if "Agents" in each]
    assert told.count("MostAgentsSilent") == 2, "once for the condition and once for Ready"


async def test_before_the_cluster_can_be_read_all_conditions_are_unknown(world: World) -> None:
    world.put()
    world.written.failure = Unavailable(0, "connection refused")
    with pytest.raises(Unavailable):
        await world.status()
    ((_, body),) = world.written.calls
    conditions = body["status"]["conditions"]
    assert [each["type"] for each in conditions] == ["AddressesReady", "RelayReady", "AgentsReporting", "Ready"]
    assert {(each["status"], each["reason"]) for each in conditions} == {("Unknown", "ClusterNotRead")}
    world.written.failure = None
    assert reason(await world.status(), "Ready") == "True Ready"


async def test_ranges_are_chosen_once_and_avoid_service_ranges(world: World) -> None:
    world.put()
    status = await world.status()
    assert status["meshCIDRs"][0] == "198.19.0.0/16"
    assert status["meshCIDRs"][1].startswith("fd")
    assert (reason(status, "AddressesReady"), reason(status, "Ready")) == ("True RangesChosen", "True Ready")
    assert reason(status, "RelayReady") == "False NotConfigured"
    assert await world.status() is None


async def test_a_wanted_range_that_is_taken_is_refused(world: World) -> None:
    world.put(meshCIDR="198.18.4.0/24")
    status = await world.status()
    assert reason(status, "AddressesReady") == "False RangeRefused"
    assert reason(status, "Ready") == "False RangeRefused"


async def test_a_relay_name_is_resolved_and_kept_for_a_while(world: World) -> None:
    world.put(relay=RELAY)
    status = await world.status()
    assert status["relays"] == [{"name": "relay.example.com:3478", "endpoints": ["192.0.2.7:3478"]}]
    assert world.result.after == 300
    assert await world.status() is None
    assert world.lookups == 1


async def test_the_last_addresses_stay_when_the_name_fails(world: World) -> None:
    world.put(relay=RELAY)
    await world.status()
    world.now, world.answer = 301.0, []
    status = await world.status()
    assert status["relays"][0]["endpoints"] == ["192.0.2.7:3478"]
    assert reason(status, "RelayReady") == "True UsingLastAddresses"


async def test_a_name_that_never_resolved_is_not_ready(world: World) -> None:
    world.answer = []
    world.put(relay=RELAY)
    assert reason(await world.status(), "Ready") == "False NameNotResolved"


async def test_a_literal_needs_no_resolver(world: World) -> None:
    world.put(relay={"provider": "external", "external": {"endpoint": "[2001:db8::1]:3478"}})
    assert (await world.status())["relays"][0]["endpoints"] == ["[2001:db8::1]:3478"]
    assert (world.lookups, world.result.after) == (0, None)


SERVICE = {"metadata": {}, "spec": {"type": "LoadBalancer", "ports": [{"name": "relay", "port": 3478}]}}
READY = [{"endpoints": [{"addresses": ["10.244.0.5"], "nodeName": "a", "conditions": {"ready": True}}]}]
KEY_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def balanced(*hostnames: str) -> Any:
    ingress = [{"hostname": name} for name in hostnames]
    service = SERVICE | {"status": {"loadBalancer": {"ingress": ingress}}}
    return replace(
        nothing_seen(), deployment={}, service=service, config_map={"data": {"publicKey": KEY_TEXT}}, slices=READY
    )


async def test_a_load_balancer_that_has_a_name_is_resolved_and_keeps_its_name(world: World) -> None:
    world.put(relay={"provider": "managed"})
    assert reason(await world.status(), "RelayReady") == "False RelayStarting"
    world.seen = balanced("lb.example.com")
    status = await world.status()
    entry = {"name": "lb.example.com:3478", "endpoints": ["192.0.2.7:3478"], "publicKey": KEY_TEXT, "readyReplicas": 1}
    assert status["relays"] == [entry]
    assert reason(status, "RelayReady") == "True Resolved"
    assert await world.status() is None
    assert (world.lookups, world.result.after) == (1, 300)
    # The last addresses stay when the name cannot be resolved again, and go with the name.
    world.now, world.answer = 301.0, []
    status = await world.status()
    assert (status["relays"], reason(status, "RelayReady")) == ([entry], "True UsingLastAddresses")
    world.seen = replace(world.seen, service=SERVICE)
    status = await world.status()
    assert (status["relays"], reason(status, "Ready")) == ([], "False NoRelayAddress")


async def test_a_load_balancer_whose_name_was_never_resolved(world: World) -> None:
    world.answer, world.seen = [], balanced("lb.example.com")
    world.put(relay={"provider": "managed"})
    status = await world.status()
    assert (status["relays"], reason(status, "RelayReady")) == ([], "False NameNotResolved")


async def test_counts_alone_wait(world: World) -> None:
    world.put()
    await world.status()
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    world.peers.put({"metadata": {"name": "a"}, "status": ready})
    world.now = 2.0
    assert await world.status() is None
    assert world.result.after == 3.0
    world.now = 5.0
    status = await world.status()
    assert (status["peers"], status["readyPeers"]) == (1, 1)


async def test_a_malformed_mesh_keeps_its_ranges(world: World) -> None:
    world.put({"meshCIDRs": ["10.9.0.0/16"]}, mtu="large")
    status = await world.status()
    assert status["meshCIDRs"] == ["10.9.0.0/16"]
    assert reason(status, "Ready") == "False Malformed"


def test_environment() -> None:
    assert from_environment({}).health == ("127.0.0.1", 9585)
    assert from_environment({"WIREKUBE_HEALTH": "[::1]:80"}).health == ("::1", 80)
    assert (from_environment({}).election, from_environment({}).namespace) == (True, "wirekube-system")
    other = from_environment({"WIREKUBE_LEADER_ELECTION": "false", "WIREKUBE_NAMESPACE": "vpn"})
    assert (other.election, other.namespace) == (False, "vpn")
    for wrong in (
        {"WIREKUBE_HEALTH": "9585"},
        {"WIREKUBE_LOG_LEVEL": "loud"},
        {"WIREKUBE_LEADER_ELECTION": "perhaps"},
    ):
        with pytest.raises(ConfigError):
            from_environment(wrong)


async def test_agents_learn_where_no_node_is_and_where_the_api_server_is(world: World) -> None:
    world.node({"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:1::/64"]}})
    world.node({"metadata": {"name": "b"}, "spec": {"podCIDR": "10.244.1.0/24"}})
    world.put()
    status = await world.status()
    assert status["clusterCIDRs"] == ["198.18.0.0/16", "10.244.0.0/23", "fd00:1::/64"]
    assert status["apiServers"] == ["203.0.113.5", "203.0.113.6", "2001:db8::6"]
    reads = world.written.reads
    assert await world.status() is None
    assert world.written.reads == reads
    world.now = 300.0
    assert await world.status() is None
    assert world.written.reads == 2 * reads


async def test_many_nodes_that_join_make_few_writes(world: World) -> None:
    world.put()
    await world.status()
    world.node({"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.9.0/24"]}})
    assert await world.status() is None
    world.now = 5.0
    assert "10.244.9.0/24" in (await world.status())["clusterCIDRs"]


def test_a_node_concerns_the_mesh_by_its_networks_and_its_label_alone(world: World) -> None:
    def node(**rest: Any) -> Any:
        return {"metadata": {"name": "a"}, **rest}

    node_to_mesh = world.reconciler.node_to_mesh
    before, heard = node(spec={"podCIDR": ""}), node(status={"conditions": [{"type": "Ready"}]}, spec={"podCIDR": ""})
    assert node_to_mesh(Event("MODIFIED", KEY, before, heard)) == ()
    assert node_to_mesh(Event("MODIFIED", KEY, before, node(spec={"podCIDR": "10.1.0.0/24"}))) == (KEY,)
    assert node_to_mesh(Event("ADDED", KEY, None, node())) == (KEY,)
    assert node_to_mesh(Event("SYNC", KEY, node(), node())) == ()
    member = node(spec={"podCIDR": ""}) | {"metadata": {"name": "a", "labels": {"wirekube.io/vpn-enabled": "true"}}}
    assert node_to_mesh(Event("MODIFIED", KEY, before, member)) == (KEY,)


async def test_more_nodes_than_addresses_are_named(world: World) -> None:
    world.put(meshCIDR="10.9.0.0/30", meshCIDR6="fd00:9::/64")
    label = {"wirekube.io/vpn-enabled": "true"}
    for name in "abc":
        world.node({"metadata": {"name": name, "labels": label}})
        if name != "c":
            world.peers.put({"metadata": {"name": name, "uid": name}})
    status = await world.status()
    verdict = find_condition(status["conditions"], "AddressesReady")
    assert verdict is not None
    assert (verdict["status"], verdict["reason"]) == ("False", "RangeExhausted")
    assert "3 nodes" in verdict["message"]
    assert "1 have none (c)" in verdict["message"]
    assert reason(status, "Ready") == "False RangeExhausted"
    world.node({"metadata": {"name": "a", "resourceVersion": "2"}})
    assert reason(await world.status(), "AddressesReady") == "True RangesChosen"
