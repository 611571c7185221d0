# SPDX-License-Identifier: Apache-2.0
"""Which addresses are published and probed, how often, and which pairs of NATs can meet."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.paths.candidates import (
    MAX_CANDIDATES,
    RTT_GAIN,
    RTT_STEP,
    Kind,
    better,
    own_candidates,
    usable,
)
from wirekube.agent.paths.limits import BURST, RATE, ProbeBudget
from wirekube.agent.paths.model import NatFacts
from wirekube.agent.paths.possible import why_not_direct
from wirekube.wire.endpoint import Endpoint

MESH = (ip_network("198.18.0.0/16"), ip_network("fd57::/48"))
OWN = {ip_address("10.0.0.1"), ip_address("203.0.113.1")}
RTTS = st.floats(0.0001, 2.0)
ADDRESSES = st.sampled_from(["10.0.0.2", "192.168.1.2", "172.20.0.1", "203.0.113.2", "8.8.8.8"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "169.254.1.1", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255",
        "240.0.0.1", str(ip_address(0)), "10.0.0.1", "203.0.113.1", "198.18.0.9", "::1", "fe80::1", "ff02::1", "::",
        "2001:db8::7", "fd57::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    ],
)  # fmt: skip
def test_where_no_node_can_honestly_be_is_never_probed(address: str) -> None:
    assert usable([Endpoint.of(address, 51820)], OWN, MESH) == ()


def test_port_zero_is_never_probed() -> None:
    assert usable([Endpoint.of("203.0.113.2", 0)], OWN, MESH) == ()


@given(st.lists(st.builds(Endpoint, st.ip_addresses(), st.integers(0, 65535)), max_size=40))
def test_of_any_list_at_most_eight_are_probed_and_none_that_is_forbidden(listed: list[Endpoint]) -> None:
    kept = usable(listed, OWN, MESH)
    assert len(kept) <= MAX_CANDIDATES
    assert len(set(kept)) == len(kept)
    assert list(kept) == sorted(kept, key=listed.index)
    for endpoint in kept:
        ip = endpoint.ip
        assert ip.version == 4
        assert endpoint.port
        assert not any((ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified, ip.is_reserved))
        assert ip not in OWN
        assert ip not in MESH[0]


def test_junk_in_front_does_not_hide_the_good_one() -> None:
    junk = [Endpoint.of(f"127.0.0.{number}", 1) for number in range(32)]
    good = Endpoint.of("203.0.113.2", 51820)
    assert usable([*junk, good, good], OWN, MESH) == (good,)


def test_what_a_node_publishes() -> None:
    manual, mapped = Endpoint.of("203.0.113.7", 9), Endpoint.of("203.0.113.1", 51820)
    host = [ip_address("10.0.0.1"), ip_address("203.0.113.1")]
    made = own_candidates([manual], host, [mapped], listen_port=51820, symmetric=False)
    assert [(str(each.endpoint), each.kind) for each in made] == [
        ("203.0.113.7:9", Kind.MANUAL),
        ("203.0.113.1:51820", Kind.SERVER_REFLEXIVE),
        ("10.0.0.1:51820", Kind.HOST),
    ]


def test_a_symmetric_nats_port_is_nobodys_address() -> None:
    made = own_candidates([], [ip_address("10.0.0.1")], [Endpoint.of("203.0.113.1", 4)], listen_port=5, symmetric=True)
    assert [each.kind for each in made] == [Kind.HOST]


def test_at_most_eight_are_published_and_the_best_first() -> None:
    host = [ip_address(f"10.0.0.{number}") for number in range(1, 20)]
    made = own_candidates([], host, [Endpoint.of("203.0.113.1", 4)], listen_port=5, symmetric=False)
    assert len(made) == MAX_CANDIDATES
    assert made[0].kind is Kind.SERVER_REFLEXIVE


@given(ADDRESSES, ADDRESSES, RTTS, RTTS)
def test_no_two_paths_take_turns(a: str, b: str, rtt_a: float, rtt_b: float) -> None:
    first, second = (Endpoint.of(a, 1), rtt_a), (Endpoint.of(b, 2), rtt_b)
    assert not (better(first, second) and better(second, first))
    assert not better(first, first)


@pytest.mark.parametrize(
    ("new", "current", "expected"),
    [
        (("10.0.0.2", 0.9), ("203.0.113.2", 0.001), True),
        (("203.0.113.2", 0.001), ("10.0.0.2", 0.9), False),
        (("203.0.113.2", 0.010), ("203.0.113.3", 0.020), True),
        (("203.0.113.2", 0.020 * RTT_GAIN + 0.001), ("203.0.113.3", 0.020), False),
        (("203.0.113.2", 0.0001), ("203.0.113.3", 0.0001 + RTT_STEP / 2), False),
    ],
)
def test_lan_before_wan_then_by_time_with_hysteresis(
    new: tuple[str, float], current: tuple[str, float], expected: bool
) -> None:
    assert better((Endpoint.of(new[0], 1), new[1]), (Endpoint.of(current[0], 1), current[1])) is expected


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 60)), max_size=80))
def test_probes_stay_within_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    budget, now, sent = ProbeBudget(), 0.0, []
    for wait, count in steps:
        now += wait
        sent += [now for _ in range(count) if budget.take(now)]
    for first, last in itertools.combinations(range(0, len(sent), 25), 2):
        assert last - first + 1 <= BURST + RATE * (sent[last] - sent[first]) + 1e-6


def test_an_idle_budget_fills_up_to_a_burst_and_no_further() -> None:
    budget = ProbeBudget()
    assert sum(budget.take(0.0) for _ in range(1000)) == BURST
    assert sum(budget.take(3600.0) for _ in range(1000)) == BURST
    assert sum(budget.take(3601.0) for _ in range(1000)) == RATE


@given(st.floats(0, 1e6), st.integers(1, 60), st.integers(0, 300))
def test_who_comes_when_the_budget_is_ready_is_served_and_no_sooner(start: float, rate: int, takes: int) -> None:
    budget = ProbeBudget(rate, 5)
    for _ in range(takes):
        budget.take(start)
    ready = budget.ready()
    if takes < 5:
        assert ready <= start
    else:
        assert ready > start
        assert not budget.take((start + ready) / 2)
    assert budget.take(budget.ready())


BLOCKED = NatFacts(udp_blocked=True, addresses=frozenset({"203.0.113.1"}))
HARD = NatFacts(symmetric=True, port_restricted=True, addresses=frozenset({"203.0.113.2"}))
HARD_OPEN = NatFacts(symmetric=True, addresses=frozenset({"203.0.113.3"}))
EASY = NatFacts(port_restricted=True, addresses=frozenset({"203.0.113.4"}))
OPEN = NatFacts(addresses=frozenset({"203.0.113.5"}))
PUBLIC = NatFacts(public=True, addresses=frozenset({"203.0.113.6"}))
FIREWALLED = NatFacts(public=True, port_restricted=True, addresses=frozenset({"203.0.113.7"}))
UNKNOWN = NatFacts()
ROWS = (BLOCKED, HARD, HARD_OPEN, EASY, OPEN, PUBLIC, FIREWALLED, UNKNOWN)
TABLE = """
             blocked  hard     hardopen easy     open     public   firewalled unknown
blocked      UDP      UDP      UDP      UDP      UDP      UDP      UDP        UDP
hard         PeerUDP  Both     Both     Hard     -        -        -          -
hardopen     PeerUDP  Both     Both     Hard     -        -        -          -
easy         PeerUDP  PeerHard PeerHard -        -        -        -          -
open         PeerUDP  -        -        -        -        -        -          -
public       PeerUDP  -        -        -        -        -        -          -
firewalled   PeerUDP  -        -        -        -        -        -          -
unknown      PeerUDP  -        -        -        -        -        -          -
"""
WORDS = {
    "UDP": "UDPBlocked", "PeerUDP": "PeerUDPBlocked", "Both": "BothSymmetric", "Hard": "SymmetricNAT",
    "PeerHard": "PeerSymmetricNAT",
}  # fmt: skip
CELLS = [
    pytest.param(
        ROWS[row], replace(ROWS[column], addresses=frozenset({"198.51.100.1"})), WORDS.get(word), id=f"{row}x{column}"
    )
    for row, line in enumerate(TABLE.strip().splitlines()[1:])
    for column, word in enumerate(line.split()[1:])
]


@pytest.mark.parametrize(("ours", "theirs", "reason"), CELLS)
def test_each_pair_of_nats(ours: NatFacts, theirs: NatFacts, reason: str | None) -> None:
    found = why_not_direct(ours, theirs)
    assert (found and found[0]) == reason
    assert found is None or found[1]
    assert (why_not_direct(theirs, ours) is None) == (reason is None), "both sides come to the same verdict"


@pytest.mark.parametrize(("ours", "theirs", "_reason"), CELLS)
def test_nodes_behind_one_address_may_be_neighbours(ours: NatFacts, theirs: NatFacts, _reason: str | None) -> None:
    shared = frozenset({"203.0.113.9"})
    assert why_not_direct(replace(ours, addresses=shared), replace(theirs, addresses=shared)) is None
