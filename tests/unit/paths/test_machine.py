# SPDX-License-Identifier: Apache-2.0
"""The path machine in the simulated world of conftest.py: what it decides, and how fast."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, Policy, SendPing, State, Steer
from wirekube.wire.endpoint import Endpoint

Make = Callable[..., Any]

DIRECT = [
    ("easy", "easy"), ("public", "easy"), ("easy", "public"), ("public", "hard"), ("hard", "public"),
    ("public", "public"),
]  # fmt: skip
RELAYED = [("hard", "hard"), ("blocked", "easy"), ("hard", "easy"), ("easy", "blocked"), ("blocked", "hard")]
BOTH_DIRECT, BOTH_RELAYED = (State.DIRECT, State.DIRECT), (State.RELAYED, State.RELAYED)
BOTH_UNREACHABLE = (State.UNREACHABLE, State.UNREACHABLE)
HERE, THERE = Endpoint.of("203.0.113.9", 1), Endpoint.of("203.0.113.9", 2)


def direct_world(make: Make, *kinds: str) -> Any:
    made = make(*(kinds or ("easy", "easy")))
    made.busy = True
    made.run(10.0)
    assert made.state == BOTH_DIRECT
    made.measure()
    return made


# Finding a path.


@pytest.mark.parametrize(("a", "b"), DIRECT)
def test_pairs_that_can_meet_go_direct_without_a_gap(world: Make, a: str, b: str) -> None:
    made = world(a, b)
    made.busy = True
    made.run(2.0)
    assert made.state == BOTH_DIRECT
    assert made.unmapped == 0
    assert max(made.gaps) < 0.3, "the relay carries the first packets"


@pytest.mark.parametrize(("a", "b"), RELAYED)
def test_pairs_that_cannot_meet_are_relayed_at_once_and_say_why(world: Make, a: str, b: str) -> None:
    made = world(a, b)
    made.run(0.1)
    assert made.state == BOTH_RELAYED
    assert all(host.paths.view(host.other.name).message for host in made.hosts)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), kinds=st.sampled_from(DIRECT), loss=st.floats(0, 0.3))
def test_loss_delays_a_direct_path_but_wireguard_never_hears_an_unmapped_address(
    world: Make, seed: int, kinds: tuple[str, str], loss: float
) -> None:
    made = world(*kinds, loss=loss, seed=seed)
    made.busy = True
    made.run(60.0)
    assert made.unmapped == 0
    if loss < 0.05:
        assert State.DIRECT in made.a.states


def test_a_peer_that_is_nowhere_is_relayed_after_the_handshake_time_out(world: Make) -> None:
    made = world("easy", "easy")
    made.cut = {0, 1}
    made.run(29.0)
    assert made.state == (State.CONNECTING, State.CONNECTING)
    made.run(2.0)
    assert made.state == BOTH_RELAYED
    assert made.a.paths.view("b").reason == "NoDirectPath"


def test_retries_back_off_to_the_cap_and_start_over_after_an_event() -> None:
    paths = Paths(random.Random(1), Policy(Mode.AUTO, 30.0, 40.0))
    paths.relay(True, "", 0.0)
    paths.upsert_peer("b", b"k" * 32, [HERE], NatFacts(), 0.0)
    paths.presence("b", True, 0.0)
    began = starts(paths, 0.0, 200.0)
    assert [round(b - a) for a, b in itertools.pairwise(began)] == [10, 15, 25, 45, 45, 45]
    paths.network_changed(200.0)
    assert [round(b) for b in starts(paths, 200.0, 215.0)] == [200, 210]


def starts(paths: Paths, now: float, until: float) -> list[float]:
    """Run the timers and return when attempts began."""
    began: list[float] = []
    while now <= until:
        pings = [e for e in paths.effects() if isinstance(e, SendPing)]
        if pings and (not began or now - began[-1] > 2.0):
            began.append(now)
        due = paths.next_timer()
        assert due is not None
        now = max(now, due)
        if now <= until:
            paths.handle_timer(now)
    return began


# Losing it.


@pytest.mark.parametrize("cut", [{0, 1}, {0}, {1}], ids=["both ways", "from a", "from b"])
@pytest.mark.parametrize("kinds", DIRECT)
def test_a_cut_moves_traffic_to_the_relay_within_two_seconds_and_back(
    world: Make, kinds: tuple[str, str], cut: set[int]
) -> None:
    made = direct_world(world, *kinds)
    made.cut = cut
    made.run(4.0)
    assert max(made.gaps) < 2.0
    assert made.state == BOTH_RELAYED
    assert [host.direct for host in made.hosts] == [None, None]
    made.cut = set()
    made.measure()
    made.run(11.0)
    assert made.state == BOTH_DIRECT
    assert max(made.gaps) < 0.3
    assert made.unmapped == 0


def test_an_idle_pair_notices_a_cut_when_traffic_comes(world: Make) -> None:
    made = direct_world(world)
    made.busy = False
    made.run(60.0)
    made.cut = {0, 1}
    made.busy = True
    made.measure()
    made.run(5.0)
    assert made.state == BOTH_RELAYED
    assert max(made.gaps) < 2.2, "a second until the counters show it, and the pings"


@pytest.mark.parametrize("kinds", [("easy", "easy"), ("easy", "public"), ("public", "easy"), ("hard", "public")])
def test_a_nat_that_reboots_costs_little(world: Make, kinds: tuple[str, str]) -> None:
    made = direct_world(world, *kinds)
    made.reboot_nat(made.a)
    made.run(20.0)
    assert max(made.gaps) < 2.0
    made.measure()
    made.run(20.0)
    assert made.state == BOTH_DIRECT
    assert max(made.gaps) < 0.3


def test_a_leg_in_doubt_gives_way_to_any_address_that_is_proven() -> None:
    """The peer's NAT rebound: its new address answers, the old one does not, and both are equally far."""
    paths = Paths(random.Random(1))
    paths.relay(True, "", 0.0)
    paths.upsert_peer("b", b"k" * 32, [HERE], NatFacts(), 0.0)
    prove(paths, HERE, 0.0)
    assert paths.view("b").direct == HERE
    paths.traffic("b", True, 1.0)
    paths.roamed("b", THERE, 2.0)
    prove(paths, THERE, 2.0)
    now = 2.0
    while paths.view("b").direct == HERE and now < 10.0:
        now = max(now, paths.next_timer() or 10.0)
        paths.handle_timer(now)
    assert paths.view("b").direct == THERE
    assert now <= 2.5


def prove(paths: Paths, endpoint: Endpoint, now: float) -> None:
    """Answer all pings to one address, and say that our address is known there."""
    while True:
        effects = paths.effects()
        pings = [e for e in effects if isinstance(e, SendPing) and e.to == endpoint]
        steers = [e for e in effects if isinstance(e, Steer)]
        for each in pings:
            paths.pong_received("b", endpoint, each.txid, True, now)
        for steer in steers:
            paths.installed("b", steer.accept, now)
        if not pings and not steers:
            return


def test_a_lan_address_takes_over_and_keeps_the_path() -> None:
    lan = Endpoint.of("10.0.0.2", 51820)
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [HERE], NatFacts(), 0.0)
    prove(paths, HERE, 0.0)
    paths.upsert_peer("b", b"k" * 32, [HERE, lan], NatFacts(), 1.0)
    prove(paths, lan, 1.0)
    assert paths.view("b").direct == lan
    assert paths.view("b").accept == {HERE, lan}


# Modes.


@pytest.mark.parametrize("kinds", DIRECT)
def test_always_sends_no_probe_and_answers_none(world: Make, kinds: tuple[str, str]) -> None:
    made = world(*kinds, Mode.ALWAYS)
    made.busy = True
    made.run(60.0)
    assert [host.sent for host in made.hosts] == [0, 0]
    assert made.state == BOTH_RELAYED
    assert max(made.gaps) < 0.3


@pytest.mark.parametrize("kinds", DIRECT)
def test_never_finds_a_direct_path_without_signals(world: Make, kinds: tuple[str, str]) -> None:
    made = world(*kinds, Mode.NEVER, relay=False)
    made.run(20.0)
    assert made.state == BOTH_DIRECT


def test_never_says_unreachable_when_the_nats_do_not_allow_it(world: Make) -> None:
    made = world("hard", "hard", Mode.NEVER, relay=False)
    made.run(40.0)
    assert made.state == BOTH_UNREACHABLE
    assert made.a.paths.view("b").reason == "BothSymmetric"


@pytest.mark.parametrize("first", list(Mode))
@pytest.mark.parametrize("then", list(Mode))
def test_the_mode_can_be_switched_at_any_time(world: Make, first: Mode, then: Mode) -> None:
    made = world("easy", "easy", first)
    made.busy = True
    made.run(30.0)
    made.measure()
    for host in made.hosts:
        made.set_mode(host, then)
        made.run(0.5)
    made.run(30.0)
    expected = BOTH_RELAYED if then is Mode.ALWAYS else BOTH_DIRECT
    assert made.state == expected
    assert made.unmapped == 0
    if Mode.NEVER not in (first, then):
        assert max(made.gaps) < 0.3


# Restarts.


@pytest.mark.parametrize("kinds", DIRECT)
@pytest.mark.parametrize("side", [0, 1])
def test_an_adopted_leg_is_used_without_a_gap_and_asked_at_once(world: Make, kinds: tuple[str, str], side: int) -> None:
    made = direct_world(world, *kinds)
    host = made.hosts[side]
    direct = host.direct
    made.restart(host, adopt=True)
    assert host.direct == direct
    made.run(6.0)
    assert made.state == BOTH_DIRECT
    assert host.paths.view(host.other.name).rtt is not None
    assert max(made.gaps) < 0.3
    assert made.unmapped == 0


def test_what_was_adopted_stays_accepted_although_our_own_leg_dies_at_once(world: Make) -> None:
    """The peer does not know yet, and sends to us directly."""
    made = direct_world(world)
    made.cut = {0}
    made.restart(made.a, adopt=True)
    made.run(5.0)
    assert made.a.direct is None
    assert made.unmapped == 0


def test_a_relayed_side_keeps_accepting_direct_packets_over_a_restart(world: Make) -> None:
    made = direct_world(world)
    made.a.direct = None
    made.restart(made.a, adopt=True)
    made.run(5.0)
    assert made.state == BOTH_DIRECT
    assert made.unmapped == 0


def test_an_agent_that_was_away_when_the_mode_became_always_leaves_the_direct_leg(world: Make) -> None:
    made = direct_world(world)
    made.kill(made.a)
    made.a.mode = Mode.ALWAYS
    made.set_mode(made.b, Mode.ALWAYS)
    made.restart(made.a, adopt=True)
    assert made.a.direct is None
    assert made.a.state is State.RELAYED


def test_an_adopted_leg_that_is_dead_is_left(world: Make) -> None:
    made = direct_world(world)
    made.cut = {0, 1}
    made.restart(made.a, adopt=True)
    made.run(2.0)
    assert made.a.direct is None


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.NEVER])
def test_a_leg_stays_while_the_peers_agent_restarts_and_its_wireguard_goes_on(world: Make, mode: Mode) -> None:
    made = world("easy", "easy", mode, relay=mode is Mode.AUTO)
    made.busy = True
    made.run(20.0)
    direct = made.a.direct
    made.measure()
    made.kill(made.b)
    made.run(60.0)
    assert (made.a.direct, made.a.state) == (direct, State.DIRECT)
    assert made.a.paths.view("b").reason == "ProbesUnanswered"
    made.restart(made.b, adopt=True)
    made.run(0.1)
    assert made.a.direct == direct, "the new agent is at the relay a moment before it answers"
    made.run(3.0)
    assert (made.a.direct, made.a.paths.view("b").reason) == (direct, "ProbeAnswered")
    assert max(made.gaps) < 0.3


def test_a_leg_without_any_sign_of_life_is_given_up_after_a_while(world: Make) -> None:
    made = world("easy", "easy", Mode.NEVER, relay=False)
    made.busy = True
    made.run(30.0)
    assert made.state == BOTH_DIRECT
    made.cut = {0, 1}
    made.run(70.0)
    assert made.state == BOTH_UNREACHABLE


def test_a_peer_with_a_new_key_is_a_new_peer_and_its_table_entries_go() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [HERE], NatFacts(), 0.0)
    prove(paths, HERE, 0.0)
    paths.upsert_peer("b", b"l" * 32, [], NatFacts(), 1.0)
    assert [e for e in paths.effects() if isinstance(e, Steer)] == [Steer("b", None, frozenset())]
    assert paths.view("b").state is State.CONNECTING
