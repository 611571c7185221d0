# SPDX-License-Identifier: Apache-2.0
"""What all pairs of one node share: settings, what is known of ourselves, the probe budget, and what is to be done."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ...wire.endpoint import Endpoint
from .limits import ProbeBudget
from .model import Effect, Mode, NatFacts, Policy, SendPing
from .possible import Reason, why_not_direct
from .probe import TXID_BYTES
from .record import Path, Sent


@dataclass
class Node:
    """This node.

    Attributes:
        rng: for transaction ids.
        policy: the Mesh's relay settings.
        epoch: Unix time minus the machine's clock.
        nat: our NAT.
        own: our candidates.
        relay_up: the relay session stands.
        relay_reason: why it does not.
        effects: decided, and not yet handed to the shell.
        budget: of pings.
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

    @property
    def probes(self) -> bool:
        """Whether probes are sent and answered at all."""
        return self.policy.mode is not Mode.ALWAYS

    def why_not(self, path: Path) -> Reason | None:
        """Return why no direct path to the peer can exist."""
        return why_not_direct(self.nat, path.nat)

    def ping(self, path: Path, to: Endpoint, now: float, *, urgent: bool = False) -> None:
        """Ask an address; nothing happens when the budget is used up, unless the ping is urgent."""
        if not self.budget.take(now, urgent=urgent):
            return
        txid = self.rng.randbytes(TXID_BYTES)
        path.pings[txid] = Sent(to, now)
        self.effects.append(SendPing(path.name, to, txid, to in path.installed))
