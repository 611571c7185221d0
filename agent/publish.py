# SPDX-License-Identifier: Apache-2.0
"""When a status may be written: what others act on at once, the rest at most every 15 s, nothing when nothing changed.

N agents that watch N Peers turn one write into N events, so the budget is kept here, in one place, as a pure decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..runtime.conditions import is_true

MIN_SECONDS = 15.0  # between writes that nobody waits for
SETTLE_SECONDS = 1.0  # changes come in bursts; one write carries them all
LONGEST_SETTLE_SECONDS = 5.0
URGENT = ("publicKey", "listenPort", "endpoint", "candidates", "nat")  # what other agents act on
AWAITED = "DataPlaneReady"  # the condition that `kubectl wait` waits for, through the operator's Ready

Status = dict[str, Any]


@dataclass
class StatusBudget:
    """Decides whether the wanted status is written now.

    Attributes:
        applied: what the API server last accepted from us; None before the first write.
        written: monotonic time of the last write that was not urgent.
        seen: the wanted status at the last question.
        first: since when the wanted status differs from the applied one.
        last: when the wanted status changed last.
    """

    applied: Status | None = None
    written: float = float("-inf")
    seen: Status | None = field(default=None, repr=False)
    first: float | None = None
    last: float = float("-inf")

    def due(self, wanted: Status, now: float) -> float | None:
        """Return when `wanted` may be written (a time <= now means at once), or None when there is nothing to write."""
        if wanted == self.applied:
            self.first = self.seen = None
            return None
        if wanted != self.seen:
            self.seen, self.last = wanted, now
        if self.first is None:
            self.first = now
        if self._urgent(wanted):
            return now
        return max(min(self.last + SETTLE_SECONDS, self.first + LONGEST_SETTLE_SECONDS), self.written + MIN_SECONDS)

    def done(self, applied: Status, now: float) -> None:
        """Note a write that the API server accepted."""
        if not self._urgent(applied):
            self.written = now
        self.applied, self.first = applied, None

    def forget(self) -> None:
        """Write again whatever is wanted: our Peer was made anew, and its status with it."""
        self.applied, self.first = None, None

    def _urgent(self, wanted: Status) -> bool:
        if self.applied is None or any(wanted.get(name) != self.applied.get(name) for name in URGENT):
            return True
        ready = (is_true(status.get("conditions") or [], AWAITED) for status in (wanted, self.applied))
        return len(set(ready)) > 1
