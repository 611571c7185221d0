# SPDX-License-Identifier: Apache-2.0
"""Which Peers the data plane keeps: what the API server shows, but not all that it stops showing. Pure.

A Peer leaves only when it is seen to be deleted while our own Peer is there, and has stayed away for a second. So what
removes everything at once (the CRD deleted by accident, an empty list, a lost right) removes nothing here: our own Peer
goes with the others, and from then on nothing is forgotten until `leave` says that we are really out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]

HOLD_SECONDS = 1.0


class Membership:
    """The Peers of the mesh as one node believes them.

    Args:
        own: name of our own Peer.

    Attributes:
        peers: what the data plane uses, by name, our own among them; empty once we have left.
        missing: our own Peer should be there and is not: ask about it.
        left: it was asked, and this node is not in the mesh.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._vanished: dict[str, float] = {}
        self.peers: dict[str, Object] = {}
        self.missing = False
        self.left = False

    def remember(self, peers: Mapping[str, Object]) -> None:
        """Start from what was saved on disk; objects that were seen already are newer."""
        self.peers = {**peers, **self.peers}

    def observe(self, seen: Mapping[str, Object], now: float) -> float | None:
        """Take what the API server shows; return when to call again though nothing changes, None for never."""
        self.left = self.left and self._own not in seen
        self.missing = self._own not in seen and not self.left
        if self.left:
            return None
        self.peers.update(seen)
        gone = self.peers.keys() - seen.keys()
        self._vanished = {name: self._vanished.get(name, now) for name in gone}
        if self.missing:
            return None
        for name, since in list(self._vanished.items()):
            if now - since >= HOLD_SECONDS:
                del self.peers[name], self._vanished[name]
        return min(self._vanished.values()) + HOLD_SECONDS if self._vanished else None

    def leave(self) -> None:
        """Forget everything: our own Peer is really gone."""
        self.peers, self._vanished, self.missing, self.left = {}, {}, False, True


def really_gone(own: str, kept: Mapping[str, Object], listed: Mapping[str, Object]) -> bool:
    """Tell whether we are out, once a GET has said that our own Peer does not exist.

    Args:
        own: name of our own Peer.
        kept: what the data plane uses.
        listed: a complete list of the API server.

    Returns:
        False when every Peer is gone and there were others: that was an accident, and the mesh stays up.
    """
    if own in listed:
        return False
    return bool(listed) or not (kept.keys() - {own})
