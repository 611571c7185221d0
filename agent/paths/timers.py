# SPDX-License-Identifier: Apache-2.0
"""When each path needs the clock next: a heap of due times. Pure.

An entry whose time is no longer the one of its name is stale; it stays until it comes to the top, or until most are stale.
So a change costs O(log n), and a thousand paths that need nothing cost nothing.
"""

from __future__ import annotations

import heapq

NEVER = float("inf")
SLACK = 64  # stale entries that a small heap may have


class Timers:
    """Due times by name."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, name: str, due: float) -> None:
        """Take when a name is due; infinity is never."""
        if self._due.get(name, NEVER) == due:
            return
        if due == NEVER:
            del self._due[name]
            return
        self._due[name] = due
        heapq.heappush(self._heap, (due, name))
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [(at, each) for each, at in self._due.items()]
            heapq.heapify(self._heap)

    def first(self) -> float | None:
        """Return when the first one is due; None when none is."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> list[str]:
        """Take out those that are due, earliest first."""
        names = []
        while (due := self.first()) is not None and due <= now:
            names.append(heapq.heappop(self._heap)[1])
            del self._due[names[-1]]
        return names
