# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, in any order: afterwards a pair is reached as its NATs and the mode allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from wirekube.agent.paths.model import Mode, State

DIRECT = {("easy", "easy"), ("public", "easy"), ("public", "hard"), ("public", "public")}
KINDS = st.tuples(*[st.sampled_from(["easy", "public", "hard", "blocked"])] * 2)
SIDES = st.sampled_from([0, 1])
MODES = st.sampled_from(list(Mode))
# What the shell may tell at any time; each event with the seconds that pass after it.
EVENTS = st.tuples(
    st.one_of(
        st.tuples(st.just("cut"), st.sampled_from([(), (0,), (1,), (0, 1)])),
        st.tuples(st.just("relay"), st.booleans()),
        st.tuples(st.just("mode"), SIDES, MODES),
        st.tuples(st.just("busy"), st.booleans()),
        st.tuples(st.just("nat"), SIDES),
        st.tuples(st.just("restart"), SIDES, st.booleans()),
        st.tuples(st.just("kill"), SIDES),
        st.tuples(st.just("network"), SIDES),
    ),
    st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 8.0, 40.0]),
)
CALM = 120.0 + 5.0 + 30.0  # seconds: the retry cap, an attempt, the handshake time-out


def happen(world: Any, event: tuple[Any, ...]) -> None:
    kind, *words = event
    host = world.hosts[words[0]] if words and kind in ("mode", "nat", "restart", "kill", "network") else None
    if kind == "cut":
        world.cut = set(words[0])
    elif kind == "relay":
        world.set_relay(words[0])
    elif kind == "mode":
        world.set_mode(host, words[1])
    elif kind == "busy":
        world.busy = words[0]
    elif kind == "nat":
        world.reboot_nat(host)
    elif kind == "restart":
        world.restart(host, adopt=words[1])
    elif kind == "kill":
        world.kill(host)
    elif not host.down:
        host.paths.network_changed(world.now)
        world.act(host)


def calm(world: Any, mode: Mode) -> None:
    """Heal everything, and wait until all time-outs are over."""
    world.cut, world.busy = set(), True
    for host in world.hosts:
        if host.down:
            world.restart(host, adopt=True)
        world.set_mode(host, mode)
    world.set_relay(mode is not Mode.NEVER)
    world.run(20.0)
    world.busy = False
    world.run(CALM - 30.0)
    world.busy = True
    world.run(10.0)


def expected(kinds: tuple[str, str], mode: Mode) -> State:
    possible = kinds in DIRECT or kinds[::-1] in DIRECT
    if mode is Mode.ALWAYS:
        return State.RELAYED
    if possible:
        return State.DIRECT
    return State.UNREACHABLE if mode is Mode.NEVER else State.RELAYED


@settings(max_examples=40)
@example(0, ("easy", "easy"), [(("cut", ()), 0.05), (("cut", (0,)), 0.0), (("restart", 0, True), 1.0)], Mode.AUTO)
@given(seed=st.integers(0, 1000), kinds=KINDS, events=st.lists(EVENTS, max_size=8), mode=MODES)
def test_after_any_events_the_pair_is_reached_as_its_nats_allow(
    world: Callable[..., Any], seed: int, kinds: tuple[str, str], events: list[Any], mode: Mode
) -> None:
    made = world(*kinds, seed=seed)
    for event, seconds in events:
        happen(made, event)
        made.run(seconds)
    calm(made, mode)
    assert made.state == (expected(kinds, mode),) * 2
    assert made.unexpected == 0
    made.measure()
    made.run(5.0)
    if made.state[0] is not State.UNREACHABLE:
        assert max(made.gaps) < 0.3
    assert made.unexpected == 0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), kinds=KINDS, events=st.lists(EVENTS, max_size=8))
def test_probes_stay_within_their_budget_whatever_happens(
    world: Callable[..., Any], seed: int, kinds: tuple[str, str], events: list[Any]
) -> None:
    made = world(*kinds, seed=seed)
    for event, seconds in events:
        before, since = [host.probes for host in made.hosts], made.now
        happen(made, event)
        made.run(seconds)
        for host, count in zip(made.hosts, before, strict=True):
            assert host.probes - count <= 100 + 50 * (made.now - since)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    kinds=st.sampled_from(sorted(DIRECT)),
    cut=st.sampled_from([(0,), (1,), (0, 1)]),
    wait=st.floats(0, 3),
)
def test_no_moment_of_a_cut_costs_more_than_two_seconds(
    world: Callable[..., Any], seed: int, kinds: tuple[str, str], cut: tuple[int, ...], wait: float
) -> None:
    made = world(*kinds, seed=seed)
    made.busy = True
    made.run(5.0 + wait)
    made.measure()
    made.cut = set(cut)
    made.run(5.0)
    assert max(made.gaps) < 2.0
    assert made.state == (State.RELAYED, State.RELAYED)
