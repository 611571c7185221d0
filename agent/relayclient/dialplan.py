# SPDX-License-Identifier: Apache-2.0
"""Whom to dial next, and when, until a session stands with each process of one relay. Pure: no clock, no sockets.

    configure ──> quick tries ──all found──> nothing to do <──found── round, back-off, round, ...
                       └──tries used up, or each address failed──────────> ^
                                                  a session is lost ───────┘

Behind one address a load balancer chooses the process, so the address is dialled again and again: about as often as it
takes to meet each of them by chance, at once. What is still missing then is looked for in rounds, each with as many tries as
there are addresses, or processes if those are more, and a back-off between them: soon again while there is no session at
all, seldom while one carries the packets.
"""

from __future__ import annotations

from typing import Final, Protocol

from ...wire.endpoint import Endpoint

LASTED: Final = 10.0  # seconds after which a session counts as good and the back-off starts anew
QUICK_TRIES: Final = (
    4  # for each process of a relay that has fewer addresses; of two processes one is missed in 128 cases
)
SPREAD: Final = (
    1.0  # seconds in which the agents that have a session begin to look for another, when all are told at once
)


class Rng(Protocol):
    """The part of random.Random that jitter needs."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


class Backoff:
    """0.2 s, doubling to a cap, each shortened by up to half.

    Without any session the cap is 1 s for the first attempts and 10 s later: a relay that restarts is found within a
    second of its return; one that stays away costs little. Else it is 10 s at once: nobody waits for what is looked for.
    The shortening keeps agents from coming back together.
    """

    FIRST: Final = 0.2
    SOON: Final = 1.0
    LAST: Final = 10.0
    SOON_ATTEMPTS: Final = 30  # the least time they take is 13 s, the most 28 s: a pod that is scheduled anew

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._next, self._attempts = self.FIRST, 0

    def delay(self, spare: bool = False) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            spare: whether there is a session already.
        """
        self._attempts += 1
        cap = self.LAST if spare or self._attempts > self.SOON_ATTEMPTS else self.SOON
        delay = min(cap, self._next)
        self._next = delay * 2
        return delay * (1 - self._rng.random() / 2)

    def reset(self) -> None:
        """A session lasted long enough to call it good."""
        self._next, self._attempts = self.FIRST, 0


class DialPlan:
    """The search for the processes of one relay. Times are monotonic seconds.

    The shell asks `wait` for when to dial, dials what `dial` returns, and tells how it went by `met` or `failed`.

    Args:
        rng: for the jitter.
    """

    def __init__(self, rng: Rng) -> None:
        self._backoff = Backoff(rng)
        self._rng = rng
        self._endpoints: tuple[Endpoint, ...] = ()
        self._replicas = 0
        self._at = 0  # of the address that is next
        self._due = 0.0
        self._tries = 0  # left in this round; at least 1 while there is an address
        self._failures = 0  # one after the other; a round in which each address failed is over

    def configure(self, endpoints: tuple[Endpoint, ...], replicas: int, now: float, held: int) -> None:
        """Take the addresses and the number of processes behind them; the search begins anew.

        `held` is, here and below, how many of these processes we have a session with.
        """
        self._endpoints, self._replicas = endpoints, replicas
        self._backoff.reset()
        self._at, self._failures = 0, 0
        self._tries = max(len(endpoints), QUICK_TRIES * replicas) if replicas > 1 else len(endpoints)
        self._due = now + SPREAD * self._rng.random() if held else now

    def wait(self, held: int, now: float) -> float | None:
        """Return the seconds until the next dial, 0 or more; None when there is nothing to look for."""
        if held >= self._replicas or not self._endpoints:
            return None
        return max(0.0, self._due - now)

    def dial(self) -> Endpoint:
        """Return the address to dial now; the next time it is the one behind it."""
        endpoint = self._endpoints[self._at % len(self._endpoints)]
        self._at = (self._at + 1) % len(self._endpoints)
        return endpoint

    def met(self, held: int, now: float) -> None:
        """A process answered: a new one, or one that we have a session with."""
        self._failures = 0
        self._tried(held, now)

    def failed(self, held: int, now: float) -> bool:
        """The address led to no relay; return whether all of them have failed, one after the other."""
        self._failures += 1
        everywhere = self._failures >= len(self._endpoints)
        if everywhere:
            self._rest(held, now)
        else:
            self._tried(held, now)
        return everywhere

    def lost(self, lasted: float, held: int, now: float) -> None:
        """A session ended that was `lasted` seconds old."""
        if lasted >= LASTED:
            self._backoff.reset()
        self._rest(held, now)

    def _tried(self, held: int, now: float) -> None:
        self._tries -= 1
        if self._tries <= 0:
            self._rest(held, now)

    def _rest(self, held: int, now: float) -> None:
        self._due = now + self._backoff.delay(spare=held > 0)
        self._tries, self._failures = max(len(self._endpoints), self._replicas), 0
