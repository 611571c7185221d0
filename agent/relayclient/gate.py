# SPDX-License-Identifier: Apache-2.0
"""What may be handed to the relay for a peer, and what waits. Pure state."""

from __future__ import annotations

from typing import Final

INITIATION: Final = b"\x01\x00\x00\x00"
INITIATION_SIZE: Final = 148
RESPONSE: Final = b"\x02\x00\x00\x00"
RESPONSE_SIZE: Final = 92


def is_initiation(packet: memoryview | bytes) -> bool:
    """Tell whether a datagram is WireGuard's first handshake message."""
    return len(packet) == INITIATION_SIZE and bytes(packet[:4]) == INITIATION


def is_response(packet: memoryview | bytes) -> bool:
    """Tell whether a datagram is WireGuard's second handshake message."""
    return len(packet) == RESPONSE_SIZE and bytes(packet[:4]) == RESPONSE


def opens(own: bytes, peer: bytes) -> bool:
    """Tell whether this side starts the handshake of a pair, by the order of the two public keys.

    Both sides go direct within milliseconds of each other. If both start then, each becomes the other's responder, both
    answers are for nobody, and WireGuard tries again after 5 s only.
    """
    return own < peer


class Gate:
    """Holds a peer's packets back until the peer is present and its agent knows our key.

    WireGuard repeats a lost handshake only after 5 s, so its newest message (initiation or response) is kept instead of
    being sent to nobody. With several relay processes the peer is present as long as one of them has both of us; then it
    is gone, and the gate closes: the agent that comes back may know nothing.

    Two initiations that cross are both lost: each side takes the other's and forgets its own, so neither takes the
    response. Both sides learn of each other at about the same time, so one of them yields: until the handshake is done
    it keeps an initiation for a while, and forgets it when the other's has come: also one that left WireGuard just then.

    Args:
        first: whether our initiation goes before the peer's; the other side has the opposite.

    Attributes:
        yielding: the gate is open, but initiations still wait: for the peer's handshake, or for `end_yield`.
    """

    def __init__(self, first: bool = True) -> None:
        self._first = first
        self._present = False
        self._released = False
        self._held: bytes | None = None
        self._theirs = False
        self.yielding = False

    @property
    def open(self) -> bool:
        """Whether packets pass; while it yields, all but initiations."""
        return self._present and self._released

    @property
    def waiting(self) -> bool:
        """Whether `end_yield` is to be called after a while: an initiation waits, or the other side's has come."""
        return self.yielding and (self._theirs or self._held is not None)

    @property
    def _void(self) -> bool:
        """Whether what is held must not be sent now: an initiation of the side that yields."""
        return self.yielding and self._held is not None and is_initiation(self._held)

    def hold(self, train: memoryview, segment: int) -> int:
        """Keep the newest handshake message of a train (segment 0: one datagram); return how many others were dropped."""
        step = segment or max(1, len(train))
        dropped = 0
        for start in range(0, len(train), step):
            packet = train[start : start + step]
            if is_initiation(packet) or is_response(packet):
                self._held = bytes(packet)
            else:
                dropped += 1
        return dropped

    def take(self) -> bytes | None:
        """Return the held message, once."""
        held, self._held = self._held, None
        return held

    def present(self) -> bytes | None:
        """The relay reports the peer; return what is to be sent now, if anything."""
        return self._opened(present=True)

    def release(self) -> bytes | None:
        """The peer's agent knows our key; return what is to be sent now, if anything."""
        return self._opened(released=True)

    def heard(self, packet: memoryview) -> bytes | None:
        """A packet of the peer's WireGuard came: it is there and knows our key; return what is to be sent now."""
        self._present = True
        if is_initiation(packet):
            self.theirs()
            return None
        self._released = True
        return self.end_yield()

    def theirs(self) -> None:
        """Our WireGuard has the peer's initiation, on whatever leg it came: ours is void, and the peer's knows our key."""
        yields = not self._first and (self.yielding or not self.open)
        self._held, self._released, self._theirs, self.yielding = None, True, yields, yields

    def end_yield(self) -> bytes | None:
        """The other side had its time, or answers; return what is to be sent now, if anything."""
        if self._theirs and self._void:
            self._held = None
        self._theirs = self.yielding = False
        return self.take() if self.open else None

    def close(self) -> None:
        """The peer, or all of our sessions, are gone."""
        self._present = self._released = self._theirs = self.yielding = False

    def _opened(self, *, present: bool = False, released: bool = False) -> bytes | None:
        before = self.open
        self._present, self._released = self._present or present, self._released or released
        if self.open and not before:
            self.yielding = not self._first
        return self.take() if self.open and not self._void else None
