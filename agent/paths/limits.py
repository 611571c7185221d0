# SPDX-License-Identifier: Apache-2.0
"""How many probes a node sends: a mesh must not become a port scanner, whoever writes its objects. Pure."""

from __future__ import annotations

RATE = 50.0  # probes a second
BURST = 100.0


class ProbeBudget:
    """A token bucket. Pings that keep a direct leg are urgent: they are counted, and never refused."""

    def __init__(self) -> None:
        self._tokens, self._at = BURST, float("-inf")

    def take(self, now: float, *, urgent: bool = False) -> bool:
        """Take one probe out of the budget; False when there is none left."""
        if self._at > float("-inf"):
            self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        if self._tokens < 1 and not urgent:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True
