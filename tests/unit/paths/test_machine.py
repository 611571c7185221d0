# SPDX-License-Identifier: Apache-2.0
"""The path machine in the simulated world of conftest.py: what it decides, and how fast."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, Policy, SendPing, SendPong, SendSignal, State, Steer
from wirekube.agent.paths.probe import parts_of, txid_of
from wirekube.agent.paths.seal import CallMeMaybe, Known, Unheard
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


# Messages.


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


# Budgets.


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
        sent += [e.to for e in _effects_at(paths, tick / 10) if isinstance(e, SendPing)]
    assert sent.count(HERE) == sent.count(THERE) == 5


def test_a_relayed_idle_pair_sends_nothing(world: Make) -> None:
    made = world("hard", "hard")
    made.run(5.0)
    before = [host.sent for host in made.hosts]
    made.run(600.0)
    assert [host.sent for host in made.hosts] == before
