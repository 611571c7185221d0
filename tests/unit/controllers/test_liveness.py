# SPDX-License-Identifier: Apache-2.0
"""When an agent counts as silent, by the clock of the operator alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.controllers.liveness import Census, Timing, Tracker

TIMING = Timing()
NAMES = ("a", "b", "c", "d", "e")


class World:
    """A tracker, a clock that only goes forward, and a watch."""

    def __init__(self, *names: str) -> None:
        self.tracker, self.now, self.following = Tracker(TIMING), 1000.0, 1000.0
        self.members, self.serial = set(names), 0
        for name in names:
            self.renew(name)

    def renew(self, *names: str) -> None:
        for name in names:
            self.serial += 1
            self.tracker.saw(name, str(self.serial), self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.look = self.tracker.look(self.now, self.following, self.members.__contains__)

    def turn(self, *names: str, times: int = 1) -> None:
        """Let 20 s pass and these agents renew, so many times."""
        for _ in range(times):
            self.after(TIMING.renew)
            self.renew(*names)

    def silent(self, *names: str, shown: bool = False) -> list[bool]:
        return [self.tracker.silent(name, shown=shown) for name in names]


def test_one_of_three_is_silent_after_50_s_and_not_before_and_back_when_it_renews() -> None:
    world = World(*"abc")
    world.turn(*"abc")
    world.turn("a", "b")
    world.turn("a", "b")
    world.after(9.9)
    assert world.silent(*"abc") == [False, False, False]
    assert world.look.again == pytest.approx(0.1)
    world.after(0.1)
    assert (world.silent(*"abc"), world.look.news) == ([False, False, True], {"c"})
    assert world.look.census == Census(total=3, silent=1, alive=2)
    world.renew("c")
    world.after(0.5)
    assert (world.silent("c", shown=True), world.look.news) == ([False], {"c"})


@pytest.mark.parametrize("gap", [30.0, 300.0])
def test_a_gap_of_our_own_watch_starts_every_clock_again(gap: float) -> None:
    world = World(*"abc")
    world.turn(*"abc")
    world.turn("a", "b", times=2)
    world.now += gap
    assert world.tracker.look(world.now, None, world.members.__contains__).news == frozenset()
    world.following = world.now
    world.after(49.9)
    assert world.silent(*"abc") == [False, False, False]


def test_what_is_silent_stays_so_over_a_gap_until_it_renews() -> None:
    world = World(*"abc")
    world.turn("a", "b", times=3)
    assert world.silent("c") == [True]
    world.following = world.now = world.now + 100
    world.after(0)
    assert (world.silent("c", shown=True), world.look.news) == ([True], frozenset())


def test_agents_that_are_cut_off_at_one_moment_are_not_called_silent_one_by_one() -> None:
    world = World(*NAMES)
    for name in NAMES:
        world.after(4)
        world.renew(name)  # spread over the 20 s of a round
    world.after(0)
    for _ in range(400):
        world.after(0.25)
        assert world.silent(*NAMES) == [False] * 5
        assert world.look.news == frozenset()
    assert (world.look.census, world.look.census.most_silent) == (Census(5, 5, 0), True)
    # Some are back: more than half of them, and the others are judged one by one.
    world.renew("a", "b")
    world.after(1)
    assert (world.look.census.most_silent, world.silent("d")) == (True, [False])
    world.renew("c")
    world.after(1)
    assert world.look.census == Census(5, 2, 3)
    assert world.look.news >= {"d", "e"}
    assert world.silent(*NAMES) == [False, False, False, True, True]


def test_of_two_agents_one_can_be_silent_and_both_are_most() -> None:
    world = World("a", "b")
    world.turn("a", times=3)
    assert (world.silent("a", "b"), world.look.census.most_silent) == ([False, True], False)
    world.after(60)
    assert (world.silent("a", "b"), world.look.census.most_silent) == ([False, False], True)


def test_an_only_agent_is_judged_by_itself() -> None:
    world = World("a")
    world.after(50)
    assert (world.silent("a"), world.look.census.most_silent) == ([True], True)


def test_a_new_operator_leaves_what_is_shown_until_it_has_seen_a_renewal_or_waited_for_one() -> None:
    world = World("a", "b", "c")
    world.after(1)
    assert world.silent("a", shown=True) == [True]
    assert world.silent("a", shown=False) == [False]
    assert world.look.census.most_silent is None
    world.turn("a", "b", times=1)
    assert world.silent("a", "b", shown=True) == [False, False]
    assert world.silent("c", shown=True) == [True]
    world.turn("a", "b", times=2)
    assert world.silent("c", shown=False) == [True]


def test_who_has_no_lease_is_not_judged() -> None:
    world = World("a", "b")
    world.turn("a", "b")
    assert (world.silent("old", shown=False), world.silent("old", shown=True)) == ([False], [True])


def test_leases_of_nodes_outside_count_for_nothing_and_are_named_when_nobody_renews_them() -> None:
    world = World(*NAMES)
    world.turn(*NAMES)
    world.members = {"a", "b"}  # c renews still
    world.turn("a", "b", "c", times=3)
    assert world.look.leftover == {"d", "e"}
    assert world.look.census == Census(2, 0, 2)
    world.tracker.forget("d")
    world.turn("a", "b", "c")
    assert world.look.leftover == {"e"}


def test_only_news_ask_for_a_look() -> None:
    tracker = Tracker(TIMING)
    assert tracker.saw("a", "1", 0.0)
    assert not tracker.saw("a", "1", 1.0)
    assert tracker.saw("a", "2", 2.0), "the first renewal proves that it is alive"
    assert not tracker.saw("a", "3", 22.0)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.0, 30.0)),
        st.tuples(st.just("renew"), st.integers(0, 4)),
        st.tuples(st.just("gap"), st.floats(0.0, 120.0)),
    ),
    max_size=80,
)


@given(steps)
def test_never_early_and_never_late(moves: list[tuple[str, float]]) -> None:
    """Against a slow model: each verdict follows from the last change seen and the last gap alone."""
    world = World(*NAMES)
    last = dict.fromkeys(NAMES, world.now)
    stale: set[str] = set()
    for kind, value in moves:
        if kind == "renew":
            name = NAMES[int(value)]
            world.renew(name)
            last[name] = world.now
            stale.discard(name)
        elif kind == "gap":
            world.now += value
            world.following = world.now
        elapsed = value if kind == "wait" else 0.0
        world.after(elapsed)
        ages = {name: world.now - max(last[name], world.following) for name in NAMES}
        stale |= {name for name in NAMES if ages[name] >= TIMING.stale}
        late = stale | {name for name in NAMES if ages[name] >= TIMING.late}
        assert world.look.census.silent == len(stale)
        if len(late) * 2 > len(NAMES):
            assert world.look.news == frozenset()
            assert world.silent(*NAMES, shown=True) == [True] * 5
            assert world.silent(*NAMES, shown=False) == [False] * 5
        else:
            assert {name for name in NAMES if world.silent(name, shown=False) == [True]} == stale
        left = [TIMING.stale - age for name, age in ages.items() if name not in stale]
        assert world.look.again is None or not left or world.look.again <= max(0.0, min(left))
