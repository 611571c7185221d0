# SPDX-License-Identifier: Apache-2.0
"""What was heard is not heard again: the memory of counters that receivers of probes and signals keep. Pure.

A sender has a session, random at its start, and counts its messages. A receiver takes each counter of a session once, and
remembers the last few sessions of each sender. A session that follows does not end the one before, so nobody who plays a
recording locks the living out; and one that is new is taken at once, so nobody waits for a peer that was restarted.

What remains: after its own restart, or of more sessions than it remembers, a receiver takes a recording for news, once.
"""

from __future__ import annotations

REMEMBERED_SESSIONS = 64


class Replays:
    """The counters that were heard, by sender and session.

    Args:
        window: how far a counter may lie behind the highest one: 1 takes only rising ones.
    """

    def __init__(self, window: int) -> None:
        self._window, self._mask = window, (1 << window) - 1
        # Highest counter, and a bit for each counter below it, the lowest bit for itself; the session heard last is last.
        self._heard: dict[bytes, dict[bytes, tuple[int, int]]] = {}

    def is_new(self, sender: bytes, session: bytes, counter: int) -> bool:
        """Take an authentic message; False when it was taken before, or is too old to tell."""
        sessions = self._heard.setdefault(sender, {})
        top, seen = sessions.get(session, (0, 0))
        if counter > top:
            ahead = counter - top
            top, seen = counter, (seen << ahead & self._mask if ahead < self._window else 0) | 1
        elif top - counter >= self._window or seen >> (top - counter) & 1:
            return False
        else:
            seen |= 1 << (top - counter)
        sessions.pop(session, None)
        sessions[session] = top, seen
        if len(sessions) > REMEMBERED_SESSIONS:
            del sessions[next(iter(sessions))]
        return True

    def sessions(self, sender: bytes) -> int:
        """Return how many sessions of a sender are remembered."""
        return len(self._heard.get(sender, ()))
