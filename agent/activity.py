# SPDX-License-Identifier: Apache-2.0
"""Which pairs carry traffic, by WireGuard's own counters. Pure.

Keepalives (32 bytes) and handshakes are not traffic: a path that carries nothing else may be asked rarely.
"""

from __future__ import annotations

from collections.abc import Mapping

from .wireguard.device import PeerStats

HANDSHAKE_BYTES = 148 + 92 + 32  # initiation, response, and the keepalive that confirms it; each side counts its part
KEEPALIVE_BYTES = 32
HOLD_SECONDS = 10.0  # a short pause does not make a pair idle


class Activity:
    """Compares each reading of the counters with the one before.

    Attributes:
        sent: the keys to which more than keepalives went between the last two readings.
        received: the keys from which something came between the last two readings, were it only a keepalive.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, PeerStats] = {}
        self._busy: dict[bytes, float] = {}
        self.sent: frozenset[bytes] = frozenset()
        self.received: frozenset[bytes] = frozenset()

    def update(self, stats: Mapping[bytes, PeerStats], now: float) -> dict[bytes, bool]:
        """Return which keys carry traffic; `now` is monotonic seconds."""
        sent, received = set(), set()
        for key, each in stats.items():
            before = self._last.get(key)
            if before is None:
                continue
            got, went, allowance = (
                each.rx_bytes - before.rx_bytes,
                each.tx_bytes - before.tx_bytes,
                _allowance(before, each),
            )
            if got > 0:
                received.add(key)
            if went > allowance:
                sent.add(key)
            if max(got, went) > allowance:
                self._busy[key] = now
        self.sent, self.received = frozenset(sent), frozenset(received)
        self._last = dict(stats)
        self._busy = {key: at for key, at in self._busy.items() if key in stats and now - at < HOLD_SECONDS}
        return {key: key in self._busy for key in stats}


def _allowance(before: PeerStats, now: PeerStats) -> int:
    shaken = now.last_handshake != before.last_handshake
    return KEEPALIVE_BYTES + HANDSHAKE_BYTES if shaken else KEEPALIVE_BYTES
