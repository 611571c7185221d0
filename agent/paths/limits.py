# SPDX-License-Identifier: Apache-2.0
"""How many probes a node sends: a mesh must not become a port scanner, whoever writes its objects. Pure.

Limited is what goes to addresses that have not answered yet: the search, all peers together, and what one peer's packets
make us ask back, each peer for itself. Pings that keep a proven address are not: they are as many as there are paths,
and must neither wait nor make the search wait.
"""

from __future__ import annotations

RATE, BURST = 50.0, 100.0  # of the search, probes a second and at once
SHARE_RATE, SHARE_BURST = 5.0, 16.0  # of one peer: five rounds of an attempt from each of two or three sources
_ROUNDING = 1e-6  # of a token: who comes exactly at `ready` is not sent away


class ProbeBudget:
    """A token bucket.

    Args:
        rate: probes a second.
        burst: probes at once after a pause.
    """

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float) -> bool:
        """Take one probe out of the budget; False when there is none left."""
        if self._at > float("-inf"):
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 - _ROUNDING:
            return False
        self._tokens -= 1
        return True

    def ready(self) -> float:
        """Return when there is one again."""
        return self._at + max(0.0, 1 - self._tokens) / self._rate
