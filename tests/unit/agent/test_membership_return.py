# SPDX-License-Identifier: Apache-2.0
"""How Peers come back that were all deleted by accident: one by one, without a status, and nobody leaves meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from wirekube.agent.membership import HOLD_SECONDS, RETURN_SECONDS, Membership


def peer(name: str, uid: str, key: str | None = None, verdict: str | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"metadata": {"name": name, "uid": uid}}
    status: dict[str, Any] = {"publicKey": key} if key else {}
    if verdict:
        status["conditions"] = [{"type": "KeyAccepted", "status": verdict, "message": key or ""}]
    return made | ({"status": status} if status else {})


ME, A, B = peer("me", "1", "m", "True"), peer("a", "2", "k", "True"), peer("b", "3", "l", "True")
ME2, A2 = peer("me", "4", "m", "True"), peer("a", "5")


@pytest.fixture
def members() -> Membership:
    """After all Peers were deleted."""
    made = Membership("me")
    made.observe({"me": ME, "a": A, "b": B}, 0.0)
    made.observe({}, 100.0)
    return made


def test_who_is_not_back_yet_gets_a_minute_from_our_own_return_on(members: Membership) -> None:
    members.observe({}, 5000.0)
    again = members.observe({"me": ME2}, 5000.0 + HOLD_SECONDS)
    assert again == 5000.0 + RETURN_SECONDS
    assert set(members.peers) == {"me", "a", "b"}
    members.observe({"me": ME2, "a": A2}, 5010.0)
    assert members.observe({"me": ME2, "a": A2}, again) is None
    assert set(members.peers) == {"me", "a"}


def test_a_peer_without_a_key_keeps_the_old_status_and_has_the_new_spec(members: Membership) -> None:
    newborn = A2 | {"spec": {"addresses": ["198.18.0.9/32"]}}
    for now in (101.0, 102.0):
        members.observe({"me": ME2, "a": newborn}, now)
        assert members.peers["a"] == newborn | {"status": A["status"]}


def test_the_new_status_counts_once_it_has_a_key(members: Membership) -> None:
    members.observe({"me": ME2, "a": A2}, 101.0)
    new = peer("a", "5", "other", "Unknown")
    members.observe({"me": ME2, "a": new}, 102.0)
    assert members.peers["a"] == new
    members.observe({"me": ME2, "a": A2}, 103.0)
    assert members.peers["a"] == A2 | {"status": new["status"]}


def test_a_peer_that_was_replaced_at_once_does_not_leave() -> None:
    members = Membership("me")
    members.observe({"me": ME, "a": A}, 0.0)
    members.observe({"me": ME, "a": A2}, 1.0)
    assert members.peers["a"]["status"] == A["status"]


def test_a_peer_that_had_left_starts_afresh() -> None:
    members = Membership("me")
    members.observe({"me": ME, "a": A}, 0.0)
    members.observe({"me": ME, "a": A2}, 1.0)
    members.observe({"me": ME}, 2.0)
    members.observe({"me": ME}, 2.0 + HOLD_SECONDS)
    members.observe({"me": ME, "a": peer("a", "6")}, 4.0)
    assert "status" not in members.peers["a"]


def test_our_own_peer_is_shown_as_it_is_for_its_status_is_ours_to_write() -> None:
    members = Membership("me")
    members.observe({"me": ME, "a": A}, 0.0)
    members.observe({"me": peer("me", "1"), "a": A}, 1.0)
    assert members.peers["me"] == peer("me", "1")


def test_garbage_in_a_status_is_passed_on() -> None:
    members = Membership("me")
    members.observe({"me": ME, "a": A}, 0.0)
    for status in ("text", ["list"], {"publicKey": 7, "conditions": "none"}, {"publicKey": "k", "conditions": ["x"]}):
        members.observe({"me": ME, "a": {**A2, "status": status}}, 1.0)
