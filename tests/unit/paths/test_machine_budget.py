# SPDX-License-Identifier: Apache-2.0
"""How much the path machine sends, to whom first, and what it costs to know when."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, Policy, SendPing, SendSignal, State, Steer
from wirekube.agent.paths.probe import txid_of
from wirekube.agent.paths.seal import CallMeMaybe, Unheard
from wirekube.wire.endpoint import Endpoint

Make = Callable[..., Any]

HERE, THERE = Endpoint.of("203.0.113.9", 1), Endpoint.of("203.0.113.9", 2)


def test_no_more_than_fifty_probes_a_second() -> None:
    paths = Paths(random.Random(1))
    for number in range(200):
        listed = [Endpoint.of(f"198.51.100.{i}", 1000 + number) for i in range(8)]
        paths.upsert_peer(f"n{number}", number.to_bytes(32, "big"), listed, NatFacts(), 0.0)
    sent = 0
    for tick in range(100):
        paths.handle_timer(tick / 10)
        sent += sum(isinstance(e, SendPing) for e in paths.effects())
    assert sent <= 100 + 50 * 10


def crowd(paths: Paths, count: int, candidates: int) -> list[str]:
    names = [f"n{number}" for number in range(count)]
    for number, name in enumerate(names):
        listed = [Endpoint.of(f"198.51.100.{i}", 1000 + number) for i in range(candidates)]
        paths.upsert_peer(name, number.to_bytes(32, "big"), listed, NatFacts(), 0.0)
    return names


def played(paths: Paths, now: float, until: float) -> Iterator[tuple[float, Any]]:
    """Run the timers and return what is sent, with the times; nobody answers."""
    wakes = 0
    while True:
        yield from ((now, effect) for effect in paths.effects())
        due = paths.next_timer()
        if due is None or due > until:
            return
        wakes += 1
        assert wakes < 200 * (until + 1), "the clock is asked for again and again"
        now = max(now, due)
        paths.handle_timer(now)


def test_searches_that_find_the_budget_used_up_wait_in_turns_and_lose_no_round() -> None:
    paths = Paths(random.Random(1))
    names = crowd(paths, 100, 3)
    asked = Counter[str]()
    for now, effect in played(paths, 0.0, 28.5):
        if isinstance(effect, SendPing):
            asked[effect.name] += 1
            assert sum(asked.values()) <= 100 + 50 * now + 1
            if now > 4.0:
                assert max(asked.values()) - min(asked[name] for name in names) <= 6, "nobody is two rounds ahead"
    assert asked == dict.fromkeys(names, 15), "1500 pings, of which 100 at once: 28 s"


def test_a_peer_that_leaves_or_has_a_new_key_while_it_waits_harms_nobody() -> None:
    paths = Paths(random.Random(1))
    crowd(paths, 100, 3)
    paths.remove_peer("n50")
    paths.upsert_peer("n60", b"k" * 32, [HERE], NatFacts(), 0.0)
    asked = Counter(effect.name for _, effect in played(paths, 0.0, 60.0) if isinstance(effect, SendPing))
    assert "n50" not in asked
    assert asked["n60"] >= 5
    assert asked["n99"] >= 15


NAMES = st.integers(0, 5).map(lambda number: f"n{number}")
STEPS = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([0.0, 0.02, 0.3, 5.0, 30.0])),
    st.tuples(st.just("answer"), st.integers(0, 10)),
    st.tuples(st.just("ping"), NAMES, st.booleans()),
    st.tuples(st.sampled_from(["remove", "come", "go", "busy", "calm", "sent", "roam", "call", "unheard"]), NAMES),
    st.tuples(st.sampled_from(["network", "relay up", "relay down", "always", "auto"])),
    st.tuples(st.just("upsert"), NAMES, st.integers(0, 8), st.integers(0, 1)),
)


@settings(max_examples=100)
@given(st.lists(STEPS, max_size=40))
def test_the_timers_of_many_paths_are_what_a_scan_of_all_says(
    checked_timer: Callable[[Paths], float | None], steps: list[Any]
) -> None:
    paths, now, pings, count = Paths(random.Random(1)), 0.0, list[SendPing](), itertools.count(1)
    crowd(paths, 4, 8)
    for kind, *words in steps:
        for effect in paths.effects():
            if isinstance(effect, SendPing):
                pings.append(effect)
            elif isinstance(effect, Steer):
                paths.installed(effect.name, effect.accept, now)
        tell(paths, kind, words, pings, now, count)
        checked_timer(paths)
        if kind == "run":
            until = now + words[0]
            while (due := checked_timer(paths)) is not None and due <= until:
                now = max(now, due)
                paths.handle_timer(now)
            now = until


def tell(paths: Paths, kind: str, words: list[Any], pings: list[SendPing], now: float, count: Iterator[int]) -> None:
    """Tell the machine one thing that the shell could."""
    if kind == "answer":
        for each in pings[-words[0] :]:
            paths.pong_received(each.name, each.to, each.txid, True, now)
    elif kind == "ping":
        paths.ping_received(words[0], HERE, txid_of(b"session1", next(count)), words[1], now)
    elif kind == "upsert":
        listed = [Endpoint.of(f"198.51.100.{i}", 9) for i in range(words[1])]
        paths.upsert_peer(words[0], bytes([words[2]]) * 32, listed, NatFacts(), now)
    elif kind in PLAIN:
        PLAIN[kind](paths, *words, now)


PLAIN: dict[str, Callable[..., None]] = {
    "remove": lambda paths, name, now: paths.remove_peer(name),
    "come": lambda paths, name, now: paths.presence(name, True, now),
    "go": lambda paths, name, now: paths.presence(name, False, now),
    "busy": lambda paths, name, now: paths.traffic(name, True, now),
    "calm": lambda paths, name, now: paths.traffic(name, False, now),
    "sent": lambda paths, name, now: paths.sent(name, now),
    "roam": lambda paths, name, now: paths.roamed(name, THERE, now),
    "call": lambda paths, name, now: paths.signal(name, CallMeMaybe((THERE,), True), now),
    "unheard": lambda paths, name, now: paths.signal(name, Unheard(), now),
    "network": lambda paths, now: paths.network_changed(now),
    "relay up": lambda paths, now: paths.relay(True, "", now),
    "relay down": lambda paths, now: paths.relay(False, "it is down", now),
    "always": lambda paths, now: paths.set_policy(Policy(Mode.ALWAYS), now),
    "auto": lambda paths, now: paths.set_policy(Policy(Mode.AUTO), now),
}


def test_a_peer_without_an_address_to_ask_does_not_wait_with_the_others() -> None:
    """Its timer would be due at once, again and again; `played` counts."""
    paths = Paths(random.Random(1))
    crowd(paths, 100, 3)
    paths.relay(True, "", 0.0)
    paths.upsert_peer("x", b"x" * 32, [], NatFacts(), 0.0)
    paths.presence("x", True, 0.0)
    paths.upsert_peer("n99", (99).to_bytes(32, "big"), [], NatFacts(), 0.0)  # it waits already
    sent = [(now, e) for now, e in played(paths, 0.0, 60.0) if e.name in ("x", "n99")]
    assert [(now, type(e)) for now, e in sent if now < 9.0] == [(0.0, SendSignal)]
    assert not [e for _, e in sent if isinstance(e, SendPing)]


def test_many_direct_pairs_with_traffic_do_not_starve_the_search() -> None:
    paths = Paths(random.Random(1))
    names = crowd(paths, 90, 1)
    answer = dict.fromkeys(names, 0)
    for name in names:
        paths.traffic(name, True, 0.0)
    searching = [Endpoint.of("203.0.113.9", port) for port in range(1, 9)]
    now, sent = 0.0, Counter[Endpoint]()
    while now < 15.0:
        if now >= 8.0 and "new" not in answer:
            assert all(paths.view(name).state is State.DIRECT for name in names)
            answer["new"] = 0
            paths.upsert_peer("new", b"n" * 32, searching, NatFacts(), now)
        for effect in paths.effects():
            if isinstance(effect, SendPing) and effect.name == "new":
                sent[effect.to] += 1
            elif isinstance(effect, SendPing):
                answer[effect.name] += 1
                paths.pong_received(effect.name, effect.to, effect.txid, True, now)
            elif isinstance(effect, Steer):
                paths.installed(effect.name, effect.accept, now)
        now = max(now + 0.001, min(paths.next_timer() or 0.0, now + 0.05))
        paths.handle_timer(now)
    assert sum(answer.values()) > 90 * 8, "each of them was asked each second"
    assert sent == dict.fromkeys(searching, 5)


def test_a_peer_is_called_when_our_pings_leave_and_not_when_they_wait() -> None:
    """Its pings come at once, and find our NAT closed if ours are late."""
    paths = Paths(random.Random(1))
    paths.relay(True, "", 0.0)
    crowd(paths, 100, 3)
    paths.presence("n99", True, 0.0)
    sent = [(now, e) for now, e in played(paths, 0.0, 10.0) if getattr(e, "name", "") == "n99"]
    calls = [now for now, e in sent if isinstance(e, SendSignal)]
    pings = [now for now, e in sent if isinstance(e, SendPing)]
    assert calls == [pings[0]]
    assert pings[0] > 3.0


def test_a_candidate_gets_at_most_five_probes_an_attempt() -> None:
    paths = Paths(random.Random(1))
    paths.upsert_peer("b", b"k" * 32, [HERE, THERE], NatFacts(), 0.0)
    sent = []
    for tick in range(50):
        paths.handle_timer(tick / 10)
        sent += [e.to for e in paths.effects() if isinstance(e, SendPing)]
    assert sent.count(HERE) == sent.count(THERE) == 5


def test_a_relayed_idle_pair_sends_nothing(world: Make) -> None:
    made = world("hard", "hard")
    made.run(5.0)
    before = [host.sent for host in made.hosts]
    made.run(600.0)
    assert [host.sent for host in made.hosts] == before
