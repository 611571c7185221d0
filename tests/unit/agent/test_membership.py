# SPDX-License-Identifier: Apache-2.0
"""Who stays in the data plane when the API server stops showing Peers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.membership import HOLD_SECONDS, Membership, really_gone


def peers(*names: str) -> dict[str, Any]:
    return {name: {"metadata": {"name": name}} for name in names}


def test_a_deleted_peer_leaves_after_a_while() -> None:
    members = Membership("me")
    assert members.observe(peers("me", "a", "b"), 0.0) is None
    again = members.observe(peers("me", "a"), 10.0)
    assert again == 10.0 + HOLD_SECONDS
    assert set(members.peers) == {"me", "a", "b"}
    assert members.observe(peers("me", "a"), again) is None
    assert set(members.peers) == {"me", "a"}


def test_a_peer_that_comes_back_in_time_never_left() -> None:
    members = Membership("me")
    members.observe(peers("me", "a"), 0.0)
    members.observe(peers("me"), 1.0)
    members.observe(peers("me", "a"), 1.5)
    members.observe(peers("me"), 2.2)
    assert "a" in members.peers


def test_when_everything_vanishes_nothing_is_forgotten() -> None:
    members = Membership("me")
    members.observe(peers("me", "a", "b"), 0.0)
    for step in range(100):
        members.observe({}, 1.0 + step)
    assert set(members.peers) == {"me", "a", "b"}
    assert members.missing


def test_what_was_saved_is_used_until_the_server_is_seen() -> None:
    members = Membership("me")
    members.remember(peers("me", "old"))
    members.observe(peers("me", "new"), 0.0)
    assert set(members.peers) == {"me", "old", "new"}
    members.observe(peers("me", "new"), HOLD_SECONDS)
    assert set(members.peers) == {"me", "new"}


def test_leaving_and_joining_again() -> None:
    members = Membership("me")
    members.observe(peers("me", "a"), 0.0)
    members.observe(peers("a"), 1.0)
    assert members.missing
    members.leave()
    assert (members.peers, members.missing, members.left) == ({}, False, True)
    members.observe(peers("a"), 2.0)
    assert (members.peers, members.missing) == ({}, False)
    members.observe(peers("a", "me"), 3.0)
    assert (set(members.peers), members.left) == ({"a", "me"}, False)


def test_out_is_only_who_is_missing_while_others_are_there() -> None:
    assert really_gone("me", peers("me", "a"), peers("a"))
    assert really_gone("me", peers("me"), {})
    assert not really_gone("me", peers("me", "a"), {})
    assert not really_gone("me", peers("me", "a"), peers("me", "a"))


names = st.sets(st.sampled_from(["a", "b", "c", "d"]))


@given(st.lists(st.tuples(names, st.booleans(), st.floats(0.1, 3.0)), max_size=30))
def test_without_our_own_peer_the_set_only_grows(steps: list[tuple[set[str], bool, float]]) -> None:
    members, now = Membership("me"), 0.0
    for seen, with_me, wait in steps:
        before = set(members.peers)
        now += wait
        members.observe(peers(*seen, *(["me"] if with_me else [])), now)
        assert seen <= set(members.peers)
        if not with_me:
            assert before <= set(members.peers)
