# SPDX-License-Identifier: Apache-2.0
"""Paths that carry probes and not WireGuard: left for the relay, and not taken again at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, SendPing, SendPong, SendSignal, State, Steer
from wirekube.agent.paths.probe import txid_of
from wirekube.agent.paths.seal import Unheard
from wirekube.wire.endpoint import Endpoint

Make = Callable[..., Any]

BOTH_DIRECT, BOTH_RELAYED = (State.DIRECT, State.DIRECT), (State.RELAYED, State.RELAYED)
HERE, THERE = Endpoint.of("203.0.113.9", 1), Endpoint.of("203.0.113.9", 2)


def filtered_world(make: Make, filtered: set[int], mode: Mode = Mode.AUTO, **more: Any) -> Any:
    made = make("easy", "easy", mode, **more)
    made.busy = True
    made.run(10.0)
    assert made.state == BOTH_DIRECT
    made.measure()
    made.filtered = filtered
    return made


def leaves(made: Any) -> int:
    return sum(new is State.RELAYED for new in made.a.states)


@pytest.mark.parametrize("filtered", [{0, 1}, {0}, {1}], ids=["both ways", "from a", "from b"])
def test_a_path_without_wireguard_is_left_by_both_sides_and_says_why(world: Make, filtered: set[int]) -> None:
    made = filtered_world(world, filtered)
    made.run(22.0)
    assert made.state == BOTH_RELAYED
    assert {host.paths.view(host.other.name).reason for host in made.hosts} == {"WireGuardSilent"}
    assert max(made.gaps) < 20.0
    made.measure()
    made.run(90.0)
    assert made.state == BOTH_RELAYED
    assert max(made.gaps) < 0.3


def test_it_is_tried_again_after_two_minutes_then_four_then_eight(world: Make) -> None:
    made = filtered_world(world, {0})
    made.run(15 * 60.0)
    assert leaves(made) == 3
    made.run(60 * 60.0)
    assert leaves(made) <= 6
    made.filtered = set()
    made.run(2 * 60 * 60.0)
    assert made.state == BOTH_DIRECT
    assert made.unmapped == 0


@pytest.mark.parametrize("news", ["network", "candidates"])
def test_news_end_the_hold(world: Make, news: str) -> None:
    made = filtered_world(world, {0, 1})
    made.run(30.0)
    made.filtered = set()
    for host in made.hosts:
        if news == "network":
            host.paths.network_changed(made.now)
        else:
            listed = [*host.other.nat.candidates, THERE]
            host.paths.upsert_peer(host.other.name, host.other.key, listed, host.other.nat.facts, made.now)
        made.act(host)
    made.run(10.0)
    assert made.state == BOTH_DIRECT


def test_without_a_relay_the_path_is_kept(world: Make) -> None:
    made = filtered_world(world, {0, 1}, Mode.NEVER, relay=False)
    made.run(120.0)
    assert made.state == BOTH_DIRECT


def direct_paths() -> Paths:
    paths = Paths(random.Random(1))
    paths.relay(True, "", 0.0)
    paths.upsert_peer("b", b"k" * 32, [HERE, THERE], NatFacts(), 0.0)
    paths.presence("b", True, 0.0)
    prove(paths, HERE, 0.0)
    assert paths.view("b").direct == HERE
    return paths


def prove(paths: Paths, endpoint: Endpoint, now: float) -> None:
    """Answer all pings to one address, and say that our address is known there."""
    while effects := paths.effects():
        for each in effects:
            if isinstance(each, SendPing) and each.to == endpoint:
                paths.pong_received("b", endpoint, each.txid, True, now)
            elif isinstance(each, Steer):
                paths.installed("b", each.accept, now)


@pytest.mark.parametrize(
    ("sent", "received", "stays"),
    [
        (range(1, 120), range(9, 120, 10), True),  # a flow one way: keepalives after 10 s
        (range(1, 120), [9, 26, 42], False),
        ([1, 60, 61, 120], [], True),  # a packet a minute whose answer was lost, each time
        ([1, 16, 21], [], False),  # one packet, and the handshakes that follow
        (range(1, 18), [], True),
        (range(1, 19), [], False),
    ],
)
def test_only_what_is_sent_and_not_answered_for_long_counts(sent: list[int], received: list[int], stays: bool) -> None:
    paths = direct_paths()
    for second in range(1, 121):
        if second in sent:
            paths.sent("b", float(second))
        if second in received:
            paths.received("b", float(second))
    assert (paths.view("b").direct == HERE) is stays


def test_the_peer_is_told_and_leaves_though_it_hears_us() -> None:
    paths = direct_paths()
    for second in range(1, 19):
        paths.sent("b", float(second))
    assert SendSignal("b", Unheard()) in paths.effects()
    told = direct_paths()
    told.signal("b", Unheard(), 5.0)
    assert (told.view("b").state, told.view("b").reason) == (State.RELAYED, "WireGuardSilent")


def test_a_held_address_is_heard_and_answered_but_not_asked_nor_used_and_another_one_is() -> None:
    paths = direct_paths()
    paths.signal("b", Unheard(), 5.0)
    effects = paths.effects()
    assert Steer("b", None, frozenset({HERE})) in effects
    assert {e.to for e in effects if isinstance(e, SendPing)} == {THERE}
    paths.ping_received("b", HERE, txid_of(b"session1", 1), True, 6.0)
    answers = [type(e) for e in paths.effects()]
    assert SendPong in answers
    assert SendPing not in answers
    paths.ping_received("b", THERE, txid_of(b"session1", 2), True, 6.0)
    prove(paths, THERE, 6.0)
    assert paths.view("b").direct == THERE


def test_the_clock_starts_anew_on_another_leg() -> None:
    paths = direct_paths()
    for second in range(1, 17):
        paths.sent("b", float(second))
    paths.ping_received("b", THERE, txid_of(b"session1", 1), True, 16.0)
    paths.signal("b", Unheard(), 16.0)
    prove(paths, THERE, 16.0)
    assert paths.view("b").direct == THERE
    for second in range(17, 33):
        paths.sent("b", float(second))
    assert paths.view("b").direct == THERE
