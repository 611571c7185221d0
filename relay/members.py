# SPDX-License-Identifier: Apache-2.0
"""Whom a cluster's Peers admit: the keys that the operator has accepted. Pure.

A key that is refused, or that gives way to another one, leaves at once. A Peer that vanishes takes its key with it
after two seconds, and only while a Peer with an accepted key is still there: when all vanish, that is an accident (the
CRD was deleted, say), and the mesh stays up on every node. Peers that are made anew have no status for a moment; until
they are judged, what was known of them stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..api.reading import Object, Reading, read_peer

HOLD_SECONDS: Final = 2.0

Standing = Literal["accepted", "refused", "unjudged", "gone"]


@dataclass(frozen=True)
class News:
    """What the API server shows of one Peer; `key` is what it publishes, 32 bytes, or None."""

    name: str
    standing: Standing
    key: bytes | None = None


def news_of(name: str, peer: Object | None) -> News:
    """Read one Peer; None is one that was deleted, and a malformed one is refused."""
    if peer is None:
        return News(name, "gone")
    reading = read_peer(peer)
    if not isinstance(reading, Reading):
        return News(name, "refused")
    if reading.accepted:
        return News(name, "accepted", reading.key)
    return News(name, "refused" if reading.judged else "unjudged", reading.key or None)


class Members:
    """The admitted keys, by Peer."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._going: dict[str, float] = {}  # a subset of `_keys`: when the key of a Peer that vanished leaves

    def take(self, news: News, now: float) -> None:
        """Take one piece of news; `now` is monotonic seconds."""
        if news.standing == "gone":
            if news.name in self._keys:
                self._going[news.name] = now + HOLD_SECONDS
            return
        self._going.pop(news.name, None)
        known = self._keys.pop(news.name, None)
        if news.standing == "accepted" and news.key is not None:
            self._keys[news.name] = news.key
        elif news.standing == "unjudged" and known is not None and news.key in {None, known}:
            self._keys[news.name] = known

    def admitted(self, now: float) -> frozenset[bytes]:
        """Return the keys that are admitted now."""
        if len(self._going) < len(self._keys):
            for name in [name for name, due in self._going.items() if due <= now]:
                del self._keys[name], self._going[name]
        return frozenset(self._keys.values())
