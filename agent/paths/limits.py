# SPDX-License-Identifier: Apache-2.0
"""How many probes a node sends: a mesh must not become a port scanner, whoever writes its objects. Pure."""

from __future__ import annotations

RATE = 50.0  # probes a second
BURST = 100.0
SHARE_RATE, SHARE_BURST = (
    5.0,
    16.0,
)  # what one peer's packets make us send: five rounds from each of two or three sources


class ProbeBudget:
    """A token bucket. Pings that keep a direct leg are urgent: they are counted, and never refused."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float, *, urgent: bool = False) -> bool:
        """Take one probe out of the budget; False when there is none left."""
        if self._at > float("-inf"):
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 and not urgent:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True
