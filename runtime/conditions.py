# SPDX-License-Identifier: Apache-2.0
"""Kubernetes conditions as plain lists of dictionaries; pure functions that return new lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Condition = dict[str, Any]
STATUSES = ("True", "False", "Unknown")


def readable(value: object) -> list[Condition]:
    """Return what is a condition in something that should be a list of them: objects may come past their schema."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def find_condition(conditions: Iterable[Condition], type: str) -> Condition | None:
    """Return the condition of this type, or None."""
    return next((c for c in conditions if c.get("type") == type), None)


def is_true(conditions: Iterable[Condition], type: str) -> bool:
    """Whether the condition is there with the status `True`."""
    found = find_condition(conditions, type)
    return found is not None and found.get("status") == "True"


def set_condition(
    conditions: Sequence[Condition],
    type: str,
    status: str | bool,
    reason: str,
    message: str,
    generation: int,
    now_iso: str,
) -> list[Condition]:
    """Return the list with one condition set, in its place or at the end; the argument is not changed.

    `lastTransitionTime` moves only when the status changes, so that a better message does not look like a change.

    Args:
        conditions: `status.conditions` of an object.
        type: PascalCase, for example `Ready`.
        status: `True`, `False` or `Unknown`; a bool stands for its name.
        reason: CamelCase, never empty.
        message: a sentence for people; may be empty.
        generation: `metadata.generation` that this was seen at.
        now_iso: the time now, RFC 3339 in UTC, for example `2026-01-02T03:04:05Z`.

    Raises:
        ValueError: another status, or no reason: the API server would refuse the whole status.
    """
    text = str(status)
    if text not in STATUSES:
        raise ValueError(f"status of a condition is True, False or Unknown, not {text!r}")
    if not reason:
        raise ValueError(f"condition {type} needs a reason")
    old = find_condition(conditions, type)
    same = old is not None and old.get("status") == text and "lastTransitionTime" in old
    new: Condition = {
        "type": type,
        "status": text,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": old["lastTransitionTime"] if old is not None and same else now_iso,
    }
    if old is None:
        return [*conditions, new]
    return [new if c is old else c for c in conditions]
