# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the control plane makes of its figures."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.lab.bench_controlplane import Figures, lines, percentile
from wirekube.lab.idle import Usage


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_that_part_below_it(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values)


def figures(**more: object) -> Figures:
    use = {"operator": Usage(1.0, 90.0, 80.0), "agent": Usage(1.0, 75.0, 60.0)}
    later = {"operator": Usage(1.6, 250.0, 80.0), "agent": Usage(1.0, 75.0, 60.0)}
    requests = Counter({("APPLY", "leases"): 180, ("APPLY", "wirekubepeers/status"): 2})
    known = {"count": 10, "labelling": 0.1, "joined": 5.0, "join_cpu": {"operator": 1.0}, "changes": (0.1, 0.2)}
    known |= {"a_change": (2.0, 10.0, 0.01), "idle": 60.0, "requests": requests, "events": 60, "changed": ()}
    return Figures(**(known | {"before": use, "after": later} | more))  # type: ignore[arg-type]


def test_aims_that_are_missed_say_so() -> None:
    text = "\n".join(lines([figures()]))
    assert "joined after 5.0 s   (aim: at most 30, reached)" in text
    assert "operator: 250 MiB resident   (aim: at most 200, MISSED)" in text
    assert "writes to watched objects in 60 s: 2   (aim: at most 0, MISSED)" in text


def test_rates_are_those_of_one_node_in_an_hour() -> None:
    (row,) = [line for line in lines([figures()]) if "renewals of Leases" in line]
    assert float(row.split()[-1]) == pytest.approx(180 * 60 / 10, abs=1)
