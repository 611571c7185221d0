# SPDX-License-Identifier: Apache-2.0
"""What all pairs of one node share: settings, what is known of ourselves, the probe budget, and what is to be done."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ...wire.endpoint import Endpoint
from .limits import ProbeBudget
from .model import Effect, Mode, NatFacts, Policy, SendPing
from .possible import Reason, why_not_direct
from .probe import SESSION_BYTES, WINDOW, parts_of, txid_of
from .record import Path, Sent
from .replay import Replays


@dataclass
class Node:
    """This node.

    Attributes:
        rng: for the session of our pings.
        policy: the Mesh's relay settings.
        epoch: Unix time minus the machine's clock.
        nat: our NAT.
        own: our candidates.
        relay_up: the relay session stands.
        relay_reason: why it does not.
        effects: decided, and not yet handed to the shell.
        budget: of pings that search.
        waiting: whose search waits for the budget, in the order in which they will be served.
        changed: names of paths whose due time may be another one.
        heard: the pings that were answered.
    """

    rng: random.Random
    policy: Policy
    epoch: float
    nat: NatFacts = field(default_factory=NatFacts)
    own: tuple[Endpoint, ...] = ()
    relay_up: bool = False
    relay_reason: str = "the relay session is not up yet"
    effects: list[Effect] = field(default_factory=list)
    budget: ProbeBudget = field(default_factory=ProbeBudget)
    waiting: dict[str, Path] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    heard: Replays = field(default_factory=lambda: Replays(WINDOW))

    def __post_init__(self) -> None:
        self._session, self._asked = self.rng.randbytes(SESSION_BYTES), 0

    @property
    def probes(self) -> bool:
        """Whether probes are sent and answered at all."""
        return self.policy.mode is not Mode.ALWAYS

    def why_not(self, path: Path) -> Reason | None:
        """Return why no direct path to the peer can exist."""
        return why_not_direct(self.nat, path.nat)

    def ask_back(self, path: Path, to: Endpoint, now: float) -> None:
        """Ask an address of which the peer itself has just told by an authentic packet; each peer has its own share."""
        if path.share.take(now):
            self.ping(path, to, now)

    def is_new(self, path: Path, txid: bytes) -> bool:
        """Take an authentic ping of a peer; False when it is a recording."""
        return self.heard.is_new(path.key, *parts_of(txid))

    def ping(self, path: Path, to: Endpoint, now: float) -> None:
        """Ask an address; what limits it is the caller's part."""
        self._asked += 1  # through all pings, whoever they are for: a peer that leaves and comes back knows the session
        txid = txid_of(self._session, self._asked)
        path.pings[txid] = Sent(to, now)
        self.effects.append(SendPing(path.name, to, txid, to in path.installed))
