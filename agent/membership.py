# SPDX-License-Identifier: Apache-2.0
"""Which Peers the data plane keeps: what the API server shows, but not all that it stops showing. Pure.

A Peer leaves only when it is seen to be deleted while our own Peer is there, and has stayed away for two seconds. So what
removes everything at once (the CRD deleted by accident, an empty list, a lost right) removes nothing here: our own Peer
goes with the others, and from then on nothing is forgotten until `leave` says that we are really out.

Such an accident ends with Peers that are made anew, one by one and without a status. Who is not back yet gets a minute,
and a Peer without a key keeps the status of the old one (its key, where it is reached) until its agent has published
again; no agent takes its key back. So the way back takes nothing out of the data plane either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]

HOLD_SECONDS = 2.0  # the API server needs seconds to delete a thousand objects
RETURN_SECONDS = 60.0  # after our own Peer came back, for those that went with it


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
        self._vanished: dict[str, float] = {}  # when each Peer that is not seen any more leaves
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
        self.peers.update({name: self._with_status(name, peer) for name, peer in seen.items()})
        gone = self.peers.keys() - seen.keys()
        if self.missing:
            self._vanished = dict.fromkeys(gone, now + RETURN_SECONDS)
            return None
        self._vanished = {name: self._vanished.get(name, now + HOLD_SECONDS) for name in gone}
        for name in [name for name, due in self._vanished.items() if due <= now]:
            del self.peers[name], self._vanished[name]
        return min(self._vanished.values(), default=None)

    def _with_status(self, name: str, peer: Object) -> Object:
        """Return a Peer with the status to act on: one without a key keeps what was known of it, but for our own."""
        known = self.peers.get(name)
        if known is None or name == self._own or _published(peer) or not _published(known):
            return peer
        return {**peer, "status": known["status"]}

    def leave(self) -> None:
        """Forget everything: our own Peer is really gone."""
        self.peers, self._vanished, self.missing, self.left = {}, {}, False, True


def _published(peer: Object) -> bool:
    status = peer.get("status")
    return isinstance(status, dict) and bool(status.get("publicKey"))


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
