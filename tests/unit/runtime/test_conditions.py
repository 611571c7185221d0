# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from wirekube.runtime.conditions import is_true, set_condition

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def test_time_moves_only_with_the_status() -> None:
    first = set_condition([], "Ready", "True", "Up", "all is well", 1, EARLY)
    second = set_condition(first, "Ready", True, "StillUp", "better words", 2, LATE)
    third = set_condition(second, "Ready", False, "Down", "", 2, LATE)
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == [EARLY, EARLY, LATE]
    assert (second[0]["reason"], second[0]["observedGeneration"]) == ("StillUp", 2)
    assert first[0]["reason"] == "Up"


def test_order_and_other_conditions_stay() -> None:
    both = set_condition(set_condition([], "A", "True", "X", "", 1, EARLY), "B", "Unknown", "Y", "", 1, EARLY)
    changed = set_condition(both, "A", "False", "Z", "", 1, LATE)
    assert [c["type"] for c in changed] == ["A", "B"]
    assert is_true(both, "A")
    assert not is_true(changed, "A")
    assert not is_true(changed, "C")


@pytest.mark.parametrize(("status", "reason"), [("true", "R"), ("True", "")])
def test_what_the_server_would_refuse(status: str, reason: str) -> None:
    with pytest.raises(ValueError, match="condition"):
        set_condition([], "Ready", status, reason, "", 1, EARLY)
