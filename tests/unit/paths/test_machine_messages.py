# SPDX-License-Identifier: Apache-2.0
"""Probes and signals as the path machine takes and answers them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import NatFacts, SendPing, SendPong, SendSignal, Steer
from wirekube.agent.paths.probe import parts_of, txid_of
from wirekube.agent.paths.seal import CallMeMaybe, Known
from wirekube.wire.endpoint import Endpoint

Make = Callable[..., Any]

HERE, THERE = Endpoint.of("203.0.113.9", 1), Endpoint.of("203.0.113.9", 2)


def test_a_pong_from_elsewhere_or_too_late_or_twice_proves_nothing() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [HERE], NatFacts(), 0.0)
    ping = next(e for e in paths.effects() if isinstance(e, SendPing))
    paths.pong_received("b", THERE, ping.txid, True, 0.1)
    paths.pong_received("b", HERE, ping.txid, True, 0.2)
    paths.pong_received("b", HERE, bytes(16), True, 0.2)
    paths.pong_received("nobody", HERE, ping.txid, True, 0.2)
    late = next(e for e in _effects_at(paths, 1.0) if isinstance(e, SendPing))
    paths.pong_received("b", HERE, late.txid, True, 60.0)
    assert not [e for e in paths.effects() if isinstance(e, Steer)]


def _effects_at(paths: Paths, now: float) -> list[Any]:
    paths.handle_timer(now)
    return paths.effects()


def test_one_call_is_answered_once_and_makes_no_echo(world: Make) -> None:
    made = world("easy", "easy")
    calls: list[float] = []
    passed = made.signal

    def counted(host: Any, signal: Any) -> None:
        if isinstance(signal, CallMeMaybe):
            calls.append(made.now)
        passed(host, signal)

    made.cut, made.signal = {0, 1}, counted
    made.run(9.0)
    made.a.paths.network_changed(made.now)
    made.act(made.a)
    calls.clear()
    made.a.paths.network_changed(made.now)
    made.act(made.a)
    made.run(4.0)
    assert len(calls) <= 2, "the call and its answer"


def test_known_is_answered_when_it_asks_and_only_then() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [], NatFacts(), 0.0)
    paths.effects()
    paths.signal("b", Known(answer=True), 1.0)
    assert paths.effects() == [SendSignal("b", Known())]
    paths.signal("b", Known(), 1.0)
    paths.signal("nobody", Known(answer=True), 1.0)
    assert paths.effects() == []


def test_a_call_is_acted_on_at_most_every_two_seconds() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [], NatFacts(), 0.0)
    paths.effects()
    for step in range(20):
        paths.signal("b", CallMeMaybe((HERE,)), step / 10)
    assert sum(isinstance(e, SendPing) for e in paths.effects()) == 1


def forged(number: int) -> Endpoint:
    return Endpoint.of(f"198.51.100.{number % 250}", 1 + number)


def test_a_recorded_ping_is_answered_once_whatever_its_source_says() -> None:
    """Each forged source would get an answer and a question, and each question would be taken from the budget."""
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [], NatFacts(), 0.0)
    for step in range(100):
        paths.ping_received("b", forged(step), txid_of(b"session1", 5), True, step / 100)
    assert [type(e) for e in paths.effects()] == [SendPong, SendPing]
    paths.remove_peer("b")
    paths.upsert_peer("b", b"k" * 32, [], NatFacts(), 2.0)
    paths.ping_received("b", HERE, txid_of(b"session1", 5), True, 2.0)
    assert paths.effects() == [], "also when the peer left meanwhile"


def test_pings_that_overtake_each_other_are_answered_and_so_are_those_of_a_restarted_peer() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [], NatFacts(), 0.0)
    for session, counter in ((b"session1", 900), (b"session1", 20), (b"session2", 1), (b"session1", 901)):
        paths.ping_received("b", HERE, txid_of(session, counter), True, 0.0)
        assert [type(e) for e in paths.effects()][:1] == [SendPong]


def test_one_peer_cannot_use_up_the_questions_of_the_others() -> None:
    paths = Paths(random.Random(1))
    for name, candidates in (("b", []), ("c", [])):
        paths.upsert_peer(name, name.encode() * 32, candidates, NatFacts(), 0.0)
    for step in range(2000):
        paths.ping_received("b", forged(step), txid_of(b"session1", 1 + step), True, step / 200)
    asked = sum(isinstance(e, SendPing) for e in paths.effects())
    assert asked <= 16 + 5 * 10
    paths.upsert_peer("d", b"d" * 32, [forged(number) for number in range(8)], NatFacts(), 10.0)
    assert sum(isinstance(e, SendPing) for e in paths.effects()) == 8, "searching goes on"
    paths.ping_received("c", HERE, txid_of(b"session1", 1), True, 10.0)
    assert [type(e) for e in paths.effects()] == [SendPong, SendPing]


def test_no_transaction_id_is_used_twice() -> None:
    """A peer that leaves and comes back knows our session: a counter that started over would not be answered."""
    paths, seen = Paths(random.Random(1)), []
    for now in range(20):
        paths.upsert_peer("b", b"k" * 32, [HERE, THERE], NatFacts(), float(now))
        paths.upsert_peer("c", b"l" * 32, [HERE, THERE], NatFacts(), float(now))
        seen += [e.txid for e in paths.effects() if isinstance(e, SendPing)]
        paths.remove_peer("b")
    assert len(seen) == len(set(seen)) > 40
    assert [parts_of(txid)[1] for txid in seen] == sorted(parts_of(txid)[1] for txid in seen)
