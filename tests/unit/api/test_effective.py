# SPDX-License-Identifier: Apache-2.0
"""Who is in the mesh, with which networks."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.api.effective import Effective, EffectivePeers
from wirekube.api.intervals import Intervals

Object = dict[str, Any]
MESH: Object = {"metadata": {"name": "default"}, "status": {"meshCIDRs": ["198.18.0.0/16", "fd00:1:2::/48"]}}


def effective_peers(*arguments: Any) -> Effective:
    return EffectivePeers().decide(*arguments)


def effective_peers_unjudged(*arguments: Any) -> Effective:
    return EffectivePeers(unjudged=True).decide(*arguments)


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


def condition(status: str, message: str) -> Object:
    stamp = "2026-01-01T00:00:00Z"
    return {
        "type": "KeyAccepted",
        "status": status,
        "reason": "Accepted",
        "message": message,
        "lastTransitionTime": stamp,
    }


def peer(
    name: str, number: int, *, minute: int = 0, allowed: tuple[str, ...] = (), accepted: str | None = ""
) -> Object:
    """A Peer; `accepted` is the key that KeyAccepted names (empty: its own, None: no such condition)."""
    conditions = [] if accepted is None else [condition("True", accepted or key(number))]
    return {
        "metadata": {"name": name, "creationTimestamp": f"2026-01-01T00:{minute:02}:00Z"},
        "spec": {"addresses": [f"198.18.0.{number}/32"], "allowedIPs": list(allowed)},
        "status": {"publicKey": key(number), "conditions": conditions},
    }


def reasons(result: Any) -> list[tuple[str, str]]:
    return [(problem.peer, problem.reason) for problem in result.problems]


def names(result: Any) -> list[str]:
    return [member.name for member in result.peers]


def test_a_peer_has_its_addresses_and_its_networks() -> None:
    result = effective_peers(MESH, [peer("a", 1, allowed=("10.5.0.0/24",))])
    (member,) = result.peers
    assert result.problems == ()
    assert member.public_key == bytes([1]) * 32
    assert member.addresses == (IPv4Address("198.18.0.1"),)
    assert member.networks == {ip_network("198.18.0.1/32"), ip_network("10.5.0.0/24")}


def test_a_key_belongs_to_the_accepted_peer_even_if_it_is_younger() -> None:
    thief = peer("a-old", 1, minute=0, accepted=None)
    owner = peer("b-young", 1, minute=9)
    owner["spec"]["addresses"] = ["198.18.0.9/32"]
    for decide in (effective_peers, effective_peers_unjudged):
        result = decide(MESH, [thief, owner])
        assert names(result) == ["b-young"]
        assert reasons(result) == [("a-old", "DuplicateKey")]


def test_the_condition_must_name_exactly_this_key() -> None:
    changed = peer("a", 1, accepted=key(2))
    for decide in (effective_peers, effective_peers_unjudged):
        assert reasons(decide(MESH, [changed])) == [("a", "KeyNotAccepted")]


def test_a_refused_key_is_left_out() -> None:
    refused = peer("a", 1)
    refused["status"]["conditions"] = [condition("False", key(1))]
    assert names(effective_peers_unjudged(MESH, [refused])) == []


def test_before_any_judgement_the_oldest_wins() -> None:
    young, old = peer("a", 1, minute=5, accepted=None), peer("b", 1, minute=1, accepted=None)
    young["spec"]["addresses"] = []
    assert names(effective_peers(MESH, [young, old])) == []
    result = effective_peers_unjudged(MESH, [young, old])
    assert names(result) == ["b"]
    assert reasons(result) == [("a", "DuplicateKey")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("198.18.200.0/24", "AllowedIPOverlaps"),  # the mesh
        ("198.0.0.0/8", "AllowedIPOverlaps"),  # around the mesh
        ("10.5.0.128/25", "AllowedIPOverlaps"),  # what an older Peer has
        ("203.0.113.2/32", "AllowedIPOverlaps"),  # an address of a Peer outside the range
        ("0.0.0.0/0", "AllowedIPMalformed"),
        ("10.0.0.1/8", "AllowedIPMalformed"),
        ("rubbish", "AllowedIPMalformed"),
    ],
)
def test_a_network_of_others_is_left_out_and_the_peer_stays(text: str, reason: str) -> None:
    old = peer("old", 1, allowed=("10.5.0.0/24",))
    other = peer("other", 2, minute=1)
    other["spec"]["addresses"] = ["203.0.113.2/32"]
    young = peer("young", 3, minute=2, allowed=(text, "10.6.0.0/24"))
    result = effective_peers(MESH, [young, other, old])
    assert names(result) == ["old", "other", "young"]
    assert result.peers[2].networks == {ip_network("198.18.0.3/32"), ip_network("10.6.0.0/24")}
    assert reasons(result) == [("young", reason)]


def standing(name: str, number: int, *addresses: str, allowed: tuple[str, ...] = (), endpoint: str = "") -> Object:
    """A Peer whose node is reached at these addresses."""
    found = peer(name, number, minute=number, allowed=allowed)
    found["status"]["candidates"] = [{"endpoint": f"{each}:51820", "type": "host"} for each in addresses]
    if endpoint:
        found["spec"]["endpoint"] = endpoint
    return found


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (standing("c", 2, "203.0.113.12"), "203.0.113.12, an address of the node c"),
        (standing("c", 2, "192.168.1.9", "203.0.113.12"), "203.0.113.12, an address of the node c"),
        (standing("c", 2, endpoint="203.0.113.12:51820"), "203.0.113.12, an address of the node c"),
        (standing("c", 2, "203.0.113.77"), "203.0.113.77, an address of the node c"),  # both behind one NAT
    ],
)
@pytest.mark.parametrize("decide", [effective_peers, effective_peers_unjudged])
def test_no_network_covers_where_another_node_is(decide: Any, other: Object, why: str) -> None:
    """Packets between nodes go there without the mesh; the older Peer, too, gives way."""
    announcing = standing("b", 1, "203.0.113.77", "203.0.113.11", allowed=("203.0.113.0/24", "10.6.0.0/24"))
    result = decide(MESH, [announcing, other])
    assert result.peers[0].networks == {ip_network("198.18.0.1/32"), ip_network("10.6.0.0/24")}
    (problem,) = result.problems
    assert (problem.reason, problem.message) == ("AllowedIPOverlaps", f"203.0.113.0/24 overlaps {why}")


def test_a_node_may_announce_the_network_that_it_stands_in() -> None:
    site = standing("b", 1, "192.168.1.2", endpoint="nas.example.com:51820", allowed=("192.168.1.0/24", "fd77::/64"))
    site["status"]["candidates"].append({"endpoint": "[fd77::2]:51820", "type": "ipv6"})
    strange = standing("c", 2, "192.168.2.2", endpoint="[::1:]:51820")  # the CRD's pattern lets this through
    assert effective_peers(MESH, [site, strange]).problems == ()


@pytest.mark.parametrize("text", ["[fd77::3]:51820", "[fd77:0:0:0:ffff::]:51820"])
def test_ipv6_addresses_count_alike(text: str) -> None:
    site, other = standing("b", 1, allowed=("fd77::/64",)), standing("c", 2)
    other["status"]["candidates"] = [{"endpoint": text, "type": "ipv6"}]
    assert reasons(effective_peers(MESH, [site, other])) == [("b", "AllowedIPOverlaps")]


def test_no_network_covers_an_api_server() -> None:
    mesh = {**MESH, "status": {**MESH["status"], "apiServers": ["203.0.113.5", "2001:db8::5"]}}
    announcing = peer("b", 1, allowed=("203.0.113.0/29", "2001:db8::/32", "10.6.0.0/24"))
    result = effective_peers(mesh, [announcing])
    assert reasons(result) == [("b", "AllowedIPOverlaps")] * 2
    assert "203.0.113.5/32, an address of the API server" in result.problems[0].message
    assert result.peers[0].networks == {ip_network("198.18.0.1/32"), ip_network("10.6.0.0/24")}


def test_an_agent_adds_the_api_server_that_it_uses() -> None:
    servers = (IPv4Address("198.51.100.1"), IPv4Address("127.0.0.1"))
    result = effective_peers_unjudged(MESH, [peer("b", 1, allowed=("198.51.100.0/24", "10.6.0.0/24"))], servers)
    assert reasons(result) == [("b", "AllowedIPOverlaps")]


def test_the_service_network_may_go_through_the_mesh() -> None:
    """So may pod ranges: what stands in there is a bridge of the CNI, or the Service of the API server."""
    mesh = {**MESH, "status": {**MESH["status"], "clusterCIDRs": ["10.96.0.0/16", "10.244.0.0/16", "10.96.0.1/32"]}}
    announcing = standing("cloud", 1, "10.96.0.10", allowed=("10.96.0.0/16", "10.244.3.0/24"))
    other = standing("c", 2, "10.244.3.1", "10.96.0.10", "198.18.0.2")
    service = (IPv4Address("10.96.0.1"),)
    assert effective_peers(mesh, [announcing, other], service).problems == ()
    assert reasons(effective_peers(MESH, [announcing, other], service)) == [("cloud", "AllowedIPOverlaps")] * 2


def test_an_address_has_one_owner() -> None:
    old, young = peer("old", 1), peer("young", 2, minute=1)
    young["spec"]["addresses"] = ["198.18.0.1/32", "198.18.0.0/24"]
    result = effective_peers(MESH, [young, old])
    assert [len(member.networks) for member in result.peers] == [1, 0]
    assert reasons(result) == [("young", "AddressTaken"), ("young", "AddressMalformed")]


def test_a_key_that_came_after_the_operator_looked_is_not_judged_yet() -> None:
    early = peer("a", 1)
    early["status"]["conditions"] = [condition("Unknown", "the node's agent has not published a key yet")]
    assert names(effective_peers_unjudged(MESH, [early])) == ["a"]
    assert names(effective_peers(MESH, [early])) == []


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(["metadata", "name", "spec", "status", "addresses", "publicKey", "conditions"]), c
            )
        ),
        max_leaves=9,
    )
)
def test_a_malformed_object_harms_itself_alone(rubbish: Any) -> None:
    broken = {"metadata": {"name": "broken"}, "spec": rubbish, "status": {"conditions": [rubbish]}}
    result = effective_peers(MESH, [broken, peer("a", 1)])
    assert names(result) == ["a"]
    assert reasons(result) == [("broken", "Malformed")]


def test_a_malformed_object_is_named_with_the_place() -> None:
    broken = peer("broken", 1)
    broken["status"]["publicKey"] = "short"
    (problem,) = effective_peers(None, [broken]).problems
    assert problem.message.startswith("status.publicKey: ")


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=30))
def test_intervals_find_what_overlaps(pairs: list[tuple[int, int]]) -> None:
    intervals = Intervals()
    members = []
    for last, length in pairs:
        network = ip_network(f"10.0.0.{last}/{length}", strict=False)
        clash = any(member.overlaps(network) for member in members)
        assert (intervals.overlapping(network) is not None) == clash
        if not clash:
            intervals.add(network, "")
            members.append(network)


def test_with_a_memory_the_rule_is_the_same_and_what_stayed_is_not_read_again() -> None:
    rule = EffectivePeers()
    objects = [peer("a", 1), peer("b", 2, minute=1), {"metadata": {"name": "broken"}, "spec": 7}]
    first = rule.decide(MESH, objects)
    assert rule.decide(MESH, list(objects)) is first
    objects[1] = {**objects[1], "spec": {**objects[1]["spec"], "allowedIPs": ["10.6.0.0/24"]}}
    second = rule.decide(MESH, objects)
    assert second == effective_peers(MESH, objects) != first
    assert second.peers[0].reading is first.peers[0].reading
    assert names(rule.decide(MESH, objects[1:])) == ["b"]
    mesh = {**MESH, "status": {**MESH["status"], "apiServers": ["10.6.0.5"]}}
    assert rule.decide(mesh, objects) == effective_peers(mesh, objects) != second
    assert reasons(rule.decide(MESH, objects, [IPv4Address("10.6.0.5")])) == [
        ("broken", "Malformed"),
        ("b", "AllowedIPOverlaps"),
    ]


def test_another_status_of_the_same_version_is_another_object() -> None:
    """A Peer that was made anew is acted on with the old one's status until it has one."""
    rule, anew = EffectivePeers(), peer("a", 1)
    bare = {**anew, "status": {}}
    assert [names(rule.decide(MESH, [each])) for each in (bare, anew, bare)] == [[], ["a"], []]
