# SPDX-License-Identifier: Apache-2.0
"""What the path machine remembers about one peer. Times are monotonic seconds, given by the caller."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...wire.endpoint import Endpoint
from .limits import SHARE_BURST, SHARE_RATE, ProbeBudget
from .model import NatFacts, State
from .possible import Reason

NEVER = float("-inf")
MAX_ADDRESSES = 16
FRESH_SECONDS = 5.0  # a pong younger than this proves an address well enough to move a path to it
STALE_SECONDS = 180.0  # an accepted address without a sign of life for so long is dropped from the table


@dataclass
class Address:
    """One address of a peer, and what was proved about it.

    Attributes:
        ponged: when our ping was last answered from here.
        heard: when an authenticated probe last came from here.
        rtt: of the last answered ping, in seconds.
        peer_mapped: when the peer last said that it takes packets of ours for ours, on this path.
        accept: our table shall take packets from here for the peer's.
    """

    ponged: float = NEVER
    heard: float = NEVER
    rtt: float = 0.0
    peer_mapped: float = NEVER
    accept: bool = False


@dataclass(frozen=True)
class Sent:
    """A ping that waits for its pong."""

    to: Endpoint
    at: float


@dataclass(frozen=True)
class Hold:
    """An address on which WireGuard heard nothing: not used before `until`, which was `seconds` away."""

    until: float
    seconds: float


@dataclass
class Attempt:
    """A running search for a direct path.

    Attributes:
        next: when the next round, or the end, is due.
        extra: addresses that the peer named by signal.
        call: the peer is to be called with the first ping.
        round: rounds that were made.
        left: what the round that is being made has still to ask, when the budget is used up.
    """

    next: float
    extra: tuple[Endpoint, ...] = ()
    call: bool = False
    round: int = 0
    left: tuple[Endpoint, ...] = ()


@dataclass
class Path:
    """One peer.

    Attributes:
        direct: the address that we send to; None sends to the local proxy (relay, or held back).
        installed: addresses that the steering table has, as the shell reported.
        deadline: when Connecting ends.
        present: the relay has the peer.
        unanswered: pings on the direct leg in a row without an answer.
        received: when WireGuard last received something valid of the peer.
        sent: when WireGuard last sent more than keepalives.
        unheard: since when it has been sending on this leg without receiving anything.
        held: addresses on which that lasted too long.
        lost: why the last direct leg was left, until there is another one.
        fast: the direct leg is in doubt and asked every 200 ms.
        share: of pings that the peer makes us send.
    """

    name: str
    key: bytes
    candidates: tuple[Endpoint, ...]
    nat: NatFacts
    since: float
    deadline: float
    state: State = State.CONNECTING
    reason: str = "Starting"
    message: str = ""
    addresses: dict[Endpoint, Address] = field(default_factory=dict)
    pings: dict[bytes, Sent] = field(default_factory=dict)
    direct: Endpoint | None = None
    installed: frozenset[Endpoint] = frozenset()
    steered: tuple[Endpoint | None, frozenset[Endpoint]] = (None, frozenset())
    attempt: Attempt | None = None
    attempts: int = 0
    backoff: float = 0.0
    next_retry: float | None = None
    called: float = NEVER
    present: bool = False
    active: bool = False
    received: float = NEVER
    sent: float = NEVER
    unheard: float | None = None
    held: dict[Endpoint, Hold] = field(default_factory=dict)
    fast: bool = False
    unanswered: int = 0
    keep: Sent | None = None
    next_keep: float = NEVER
    lost: Reason | None = None
    share: ProbeBudget = field(default_factory=lambda: ProbeBudget(SHARE_RATE, SHARE_BURST))

    @property
    def accept(self) -> frozenset[Endpoint]:
        """Return the addresses whose packets shall be taken for this peer's."""
        return frozenset(endpoint for endpoint, address in self.addresses.items() if address.accept)

    @property
    def alive(self) -> float:
        """Return when there was the last sign of life on the direct leg, or by WireGuard on any."""
        address = self.addresses.get(self.direct) if self.direct is not None else None
        return max(self.received, address.ponged if address is not None else NEVER)

    def address(self, endpoint: Endpoint) -> Address | None:
        """Return the record of an address, a new one if there is room."""
        if endpoint not in self.addresses and len(self.addresses) >= MAX_ADDRESSES:
            self._drop_oldest()
        if endpoint not in self.addresses and len(self.addresses) >= MAX_ADDRESSES:
            return None
        return self.addresses.setdefault(endpoint, Address())

    def proven(self, now: float) -> list[tuple[Endpoint, Address]]:
        """Return the addresses on which both directions work and both tables are ready."""
        return [
            (endpoint, address)
            for endpoint, address in self.addresses.items()
            if now - address.ponged <= FRESH_SECONDS
            and now - address.peer_mapped <= FRESH_SECONDS
            and endpoint in self.installed
        ]

    def prune(self, now: float) -> None:
        """Stop taking packets from addresses that gave no sign of life for long, except the one in use."""
        for endpoint, address in self.addresses.items():
            if endpoint != self.direct and now - max(address.ponged, address.heard) > STALE_SECONDS:
                address.accept = False

    def _drop_oldest(self) -> None:
        idle = [e for e, a in self.addresses.items() if not a.accept and e != self.direct]
        if idle:
            del self.addresses[min(idle, key=lambda e: max(self.addresses[e].ponged, self.addresses[e].heard))]
