# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from itertools import combinations
from pathlib import Path

import pytest

from wirekube.lab import parts
from wirekube.lab.expect import DIRECT, RELAYED, FaultResult, PairResult, allowed_paths
from wirekube.lab.plan import Box, NetworkPlan, plan_network
from wirekube.lab.rules import fault_rules, node_rules, router_rules
from wirekube.lab.topology import API_ADDRESS, INTERNET, RELAY_PORT, Nat, available, load, parse

ALL_KINDS = parse(
    {
        "nodes": [
            {"name": "open"},
            *({"name": kind.value, "nat": kind.value} for kind in Nat if kind is not Nat.NONE),
            {"name": "neighbour", "behind": "symmetric"},
        ]
    },
    "test",
)


def box(plan: NetworkPlan, name: str) -> Box:
    return next(each for each in plan.boxes if each.name == name)


def test_several_relay_processes_stand_behind_one_address_with_one_key(tmp_path: Path) -> None:
    topology = load("replicas")
    assert topology.relay is not None
    replicas = topology.relay.replicas
    commands = [parts.relay(tmp_path, None, index, replicas) for index in range(replicas)]
    listen = [words[words.index("--listen") + 1] for words in commands]
    assert len(set(listen)) == replicas == len({parts.relay_name(index) for index in range(replicas)})
    assert len({words[words.index("--key") + 1] for words in commands}) == 1
    assert ["--stun" in words for words in commands] == [True, *[False] * (replicas - 1)]
    rules = box(plan_network(topology), "relay").rules
    assert f"tcp dport {RELAY_PORT} redirect" in rules
    assert all(address.rpartition(":")[2] in rules for address in listen)
    assert box(plan_network(load("default")), "relay").rules == ""
    alone = parts.relay(tmp_path, None)
    assert alone[alone.index("--listen") + 1] == alone[alone.index("--stun") + 1]


@pytest.mark.parametrize("name", available())
def test_every_cable_ends_in_two_boxes_and_every_interface_has_one_cable(name: str) -> None:
    plan = plan_network(load(name))
    boxes = {each.name for each in plan.boxes}
    assert len(boxes) == len(plan.boxes)
    ends = [end for cable in plan.cables for end in (cable.first, cable.second)]
    assert len(set(ends)) == len(ends)
    assert {end[0] for end in ends} == boxes
    assert all(len(interface) <= 15 for _, interface in ends)


def test_no_address_is_given_twice_and_lans_differ() -> None:
    plan = plan_network(ALL_KINDS)
    given = [
        IPv4Interface(command.split()[2])
        for each in plan.boxes
        for command in each.commands
        if "address add" in command
    ]
    assert len({each.ip for each in given}) == len(given)
    assert plan.places["symmetric"].public == plan.places["neighbour"].public
    assert plan.places["symmetric"].address != plan.places["neighbour"].address
    assert plan.places["open"].router is None
    assert plan.places["open"].public == plan.places["open"].address == INTERNET[10]


def test_nothing_leads_out_of_the_machine() -> None:
    plan = plan_network(load("default"))
    gateways = {
        command.split()[-1]
        for each in plan.boxes
        for command in each.commands
        if command.startswith("route add default")
    }
    inside = {str(API_ADDRESS)} | {
        command.split()[2].split("/")[0] for each in plan.boxes for command in each.commands if "dev lan" in command
    }
    assert gateways <= inside
    assert "net/ipv4/ip_forward" not in box(plan, "api").sysctls


def test_options_become_rules_and_sysctls() -> None:
    plan = plan_network(load("default"))
    assert "masquerade fully-random" in box(plan, "cloud").rules
    assert "policy drop" in box(plan, "home-a").rules
    assert box(plan, "home-b").sysctls["net/ipv4/conf/all/rp_filter"] == "1"
    assert box(plan, "home-b").rules == ""
    assert box(plan, "nat-home-a").sysctls["net/ipv4/ip_forward"] == "1"


def test_the_firewall_follows_the_mesh() -> None:
    node = load("default").node("home-a")
    rules = node_rules(node, "wg7", 4444)
    assert "{ lo, wg7 }" in rules
    assert "udp dport 4444 accept" in rules


def test_rules_of_routers() -> None:
    address = IPv4Address("203.0.113.20")
    assert "fully-random" in router_rules(Nat.SYMMETRIC, address)
    assert "fully-random" not in router_rules(Nat.EIM_APDF, address)
    assert f"snat to {address}" in router_rules(Nat.EIM_EIF, address)
    assert "meta l4proto udp drop" in router_rules(Nat.UDP_BLOCKED, address)
    with pytest.raises(ValueError, match="no router"):
        router_rules(Nat.NONE, address)


def test_a_fault_hits_one_remote_and_healing_leaves_no_rule() -> None:
    rules = fault_rules([IPv4Address("203.0.113.11")])
    assert rules.count("drop") == 6
    assert "203.0.113.11" in rules
    assert "drop" not in fault_rules([])


def test_credentials_and_resolvers_of_a_node_that_starts_without_the_mesh() -> None:
    topology = load("bootstrap")
    node = topology.node("home-a")
    assert parts.agent_server(node) == "https://10.96.0.1:443"
    environment = dict(parts.agent_environment(node, *map(parts.Path, ("/k", "/s")), None))
    assert environment["WIREKUBE_APISERVER"] == "https://203.0.113.5:6443"
    resolvers = parts.resolvers(topology, "home-a")
    assert resolvers.own_file().startswith("nameserver 10.96.0.10\nsearch ")
    assert resolvers.host_file() == "nameserver 203.0.113.9\n"
    assert parts.resolvers(topology, "api").own_file() == "nameserver 203.0.113.9\n"
    assert "nameserver" not in parts.resolvers(load("pair"), "home-a").own_file()


def test_a_node_object_has_label_annotation_and_address() -> None:
    topology = parse({"nodes": [{"name": "a", "endpoint": "203.0.113.10:51820"}]}, "test")
    made = parts.node_object(topology.node("a"), plan_network(topology).places["a"])
    assert made["metadata"]["labels"]["wirekube.io/vpn-enabled"] == "true"
    assert made["metadata"]["annotations"] == {"wirekube.io/endpoint": "203.0.113.10:51820"}
    assert {"type": "InternalIP", "address": "203.0.113.10"} in made["status"]["addresses"]


def test_paths_that_nats_allow() -> None:
    allowed = {
        (a, b): "".join(sorted(state[0] for state in allowed_paths(ALL_KINDS, a, b)))
        for a, b in combinations([node.name for node in ALL_KINDS.nodes], 2)
    }
    assert allowed == {
        ("open", "eim-apdf"): "D",
        ("open", "eim-eif"): "D",
        ("open", "symmetric"): "D",
        ("open", "udp-blocked"): "R",
        ("open", "neighbour"): "D",
        ("eim-apdf", "eim-eif"): "D",
        ("eim-apdf", "symmetric"): "DR",
        ("eim-apdf", "udp-blocked"): "R",
        ("eim-apdf", "neighbour"): "DR",
        ("eim-eif", "symmetric"): "D",
        ("eim-eif", "udp-blocked"): "R",
        ("eim-eif", "neighbour"): "D",
        ("symmetric", "udp-blocked"): "R",
        ("symmetric", "neighbour"): "D",
        ("udp-blocked", "neighbour"): "R",
    }


def pair(**changes: object) -> PairResult:
    known = {
        "first": "a", "second": "b", "states": (DIRECT, DIRECT), "allowed": frozenset((DIRECT,)), "rtt": 0.001,
        "first_ping": 1.0, "first_ping6": 1.2, "final_path": 2.0,
    }  # fmt: skip
    return PairResult(**{**known, **changes})  # type: ignore[arg-type]


def test_a_good_pair_has_no_fault() -> None:
    assert pair().settled()
    assert pair().faults() == []
    assert pair().row() == ["a <-> b", "direct", "direct", "1.0 ms", "1.00 s", "1.20 s", "2.00 s"]


def test_each_fault_of_a_pair_is_said() -> None:
    assert pair(states=(DIRECT, RELAYED)).faults() == ["a <-> b is Direct / Relayed, should be Direct"]
    assert pair(states=(RELAYED, RELAYED)).faults() == ["a <-> b is Relayed / Relayed, should be Direct"]
    assert pair(first_ping=None).faults() == ["a <-> b has not answered a ping by IPv4 in both directions"]
    assert pair(first_ping6=None).faults() == ["a <-> b has not answered a ping by IPv6 in both directions"]
    late = pair(first_ping=3.5)
    assert late.settled()
    assert late.faults() == ["a <-> b answered its first ping after 3.5 s, not 3 s"]


def test_each_fault_of_a_broken_path_is_said() -> None:
    assert FaultResult(1.0, 2.0, 1.5, 3, 100, []).faults(2.0) == []
    bad = FaultResult(None, None, 2.5, 3, 100, ["on a: x"]).faults(2.0)
    assert len(bad) == 4
    assert bad[2:] == ["its ping stopped for 2.50 s, longer than 2.0 s", "a WireGuard endpoint moved: on a: x"]
