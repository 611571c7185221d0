# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.publish import AWAITED, LONGEST_SETTLE_SECONDS, MIN_SECONDS, SETTLE_SECONDS, URGENT, StatusBudget

BASE: dict[str, Any] = {"publicKey": "k", "peers": {"direct": 1}}


def written(status: dict[str, Any], now: float) -> StatusBudget:
    """A budget whose last write was of counts alone."""
    budget = StatusBudget()
    budget.done(status | {"peers": {}}, now - MIN_SECONDS)
    budget.done(status, now)
    return budget


def test_the_first_status_is_due_at_once() -> None:
    assert StatusBudget().due(BASE, 5.0) == 5.0


def test_nothing_is_due_when_nothing_changed() -> None:
    assert written(BASE, 5.0).due(dict(BASE), 100.0) is None


@pytest.mark.parametrize("name", URGENT)
def test_what_others_act_on_is_written_at_once(name: str) -> None:
    assert written(BASE, 5.0).due(BASE | {name: "new"}, 5.1) == 5.1
    assert written(BASE | {name: "old"}, 5.0).due({"peers": BASE["peers"]}, 5.1) == 5.1


def test_counts_wait_for_fifteen_seconds() -> None:
    assert written(BASE, 5.0).due(BASE | {"peers": {"direct": 2}}, 6.0) == 5.0 + MIN_SECONDS


def test_changes_come_in_bursts_and_one_write_carries_them() -> None:
    budget = written(BASE, 0.0)
    assert budget.due(BASE | {"peers": {"direct": 2}}, 100.0) == 100.0 + SETTLE_SECONDS
    assert budget.due(BASE | {"peers": {"direct": 3}}, 100.5) == 100.5 + SETTLE_SECONDS


def test_a_status_that_never_settles_is_written_all_the_same() -> None:
    budget = written(BASE, 0.0)
    due = [budget.due(BASE | {"peers": {"direct": n}}, 100.0 + n / 2) for n in range(2, 40)]
    assert due[-1] == 101.0 + LONGEST_SETTLE_SECONDS


def test_an_urgent_write_does_not_hold_up_the_counts() -> None:
    budget = written(BASE, 0.0)
    budget.done(BASE | {"nat": {}}, 20.0)
    assert budget.due(BASE | {"nat": {}, "peers": {"direct": 2}}, 21.0) == 21.0 + SETTLE_SECONDS


def test_readiness_is_waited_for() -> None:
    ready = {"conditions": [{"type": AWAITED, "status": "True"}]}
    assert written(BASE, 5.0).due(BASE | ready, 5.1) == 5.1
    assert written(BASE | ready, 5.0).due(BASE, 5.1) == 5.1
    other = {"conditions": [{"type": "Other", "status": "True"}]}
    assert written(BASE, 5.0).due(BASE | other, 5.1) == 5.0 + MIN_SECONDS


def test_a_change_that_was_taken_back_is_forgotten() -> None:
    budget = written(BASE, 0.0)
    budget.due(BASE | {"peers": {"direct": 2}}, 100.0)
    assert budget.due(BASE, 100.2) is None
    assert budget.due(BASE | {"peers": {"direct": 3}}, 200.0) == 200.0 + SETTLE_SECONDS


def test_a_peer_that_was_made_anew_gets_its_status_again() -> None:
    budget = written(BASE, 0.0)
    budget.forget()
    assert budget.due(BASE, 1.0) == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(0, 3)), max_size=60))
def test_counts_alone_are_written_at_most_every_fifteen_seconds_and_never_lost(steps: list[tuple[float, int]]) -> None:
    budget, now, writes = written(BASE, 0.0), 0.0, [0.0]
    wanted = BASE
    for wait, count in [*steps, (20.0, 4)]:
        now += wait
        wanted = BASE | {"peers": {"direct": count}}
        due = budget.due(wanted, now)
        if due is not None and due <= now:
            budget.done(wanted, now)
            writes.append(now)
    assert all(b - a >= MIN_SECONDS for a, b in itertools.pairwise(writes))
    due = budget.due(wanted, now)
    assert due is None or due <= now + MIN_SECONDS
