# SPDX-License-Identifier: Apache-2.0
"""Verdicts become conditions: built, compared with what is there, and told of as Events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..runtime.conditions import find_condition, set_condition
from ..runtime.objects import Object
from .kinds import conditions_of, generation_of

Status = Literal["True", "False", "Unknown"]
NOT_REQUESTED = "NotRequested"  # the reason of a condition that is True since there is nothing to judge


@dataclass(frozen=True)
class Verdict:
    """One condition without its times."""

    type: str
    status: Status
    reason: str
    message: str


def conditions(obj: Object, verdicts: Iterable[Verdict], now: str) -> list[dict[str, Any]]:
    """Return the full set of our conditions; a time of transition moves only with the status."""
    old = conditions_of(obj)
    result: list[dict[str, Any]] = []
    for verdict in verdicts:
        known = find_condition(old, verdict.type)
        start = [known] if known is not None else []
        result += set_condition(
            start, verdict.type, verdict.status, verdict.reason, verdict.message, generation_of(obj), now
        )
    return result


def unchanged(obj: Object, wanted: Sequence[dict[str, Any]], owned: Iterable[str]) -> bool:
    """Whether the object has these conditions already, and none of `owned` beside them."""
    old = conditions_of(obj)
    stay = all(find_condition(old, each["type"]) == each for each in wanted)
    extra = set(owned) - {each["type"] for each in wanted}
    return stay and not any(each.get("type") in extra for each in old)


def transitions(obj: Object, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts that are news: another status or reason than the object shows.

    Neither Unknown is news, nor that there is nothing to judge.
    """
    old = conditions_of(obj)
    news = []
    for verdict in verdicts:
        known = find_condition(old, verdict.type) or {}
        if verdict.status == "Unknown" or verdict.reason == NOT_REQUESTED:
            continue
        if (known.get("status"), known.get("reason")) != (verdict.status, verdict.reason):
            news.append(verdict)
    return news
