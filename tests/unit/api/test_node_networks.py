# SPDX-License-Identifier: Apache-2.0
"""Which of a Node's own addresses and pod ranges go through the mesh, and what the Mesh excludes."""

from __future__ import annotations

import base64
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, ip_network
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.api.effective import Effective, EffectivePeers
from wirekube.api.intervals import Intervals

Object = dict[str, Any]
STATUS = {"meshCIDRs": ["198.18.0.0/16"], "clusterCIDRs": ["10.96.0.0/16", "10.244.0.0/16"]}


def mesh(*excluded: str, **status: Any) -> Object:
    spec = {"routing": {"excludeCIDRs": list(excluded)}}
    return {"metadata": {"name": "default"}, "spec": spec, "status": STATUS | status}


def peer(number: int, nodes: tuple[str, ...] = (), pods: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> Object:
    """The Peer of n1, n2, ..., older ones first."""
    key = base64.b64encode(bytes([number]) * 32).decode()
    accepted = {"type": "KeyAccepted", "status": "True", "reason": "Accepted", "message": key}
    return {
        "metadata": {"name": f"n{number}", "creationTimestamp": f"2026-01-01T00:{number:02}:00Z"},
        "spec": {
            "addresses": [f"198.18.0.{number}/32"],
            "nodeAddresses": list(nodes),
            "podCIDRs": list(pods),
            "allowedIPs": list(allowed),
        },
        "status": {
            "publicKey": key,
            "conditions": [accepted | {"lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }


def decide(mesh: Object, *peers: Object, servers: tuple[Any, ...] = ()) -> Effective:
    return EffectivePeers().decide(mesh, peers, servers)


def preferred(result: Effective) -> dict[str, set[str]]:
    return {each.name: set(map(str, each.preferred)) for each in result.peers}


def reasons(result: Effective) -> list[tuple[str, str]]:
    return [(problem.peer, problem.reason) for problem in result.problems]


def test_a_nodes_addresses_and_pod_ranges_are_reached_through_it() -> None:
    own = ("192.168.1.5/32", "fd77::5/128"), ("10.244.1.0/24", "fd01:1::/64")
    result = decide(mesh(), peer(1, *own), peer(2))
    assert result.problems == ()
    assert preferred(result) == {"n1": {*own[0], *own[1]}, "n2": set()}
    assert result.peers[0].networks == {ip_network(text) for text in (*own[0], *own[1], "198.18.0.1/32")}


def test_home_networks_look_alike_but_one_address_of_two_nodes_is_nobodys() -> None:
    result = decide(mesh(), peer(1, ("192.168.1.5/32",)), peer(2, ("192.168.1.6/32",)), peer(3, ("192.168.1.6/32",)))
    assert preferred(result) == {"n1": {"192.168.1.5/32"}, "n2": set(), "n3": set()}
    assert reasons(result) == [("n2", "NodeAddressTaken"), ("n3", "NodeAddressTaken")]
    assert result.problems[0].message == "192.168.1.6/32 is an address of the Node n3, too"


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("198.18.3.4/32", "NodeAddressOverlaps", "the mesh's own range"),
        ("10.96.0.1/32", "NodeAddressOverlaps", "a pod or Service range"),
        ("10.244.1.7/32", "NodeAddressOverlaps", "a pod range of the Node n1"),
        ("10.244.9.7/32", "NodeAddressOverlaps", "a pod or Service range"),
        ("10.9.0.7/32", "NodeAddressExcluded", "10.9.0.0/16, which the Mesh's routing.excludeCIDRs names"),
        ("10.7.0.0/24", "NodeAddressMalformed", "is not IPV4/32 or IPV6/128"),
    ],
)
def test_an_address_that_is_something_else_is_left_out_alone(text: str, reason: str, words: str) -> None:
    other = peer(1, pods=("10.244.1.0/24",))
    result = decide(mesh("10.9.0.0/16"), other, peer(2, (text, "192.168.1.5/32")))
    assert preferred(result)["n2"] == {"192.168.1.5/32"}
    ((name, found),) = reasons(result)
    assert (name, found) == ("n2", reason)
    assert words in result.problems[0].message


def test_where_an_api_server_or_a_relay_is_reached_all_addresses_stay_outside() -> None:
    nodes = "192.168.1.5/32", "fd77::5/128"
    status = {"apiServers": ["192.168.1.5"], "relays": [{"name": "r:1", "endpoints": ["192.168.2.5:3478", "[::1:]:1"]}]}
    result = decide(mesh(**status), peer(1, nodes), peer(2, ("192.168.2.5/32",)), peer(3, ("192.168.3.5/32",)))
    assert preferred(result) == {"n1": set(), "n2": set(), "n3": {"192.168.3.5/32"}}
    assert reasons(result) == [("n1", "APIServerAddress")] * 2 + [("n2", "RelayAddress")]
    # An agent knows one more that it is connected to.
    own = decide(mesh(**status), peer(3, ("192.168.3.5/32",)), servers=(IPv4Address("192.168.3.5"),))
    assert reasons(own) == [("n3", "APIServerAddress")]


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("10.244.0.0/16", "PodCIDROverlaps", "10.244.1.0/24, a pod range of the Node n1"),
        ("198.18.128.0/17", "PodCIDROverlaps", "the mesh's own range"),
        ("203.0.113.0/24", "PodCIDROverlaps", "an address of the API server"),
        ("10.9.8.0/24", "PodCIDRExcluded", "10.9.0.0/16, which"),
        ("10.0.0.1/8", "PodCIDRMalformed", "is no network"),
        ("0.0.0.0/0", "PodCIDRMalformed", "a default route"),
    ],
)
def test_a_pod_range_of_others_is_left_out(text: str, reason: str, words: str) -> None:
    young = peer(2, pods=(text, "10.244.2.0/24"))
    result = decide(mesh("10.9.0.1/16", apiServers=["203.0.113.5"]), young, peer(1, pods=("10.244.1.0/24",)))
    assert preferred(result) == {"n1": {"10.244.1.0/24"}, "n2": {"10.244.2.0/24"}}
    assert reasons(result) == [("n2", reason)]
    assert words in result.problems[0].message


def test_an_api_server_inside_a_pod_range_keeps_it_outside() -> None:
    """The Service of the API server is no address of it; what stands behind the Service is."""
    result = decide(mesh(apiServers=["10.244.1.9"]), peer(1, pods=("10.244.1.0/24",)))
    assert reasons(result) == [("n1", "PodCIDROverlaps")]


def test_an_allowed_ip_takes_nothing_of_another_node() -> None:
    site = peer(1, ("192.168.1.5/32",), ("10.244.1.0/24",), ("192.168.1.0/24", "10.244.1.0/24"))
    greedy = peer(2, ("192.168.2.5/32",), ("10.244.2.0/24",), ("192.168.1.5/32", "10.244.0.0/16", "10.9.1.0/24"))
    result = decide(mesh("10.9.0.0/16"), site, greedy)
    assert ip_network("192.168.1.0/24") in result.peers[0].networks
    assert {network for network in result.peers[1].networks if network.prefixlen < 32} == {ip_network("10.244.2.0/24")}
    assert reasons(result) == [("n2", "AllowedIPOverlaps")] * 2 + [("n2", "AllowedIPExcluded")]


def test_excluded_networks_may_overlap_each_other() -> None:
    result = decide(mesh("10.9.1.0/24", "10.9.0.0/16", "10.0.0.0/30"), peer(1, allowed=("10.9.7.0/24", "10.8.0.0/16")))
    assert reasons(result) == [("n1", "AllowedIPExcluded")]


# Few addresses, so that everything meets.
hosts = st.integers(0, 15).map(lambda last: f"10.0.0.{last}/32")
ranges = st.tuples(st.integers(0, 15), st.integers(28, 31)).map(
    lambda pair: str(IPv4Network((int(IPv4Address("10.0.0.0")) + pair[0], pair[1]), strict=False))
)
lists = st.lists(ranges, max_size=2).map(tuple)
members = st.lists(st.tuples(st.lists(hosts, max_size=3).map(tuple), lists, lists), min_size=1, max_size=5)


@given(members, lists, st.integers(0, 15), st.randoms())
def test_what_is_routed_is_one_nodes_alone_and_nothing_that_must_stay_outside(
    wanted: list[tuple[tuple[str, ...], ...]], excluded: tuple[str, ...], server: int, random: Any
) -> None:
    peers = [peer(number + 1, *networks) for number, networks in enumerate(wanted)]
    settings = mesh(*excluded, apiServers=[f"10.0.0.{server}"], clusterCIDRs=[])
    result = decide(settings, *peers)
    for one, other in combinations(result.peers, 2):
        assert not any(a.overlaps(b) for a in one.networks for b in other.preferred)
        assert not any(a.overlaps(b) for a in one.preferred for b in other.networks)
    claims = Counter(text for nodes, _, _ in wanted for text in set(nodes))
    for each in result.peers:
        routed = each.networks - {ip_network(f"198.18.0.{each.name[1:]}/32")}
        assert not any(ip_network(text).overlaps(network) for text in excluded for network in routed)
        assert not any(IPv4Address(f"10.0.0.{server}") in network for network in routed)
        assert all(claims[str(network)] <= 1 for network in each.preferred if network.prefixlen == 32)
    shuffled = list(peers)
    random.shuffle(shuffled)
    assert decide(settings, *shuffled).peers == result.peers


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=20), st.integers(0, 255))
def test_all_that_overlaps_is_found(pairs: list[tuple[int, int]], last: int) -> None:
    intervals, members = Intervals(), []
    for place, length in pairs:
        network = ip_network(f"10.0.0.{place}/{length}", strict=False)
        if intervals.overlapping(network) is None:
            intervals.add(network, "")
            members.append(network)
    asked = ip_network(f"10.0.0.{last}/28", strict=False)
    found = {network for network, _ in intervals.all_overlapping(asked)}
    assert found == {member for member in members if member.overlaps(asked)}
