# SPDX-License-Identifier: Apache-2.0
"""The heap of due times against a dictionary that is scanned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.paths.timers import NEVER, SLACK, Timers

NAMES = st.sampled_from(["a", "b", "c", "d"])
TIMES = st.one_of(st.integers(0, 20).map(float), st.just(NEVER))
STEPS = st.lists(st.one_of(st.tuples(NAMES, TIMES), st.integers(0, 20).map(float)))


@given(STEPS)
def test_the_heap_says_what_a_scan_says(steps: list[tuple[str, float] | float]) -> None:
    timers, slow = Timers(), dict[str, float]()
    for step in steps:
        if isinstance(step, tuple):
            timers.set(*step)
            slow[step[0]] = step[1]
        else:
            due = sorted((at, name) for name, at in slow.items() if at <= step)
            assert timers.take(step) == [name for _, name in due]
            slow = {name: at for name, at in slow.items() if at > step}
        first = min(slow.values(), default=NEVER)
        assert timers.first() == (None if first == NEVER else first)


def test_times_that_change_all_the_time_do_not_fill_the_memory() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(f"n{number % 10}", 1e6 + number)
    assert len(timers._heap) <= 2 * 10 + SLACK
    assert timers.first() == 1e6 + 9990
