# SPDX-License-Identifier: Apache-2.0
"""When a status may be written: transitions at once, counts at most every 15 s, nothing when nothing changed.

N agents that watch N Peers turn one write into N events, so the budget is kept here, in one place, as a pure decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIN_SECONDS = 15.0  # between writes that nobody waits for
SETTLE_SECONDS = 1.0  # changes come in bursts; one write carries them all
URGENT = ("publicKey", "listenPort", "endpoint", "candidates", "nat")  # what other agents act on

Status = dict[str, Any]


@dataclass
class StatusBudget:
    """Decides whether the wanted status is written now.

    Attributes:
        applied: what the API server last accepted from us; None before the first write.
        written: monotonic time of the last write.
        changed: since when the wanted status differs from the applied one.
    """

    applied: Status | None = None
    written: float = float("-inf")
    changed: float | None = field(default=None)

    def due(self, wanted: Status, now: float) -> float | None:
        """Return when `wanted` may be written (a time <= now means at once), or None when there is nothing to write."""
        if wanted == self.applied:
            self.changed = None
            return None
        if self.changed is None:
            self.changed = now
        if self.applied is None or any(wanted.get(name) != self.applied.get(name) for name in URGENT):
            return now
        return max(self.changed + SETTLE_SECONDS, self.written + MIN_SECONDS)

    def done(self, applied: Status, now: float) -> None:
        """Note a write that the API server accepted."""
        self.applied, self.written, self.changed = applied, now, None

    def forget(self) -> None:
        """Write again whatever is wanted: our Peer was made anew, and its status with it."""
        self.applied, self.changed = None, None
