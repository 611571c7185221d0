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
        received: the keys from which something came between the last two readings, were it only a keepalive.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, PeerStats] = {}
        self._busy: dict[bytes, float] = {}
        self.received: frozenset[bytes] = frozenset()

    def update(self, stats: Mapping[bytes, PeerStats], now: float) -> dict[bytes, bool]:
        """Return which keys carry traffic; `now` is monotonic seconds."""
        for key, each in stats.items():
            before = self._last.get(key)
            if before is not None and _moved(before, each):
                self._busy[key] = now
        self.received = frozenset(
            key for key, each in stats.items() if key in self._last and each.rx_bytes > self._last[key].rx_bytes
        )
        self._last = dict(stats)
        self._busy = {key: at for key, at in self._busy.items() if key in stats and now - at < HOLD_SECONDS}
        return {key: key in self._busy for key in stats}


def _moved(before: PeerStats, now: PeerStats) -> bool:
    allowance = KEEPALIVE_BYTES
    if now.last_handshake != before.last_handshake:
        allowance += HANDSHAKE_BYTES
    received, sent = now.rx_bytes - before.rx_bytes, now.tx_bytes - before.tx_bytes
    return received > allowance or sent > allowance
