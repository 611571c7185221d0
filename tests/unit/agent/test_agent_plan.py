# SPDX-License-Identifier: Apache-2.0
"""From objects to facts, and from facts to the desired state of the host."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent import plan
from wirekube.agent.facts import MeshFacts, PeerFacts, PeerFactsReader, Problem, keepalive_of, parse_mesh
from wirekube.agent.paths.model import Mode, NatFacts, Policy
from wirekube.agent.plan import FIRST_PORT, Legs, allocate_ports, device_config, held_ports, steering_plan
from wirekube.agent.steering.plan import PeerSteering
from wirekube.agent.wireguard.device import PeerStats, public_key_of
from wirekube.wire.endpoint import Endpoint

MESH: dict[str, Any] = {"metadata": {"name": "default"}, "status": {"meshCIDRs": ["198.18.0.0/16"]}}
KEYS = [bytes([number]) * 32 for number in range(4)]
SOURCE = IPv4Address("192.168.7.5")
DIRECT, OTHER, PROXY = map(Endpoint.parse, ("203.0.113.2:51820", "203.0.113.9:1", "10.0.0.1:40000"))


def peer(number: int, *candidates: str, **status: Any) -> dict[str, Any]:
    """A Peer whose key nobody has judged yet."""
    listed = [{"endpoint": each, "type": "serverReflexive"} for each in candidates]
    key = base64.b64encode(KEYS[number]).decode()
    return {
        "metadata": {"name": f"n{number}"},
        "spec": {"addresses": [f"198.18.0.{number}/32"]},
        "status": {"publicKey": key, "candidates": listed} | status,
    }


def facts(*objects: dict[str, Any]) -> dict[str, PeerFacts]:
    found, _ = PeerFactsReader("n0").read(MESH, objects)
    return {each.name: each for each in found}


def mesh() -> MeshFacts:
    parsed = parse_mesh(MESH)
    assert isinstance(parsed, MeshFacts)
    return parsed


def test_our_own_peer_is_no_other() -> None:
    assert facts(peer(0), peer(1)).keys() == {"n1"}


@pytest.mark.parametrize("bad", ["[:::::::]:80", "[1:2:3]:80", "[::1:]:80"])
def test_an_address_that_only_looks_like_one_harms_nobody(bad: str) -> None:
    """The CRD's pattern cannot tell; a node that was taken over may write what it likes."""
    found = facts(peer(1, bad, "203.0.113.1:51820", nat={"udp": "Open"}), peer(2, "203.0.113.2:51820"))
    assert found["n2"].candidates == (DIRECT,)
    assert found["n1"].candidates == (Endpoint.parse("203.0.113.1:51820"),)
    assert found["n1"].nat.addresses == {"203.0.113.1"}
    broken = MESH | {"status": {"relays": [{"name": "r:1", "endpoints": [bad, "203.0.113.9:1"]}]}}
    parsed = parse_mesh(broken)
    assert not isinstance(parsed, Problem)
    assert parsed.relays[0].endpoints == (OTHER,)


@pytest.mark.parametrize(("ready", "replicas"), [(None, 1), (0, 1), (1, 1), (3, 3), (16, 16), (4000, 16)])
def test_a_relay_has_as_many_processes_as_are_ready_within_reason(ready: int | None, replicas: int) -> None:
    entry = {"name": "r:1", "endpoints": ["203.0.113.9:1"]} | ({} if ready is None else {"readyReplicas": ready})
    parsed = parse_mesh(MESH | {"status": {"relays": [entry]}})
    assert not isinstance(parsed, Problem)
    assert parsed.relays[0].replicas == replicas


NAMES = st.sampled_from(["metadata", "name", "spec", "status", "candidates", "endpoint", "type", "nat", "publicKey"])
SCALARS = st.one_of(st.none(), st.integers(), st.text(max_size=8))
GARBAGE = st.dictionaries(NAMES, SCALARS | st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=2), max_size=4))


@settings(max_examples=50)
@given(GARBAGE)
def test_any_object_is_read_or_left_out(garbage: dict[str, Any]) -> None:
    assert "n1" in facts(garbage, peer(1))


@pytest.mark.parametrize(
    ("nat", "expected"),
    [
        (None, NatFacts()),
        ({"udp": "Blocked"}, NatFacts(udp_blocked=True, addresses=frozenset({"203.0.113.2"}))),
        ({"mapping": "AddressDependent"}, NatFacts(symmetric=True, addresses=frozenset({"203.0.113.2"}))),
        ({"mapping": "AddressAndPortDependent"}, NatFacts(symmetric=True, addresses=frozenset({"203.0.113.2"}))),
        (
            {"filtering": "AddressAndPortDependent"},
            NatFacts(port_restricted=True, addresses=frozenset({"203.0.113.2"})),
        ),
        ({"summary": "None"}, NatFacts(public=True, addresses=frozenset({"203.0.113.2"}))),
    ],
)
def test_what_a_peer_says_of_its_nat(nat: dict[str, str] | None, expected: NatFacts) -> None:
    assert facts(peer(1, "203.0.113.2:51820", nat=nat))["n1"].nat == expected


def test_never_means_no_relay() -> None:
    relays = {"relays": [{"name": "r:1", "endpoints": ["203.0.113.9:1"]}]}
    with_mode = MESH | {"status": relays, "spec": {"relay": {"mode": "never"}}}
    parsed = parse_mesh(with_mode)
    assert not isinstance(parsed, Problem)
    assert parsed.relays == ()
    assert parsed.policy == Policy(Mode.NEVER, 30.0, 120.0)


def test_a_malformed_mesh_is_a_problem_that_says_where() -> None:
    found = parse_mesh({"metadata": {"name": "default"}, "spec": {"mtu": "big"}})
    assert isinstance(found, Problem)
    assert "spec.mtu" in found.message


@given(
    st.frozensets(st.sampled_from(KEYS)),
    st.dictionaries(st.sampled_from(KEYS), st.integers(1, FIRST_PORT + 2)),
)
def test_each_key_has_a_port_of_its_own_and_keeps_it(keys: frozenset[bytes], held: dict[bytes, int]) -> None:
    ports = allocate_ports(keys, held)
    assert ports.keys() == keys
    assert len(set(ports.values())) == len(keys)
    kept = [key for key in keys if key in held and list(held.values()).count(held[key]) == 1]
    assert all(ports[key] == held[key] for key in kept)
    assert allocate_ports(keys, ports) == ports


def test_ports_run_out_with_a_clear_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LAST_PORT", FIRST_PORT + 1)
    with pytest.raises(OverflowError, match="more than 2 peers"):
        allocate_ports(KEYS[:3], {})


def test_only_virtual_endpoints_hold_ports() -> None:
    seen = {KEYS[0]: Endpoint.parse("192.0.2.1:1024"), KEYS[1]: DIRECT, KEYS[2]: None}
    assert held_ports(seen) == {KEYS[0]: 1024}


@pytest.mark.parametrize(
    ("observed", "accept", "sets"),
    [
        (None, frozenset(), True),
        (Endpoint.parse("192.0.2.1:1024"), frozenset(), True),
        (OTHER, frozenset(), False),
        (OTHER, frozenset({OTHER}), True),
    ],
)
def test_an_endpoint_that_wireguard_moved_stays_until_it_is_confirmed(
    observed: Endpoint | None, accept: frozenset[Endpoint], sets: bool
) -> None:
    peers, ports = facts(peer(1)), {KEYS[1]: 1024}
    stats = {KEYS[1]: PeerStats(observed, 0, 0, 0)}
    config = device_config(bytes(32), mesh(), peers.values(), ports, {"n1": Legs(None, accept)}, stats)
    assert config.peers[KEYS[1]].endpoint == (Endpoint.parse("192.0.2.1:1024") if sets else None)


@pytest.mark.parametrize(("direct", "shaken", "first", "second"), [
    (False, False, 0, 0),
    (False, True, 0, 0),
    (True, False, 25, 0),
    (True, True, 25, 25),
])  # fmt: skip
def test_only_a_direct_path_has_a_mapping_to_keep_and_one_side_opens_it(
    direct: bool, shaken: bool, first: int, second: int
) -> None:
    """Two sides that start a handshake at once lose both, and five seconds."""
    legs = Legs(DIRECT, frozenset({DIRECT})) if direct else Legs()
    node = facts(peer(1))["n1"]
    assert keepalive_of(node) == 25
    assert plan.keepalive(KEYS[0], node, legs, shaken=shaken) == first
    assert plan.keepalive(KEYS[2], node, legs, shaken=shaken) == second


def test_a_handshake_is_seen_in_the_counters() -> None:
    private = next(key for number in range(1, 99) if public_key_of(key := bytes([number]) * 32) > KEYS[1])
    peers, ports, legs = facts(peer(1)), {KEYS[1]: 1024}, {"n1": Legs(DIRECT, frozenset({DIRECT}))}
    for last, wanted in ((0, 0), (1.5, 25)):
        stats = {KEYS[1]: PeerStats(None, last, 0, 0)}
        config = device_config(private, mesh(), peers.values(), ports, legs, stats)
        assert config.peers[KEYS[1]].keepalive == wanted


@pytest.mark.parametrize(
    ("legs", "proxies", "send_to", "send_from", "accept"),
    [
        (Legs(), {}, None, None, frozenset()),
        (Legs(), {KEYS[1]: PROXY}, PROXY, PROXY.ip, {PROXY}),
        (Legs(DIRECT, frozenset({DIRECT})), {KEYS[1]: PROXY}, DIRECT, SOURCE, {PROXY, DIRECT}),
        (Legs(DIRECT, frozenset({DIRECT, OTHER})), {}, DIRECT, SOURCE, {DIRECT, OTHER}),
        (Legs(OTHER, frozenset({OTHER})), {KEYS[1]: PROXY}, OTHER, None, {PROXY, OTHER}),
    ],
)
def test_both_legs_are_heard_whichever_is_sent_by(
    legs: Legs,
    proxies: dict[bytes, Endpoint],
    send_to: Endpoint | None,
    send_from: IPv4Address | None,
    accept: frozenset[Endpoint],
) -> None:
    """Each leg has its own source: the proxy's is its own address, the direct one's that of the route."""
    sources = {DIRECT.ip: SOURCE}
    table = steering_plan(mesh(), facts(peer(1)).values(), {KEYS[1]: 1024}, {"n1": legs}, proxies, sources, 40001)
    assert (table.listen_port, table.probe_port) == (51820, 40001)
    assert table.peers == {1024: PeerSteering(1024, send_to, send_from, frozenset(accept))}


def test_of_relays_only_a_managed_one_with_plain_addresses_is_kept_from_kube_proxy() -> None:
    named = [("wirekube-relay", "203.0.113.80:3478"), ("relay.example.com:3478", "203.0.113.81:3478")]
    relays = [{"name": name, "endpoints": [endpoint]} for name, endpoint in named]
    parsed = parse_mesh({**MESH, "status": {**MESH["status"], "relays": relays}})
    assert isinstance(parsed, MeshFacts)
    assert steering_plan(parsed, (), {}, {}, {}, {}, 40001).relays == {Endpoint.parse("203.0.113.80:3478")}


def test_a_peer_brings_its_networks() -> None:
    (found,) = facts(peer(1) | {"spec": {"addresses": ["198.18.0.1/32"], "allowedIPs": ["10.7.0.0/16"]}}).values()
    assert found.networks == {ip_network("198.18.0.1/32"), ip_network("10.7.0.0/16")}
