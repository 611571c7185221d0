# SPDX-License-Identifier: Apache-2.0
"""Watching the direct leg in use: is it still there? Pure.

    ping, answered, ping ...      each second while there is traffic, each 25 s while there is none
    ping, no answer               the leg is in doubt after max(3 RTT, 200 ms): pings go every 200 ms
    three more silences           it is dead, at most 1.8 s after it died (RTTs up to 66 ms)

A pong proves both directions, so a leg that lost one of them is found dead by both sides. Any pong of the leg ends the
doubt. While it lasts, another proven address takes over at once.

A dead leg is left only where there is something else. A peer whose agent is being restarted has no relay session either,
while its WireGuard goes on: without one the leg stays, asked each second, as long as WireGuard receives something from
the peer within 35 s.
"""

from __future__ import annotations

from .node import Node
from .record import Path, Sent

PING_ACTIVE, PING_IDLE, PING_FAST = 1.0, 25.0, 0.2
ANSWER_FACTOR, ANSWER_LEAST = 3.0, 0.2  # an answer is due after max(3 RTT, 200 ms)
SILENCES = 4  # the one that raised the doubt, and three in a row after it
PATIENCE = 35.0  # without a relay to move to, a leg on which WireGuard's keepalives (25 s) still come is kept


def answered(path: Path, now: float) -> None:
    """Take a pong of the leg."""
    path.fast, path.unanswered, path.keep, path.next_retry = False, 0, None, None
    path.next_keep = now + (PING_ACTIVE if path.active else PING_IDLE)


def soon(path: Path, now: float) -> None:
    """Ask the leg at once, if it is not being asked."""
    if path.keep is None:
        path.next_keep = min(path.next_keep, now)


def fresh_chance(path: Path, now: float) -> None:
    """Begin anew with a leg in doubt: the peer's agent has just come back, and can answer."""
    if path.unanswered:
        path.unanswered, path.keep, path.next_keep = 0, None, now


def in_doubt(path: Path) -> bool:
    """Tell whether the last ping of the leg was not answered in time."""
    return path.unanswered > 0


def silent(path: Path) -> bool:
    """Tell whether a leg is in use that has not answered for long: there is nothing better."""
    return path.direct is not None and path.unanswered >= SILENCES


def due(path: Path) -> float | None:
    """Return when the leg needs the clock next; None without one."""
    if path.direct is None:
        return None
    return path.next_keep if path.keep is None else _silent_at(path, path.keep)


def advance(node: Node, path: Path, now: float) -> bool:
    """Do what is due; return True when the leg is dead."""
    if path.direct is None:
        return False
    if path.keep is not None and _silent_at(path, path.keep) <= now:
        path.unanswered += 1
        path.fast, path.keep, path.next_keep = True, None, now
        if path.unanswered >= SILENCES:
            if path.present or now - path.alive > PATIENCE:
                return True
            path.fast, path.next_keep = False, now + PING_ACTIVE
    if path.keep is None and path.next_keep <= now:
        node.ping(path, path.direct, now)
        path.keep = Sent(path.direct, now)
    return False


def _silent_at(path: Path, ping: Sent) -> float:
    """Return when a ping counts as unanswered."""
    rtt = path.addresses[ping.to].rtt
    return ping.at + (max(rtt, PING_FAST) if path.fast else max(ANSWER_FACTOR * rtt, ANSWER_LEAST))
