# SPDX-License-Identifier: Apache-2.0
"""Whether a session is alive. Pure state."""

from __future__ import annotations

from typing import Final


class Liveness:
    """When to ping, and when a session is dead. All times are monotonic seconds.

    While something was sent and nothing has come since, pings go each second and the session is dead after three; an
    idle session is pinged every 7 s, so it is found dead within 10.
    """

    IDLE: Final = 7.0
    BUSY: Final = 1.0
    DEAD: Final = 3.0

    def __init__(self, now: float) -> None:
        self._pinged = now
        self._sent_since_ping = False
        self._waiting: float | None = None

    def sent(self, now: float) -> None:
        """Something was handed to the session."""
        self._sent_since_ping = True
        if self._waiting is None:
            self._waiting = now

    def heard(self) -> None:
        """Something came, or a full socket took more: the other end acknowledges bytes."""
        self._waiting = None

    def dead(self, now: float) -> bool:
        """Tell whether to give the session up."""
        return self._waiting is not None and now - self._waiting >= self.DEAD

    def ping_due(self, now: float) -> bool:
        """Tell whether to ping now; when it is, the ping counts as sent."""
        busy = self._sent_since_ping or self._waiting is not None
        if now - self._pinged < (self.BUSY if busy else self.IDLE):
            return False
        self._pinged = now
        self._sent_since_ping = False
        if self._waiting is None:
            self._waiting = now
        return True

    def wait(self, now: float) -> float:
        """Return how long to sleep before looking again: half a second, or until the session would be dead."""
        return 0.5 if self._waiting is None else min(0.5, max(0.01, self._waiting + self.DEAD - now))
