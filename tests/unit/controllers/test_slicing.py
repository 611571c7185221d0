# SPDX-License-Identifier: Apache-2.0
"""Which Peer stands in which slice, and when a slice is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wirekube.api.v1alpha1.slice import MOST_SLICE_PEERS
from wirekube.controllers.slicing import (
    APART_SECONDS,
    GATHER_SECONDS,
    MOST_WAIT_SECONDS,
    QUIET_SECONDS,
    Pace,
    Slicing,
    peers_a_slice,
)

NAMES = st.sampled_from([f"n{number}" for number in range(60)])


class AnyHistory(RuleBasedStateMachine):
    """Peers come, change and go: each stands in one slice, and stays in it."""

    def __init__(self) -> None:
        super().__init__()
        self.slicing = Slicing()
        self.model: dict[str, int] = {}
        self.places: dict[str, str] = {}

    @rule(name=NAMES, value=st.integers(0, 3))
    def put(self, name: str, value: int) -> None:
        changed = self.slicing.put({"name": name, "generation": value})
        assert (changed is None) == (self.model.get(name) == value)
        if changed is not None:
            assert self.places.get(name, changed) == changed
            self.places[name] = changed
        self.model[name] = value

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        changed = self.slicing.remove(name)
        assert changed == self.places.pop(name, None)
        self.model.pop(name, None)

    @rule()
    def restart(self) -> None:
        again = Slicing()
        for name in self.slicing.slices():
            again.adopt(name, self.slicing.entries(name))
        self.slicing = again

    @invariant()
    def each_peer_stands_in_one_slice(self) -> None:
        found = [entry for name in self.slicing.slices() for entry in self.slicing.entries(name)]
        assert {entry["name"]: entry["generation"] for entry in found} == self.model
        assert len(found) == len(self.model) == len(self.slicing)
        assert all(0 < len(self.slicing.entries(name)) <= MOST_SLICE_PEERS for name in self.slicing.slices())


TestAnyHistory = AnyHistory.TestCase


@pytest.mark.parametrize(("peers", "most"), [(1, 1), (16, 1), (17, 2), (160, 10), (1000, 63), (1600, 100), (9999, 100)])
def test_a_mesh_has_about_sixteen_slices_until_they_are_full(peers: int, most: int) -> None:
    assert peers_a_slice(peers) == most
    slicing = Slicing()
    for number in range(peers):
        slicing.put({"name": f"n{number}"})
    assert len(slicing.slices()) <= max(17, -(-peers // MOST_SLICE_PEERS) + 1)
    assert max(len(slicing.entries(name)) for name in slicing.slices()) <= most


def test_of_slices_with_too_many_or_the_same_peers_the_first_keep_them() -> None:
    slicing = Slicing()
    slicing.adopt("peers-1", [{"name": f"n{number}"} for number in range(MOST_SLICE_PEERS + 5)])
    slicing.adopt("peers-2", [{"name": "n0", "uid": "other"}, {"name": "x"}])
    assert len(slicing.entries("peers-1")) == MOST_SLICE_PEERS
    assert slicing.entries("peers-2") == [{"name": "x"}]


def test_a_lone_change_is_written_at_once() -> None:
    pace = Pace()
    pace.change(100.0)
    assert pace.due(1000) == pytest.approx(100.0 + GATHER_SECONDS)


def test_a_second_one_waits_for_a_second() -> None:
    pace = Pace()
    pace.change(100.0)
    pace.done(100.0)
    pace.change(100.2)
    assert pace.due(6) == 100.0 + APART_SECONDS


def test_while_a_thousand_join_a_slice_is_written_rarely_and_soon_after_the_last() -> None:
    pace, now, writes = Pace(), 100.0, []
    for step in range(1000):  # for 20 s, every 20 ms
        now = 100.0 + step * 0.02
        pace.change(now)
        if pace.due(1000) <= now:
            writes.append(now)
            pace.done(now)
    assert len(writes) <= 20 / MOST_WAIT_SECONDS + 2
    if pace.first is not None:
        assert pace.due(1000) <= now + QUIET_SECONDS


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60), st.integers(1, 3000))
def test_never_more_than_one_write_a_second_and_never_later_than_the_longest_wait(
    pauses: list[float], peers: int
) -> None:
    pace, now, written = Pace(), 0.0, float("-inf")
    for pause in pauses:
        later = now + pause
        if pace.first is not None and (due := pace.due(peers)) <= later:
            assert due >= written + APART_SECONDS
            assert due <= max(written + APART_SECONDS, pace.first + MOST_WAIT_SECONDS)
            written = due
            pace.done(due)
        now = later
        pace.change(now)
