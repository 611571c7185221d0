# SPDX-License-Identifier: Apache-2.0
"""What a host cannot give away to the mesh, and which of its addresses stay outside of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from wirekube.agent.facts import OwnFacts, PeerFacts
from wirekube.agent.paths.model import NatFacts
from wirekube.agent.plan import Legs, covered_endpoints
from wirekube.agent.report import NODE_NETWORKS_ROUTED, NodeView, conditions
from wirekube.agent.surroundings import Surroundings, fitting, outside
from wirekube.wire.endpoint import Endpoint

RANGES = (ip_network("198.18.0.0/16"), ip_network("10.96.0.0/16"))
OWN = OwnFacts("a", "u", ("198.18.0.1/32",), None, frozenset({ip_network("198.18.0.1/32"), ip_network("10.1.0.1/32")}))


def peer(name: str, *preferred: str, candidates: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> PeerFacts:
    mesh, own = ip_network(f"198.18.0.{ord(name)}/32"), frozenset(map(ip_network, preferred))
    return PeerFacts(
        name,
        name.encode() * 32,
        (str(mesh),),
        own | {mesh, *map(ip_network, allowed)},
        None,
        tuple(map(Endpoint.parse, candidates)),
        (),
        NatFacts(),
        preferred=own,
    )


def around(own: str = "192.168.1.2", hops: tuple[tuple[str, str], ...] = (), resolvers: str = "") -> Surroundings:
    return Surroundings(
        frozenset(map(ip_address, own.split())),
        tuple((ip_network(destination), ip_address(hop)) for destination, hop in hops),
        frozenset(map(ip_address, resolvers.split())),
    )


@pytest.mark.parametrize(
    ("what", "left_out"),
    [
        (around(), []),  # that it stands in the network that we are attached to is no reason
        (around("192.168.1.5"), ["192.168.1.5/32 of b is an address of this host"]),
        (around("10.244.2.1"), ["10.244.2.0/24 of b contains 10.244.2.1, an address of this host"]),
        (around(hops=(("0.0.0.0/0", "192.168.1.5"),)), ["192.168.1.5/32 of b is this host's gateway"]),
        (around(hops=(("10.0.0.0/8", "192.168.1.5"),)), ["192.168.1.5/32 of b is this host's gateway"]),
        (around(hops=(("10.244.2.0/24", "192.168.1.5"),)), []),  # a plain CNI's route to the pods of b
        (around(hops=(("10.244.2.64/26", "192.168.1.5"), ("10.96.0.0/16", "192.168.1.5"))), []),
        (around(resolvers="192.168.1.5 10.96.0.10"), ["192.168.1.5/32 of b is this host's resolver"]),
        (around(hops=(("::/0", "fd77::5"),)), ["fd77::5/128 of b is this host's gateway"]),
        (around(resolvers="10.244.2.9"), ["10.244.2.0/24 of b contains 10.244.2.9, this host's resolver"]),
    ],
)
def test_what_this_host_needs_is_left_out_and_nothing_else(what: Surroundings, left_out: list[str]) -> None:
    peers = (peer("b", "192.168.1.5/32", "fd77::5/128", "10.244.2.0/24", allowed=("10.7.0.0/16",)), peer("c"))
    kept, lines = fitting(peers, what, RANGES)
    assert list(lines) == left_out
    lost = {ip_network(line.split()[0]) for line in lines}
    assert kept[0].networks == peers[0].networks - lost
    assert kept[0].preferred == peers[0].preferred - lost
    assert kept[1] is peers[1]
    assert (kept[0] is peers[0]) == (not lost)


def test_which_own_addresses_are_outside() -> None:
    attached = [ip_interface(text) for text in ("10.1.0.1/24", "10.2.0.1/24", "fd77::1/64")]
    assert outside(attached, OWN, [peer("b", "10.1.0.5/32")]) == {ip_address("10.2.0.1"), ip_address("fd77::1")}
    assert outside(attached, OWN, [peer("b", allowed=("10.7.0.0/16",))]) == frozenset()
    assert outside(attached, replace(OWN, networks=frozenset()), [peer("b", "10.1.0.5/32")]) == {
        each.ip for each in attached
    }


def test_which_endpoints_are_covered_by_what_is_routed() -> None:
    peers = [
        peer("b", "10.1.0.5/32", candidates=("10.1.0.5:51820", "203.0.113.5:51820")),
        peer("c", allowed=("203.0.113.7/32", "203.0.113.6/31"), candidates=("203.0.113.7:9",)),
    ]
    legs = {"b": Legs(None, frozenset({Endpoint.parse("203.0.113.6:7")}))}
    assert covered_endpoints(peers, legs) == set(map(ip_address, ("10.1.0.5", "203.0.113.7", "203.0.113.6")))
    assert covered_endpoints([peer("b", candidates=("198.18.0.98:1",))], {}) == set()


def test_a_condition_says_it_while_the_mesh_asks_for_it() -> None:
    def said(view: NodeView) -> tuple[str, str, str] | None:
        found = [
            each for each in conditions(view, [], 1, "2026-01-01T00:00:00Z") if each["type"] == NODE_NETWORKS_ROUTED
        ]
        return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else None

    view = NodeView("a", "Running")
    assert said(replace(view, peers=(peer("b"),))) is None
    assert (said(replace(view, peers=(peer("b", "10.1.0.5/32"),))) or ())[:2] == ("True", "Routed")
    line = "10.1.0.5/32 of b is this host's gateway"
    message = f"not through the mesh on this host: {line}"
    assert said(replace(view, peers=(peer("b"),), left_out=(line,))) == ("False", "NeededByThisHost", message)
