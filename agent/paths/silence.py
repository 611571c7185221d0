# SPDX-License-Identifier: Apache-2.0
"""WireGuard's own word about the direct leg: it sends, and hears nothing. Pure.

    sent ── sent ── sent ... 17 s without anything received ──> the leg is left, its address is held for 2, 4 ... 60 min,
                                                                the peer is told, and does the same

Probes may pass where WireGuard's packets do not: their kind is filtered, large ones get lost, their source is another.
WireGuard answers whatever it was sent within 10 s, by a keepalive if by nothing else, and starts a handshake when 15 s
went by without an answer. So 17 s say more than one lost keepalive.

Which of the two directions is dead cannot be seen here. The one that hears nothing tells the other over the relay, for it
may be the only one that knows: the other still hears its handshakes.

The hold keeps a path that answers probes from being taken again at once. It ends early when something has changed: other
candidates, another network.
"""

from __future__ import annotations

from ...wire.endpoint import Endpoint
from .record import Hold, Path

SILENT_SECONDS = 17.0
PAUSE_SECONDS = (
    20.0  # who sent nothing for so long starts anew; handshakes alone are sent every 5 s, the first after 15
)
FIRST_HOLD, LONGEST_HOLD = 120.0, 3600.0


def sent(path: Path, now: float) -> bool:
    """Take that WireGuard has sent more than keepalives; True when the direct leg is to be left.

    Without a relay that has the peer it is kept: there is nothing better.
    """
    if path.unheard is None or now - path.sent > PAUSE_SECONDS:
        path.unheard = now
    path.sent = now
    return path.direct is not None and path.present and now - path.unheard >= SILENT_SECONDS


def received(path: Path) -> None:
    """Take that WireGuard has received something."""
    path.unheard = None


def hold(path: Path, endpoint: Endpoint, now: float) -> None:
    """Keep an address from being used: longer each time, unless the last time is long ago."""
    last = path.held.get(endpoint)
    again = last is not None and now - last.until < last.seconds
    seconds = min(2 * last.seconds, LONGEST_HOLD) if last is not None and again else FIRST_HOLD
    path.held[endpoint] = Hold(now + seconds, seconds)


def is_held(path: Path, endpoint: Endpoint, now: float) -> bool:
    """Tell whether an address is not to be used yet."""
    held = path.held.get(endpoint)
    return held is not None and now < held.until


def release(path: Path) -> None:
    """Forget all holds: something has changed."""
    path.held.clear()
