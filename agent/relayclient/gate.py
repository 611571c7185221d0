# SPDX-License-Identifier: Apache-2.0
"""Pure state: what may be handed to the relay for a peer, when to try a session again, whether a session is alive."""

from __future__ import annotations

from typing import Final, Protocol

INITIATION: Final = b"\x01\x00\x00\x00"
INITIATION_SIZE: Final = 148
RESPONSE: Final = b"\x02\x00\x00\x00"
RESPONSE_SIZE: Final = 92


class Rng(Protocol):
    """The part of random.Random that jitter needs."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


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
    being sent to nobody. Both conditions belong to one session of ours and one presence of the peer: losing either
    closes the gate.

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
        """The peer or our session is gone."""
        self._present = self._released = self._theirs = self.yielding = False

    def _opened(self, *, present: bool = False, released: bool = False) -> bytes | None:
        before = self.open
        self._present, self._released = self._present or present, self._released or released
        if self.open and not before:
            self.yielding = not self._first
        return self.take() if self.open and not self._void else None


class Backoff:
    """0.2 s, doubling to 1 s for the first attempts and to 10 s later, each shortened by up to half.

    A relay that restarts is found within a second of its return; one that stays away costs little. The shortening keeps
    agents from coming back together.
    """

    FIRST: Final = 0.2
    SOON: Final = 1.0
    LAST: Final = 10.0
    SOON_ATTEMPTS: Final = 30  # the least time they take is 13 s, the most 28 s: a pod that is scheduled anew

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._next, self._attempts = self.FIRST, 0

    def delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        self._attempts += 1
        delay = self._next
        self._next = min(self.SOON if self._attempts < self.SOON_ATTEMPTS else self.LAST, delay * 2)
        return delay * (1 - self._rng.random() / 2)

    def reset(self) -> None:
        """A session lasted long enough to call it good."""
        self._next = self.FIRST
        self._attempts = 0


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
