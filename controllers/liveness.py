# SPDX-License-Identifier: Apache-2.0
"""Which agents have fallen silent, told by the Leases that they renew. Pure: time comes in as an argument.

    seen ──── late ──── stale                  seconds since the operator saw the last renewal
     0         30        50
     └─ a renewal, or a gap in the operator's watch, starts the clock again

No agent's clock is trusted: a renewal is a `renewTime` that differs from the last one, and the clock is the operator's.
It starts when this operator first sees the Lease, and anew when its watch follows again after a gap.

What is silent stays so until it renews, over gaps too. An operator that has just started knows less than the Peers'
conditions say, so until it has seen a renewal, or has waited for one in vain, what is shown stays.

**Many at once.** When more than half of the agents are late, it is likelier that they cannot reach the API server than
that they died together. No verdict on a single agent changes then; when more than half are stale, the Mesh says so.
Agents that are cut off at one moment renewed last within the 20 s before: when the first of them is stale, all are late,
so that none of them is called silent alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..api.constants import LEASE_RENEW_SECONDS, LEASE_STALE_SECONDS

AT_LEAST_SECONDS = 1.0  # between two looks while verdicts are held


@dataclass(frozen=True)
class Timing:
    """Seconds between two renewals of an agent, and until one that does not renew is called silent."""

    renew: float = LEASE_RENEW_SECONDS
    stale: float = LEASE_STALE_SECONDS

    @property
    def late(self) -> float:
        """Seconds after which a renewal is missing."""
        return self.stale - self.renew


@dataclass
class _Lease:
    """One agent's Lease as this operator saw it.

    `proven`: a renewal was seen, not only a Lease. `stale` until the next renewal.
    """

    renewed: str
    seen: float
    proven: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Census:
    """How the agents of the mesh are doing.

    Attributes:
        total: agents that have a Lease.
        silent: those of them that are stale.
        alive: those whose renewals this operator sees.
    """

    total: int = 0
    silent: int = 0
    alive: int = 0

    @property
    def most_silent(self) -> bool | None:
        """Whether more than half are silent; None when that is not known yet."""
        if not self.total:
            return None
        if self.silent * 2 > self.total:
            return True
        return False if self.alive * 2 >= self.total else None


@dataclass(frozen=True)
class Look:
    """What a look at all Leases has shown.

    Attributes:
        news: names of the agents whose verdict may be another one now.
        leftover: names of stale Leases whose node is not in the mesh.
        census: of the agents in the mesh.
        again: seconds until the next look is due; None: after the next event.
    """

    news: frozenset[str]
    leftover: frozenset[str]
    census: Census
    again: float | None


class Tracker:
    """All Leases of agents, by name of their node. An event costs the same however many there are.

    Args:
        timing: of renewals.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._leases: dict[str, _Lease] = {}
        self._changed: set[str] = set()
        self._held = True

    def saw(self, name: str, renewed: str, now: float) -> bool:
        """Note a Lease as it is now; return whether a look is worth while: it is new, or silent no more.

        Args:
            name: of the node.
            renewed: spec.renewTime, as the agent's clock has it.
            now: this operator's monotonic seconds.
        """
        lease = self._leases.get(name)
        if lease is None:
            self._leases[name] = _Lease(renewed, now)
            return True
        if lease.renewed == renewed:
            return False
        news = lease.stale or not lease.proven
        self._leases[name] = _Lease(renewed, now, proven=True)
        if news:
            self._changed.add(name)
        return news

    def forget(self, name: str) -> None:
        """Its node is not in the mesh, and its Lease is gone."""
        self._leases.pop(name, None)
        self._changed.discard(name)

    def silent(self, name: str, *, shown: bool) -> bool:
        """Whether an agent counts as silent now.

        Args:
            name: of its node.
            shown: what is said about it so far; stays while nothing better is known.
        """
        lease = self._leases.get(name)
        if self._held or lease is None or not (lease.stale or lease.proven):
            return shown
        return lease.stale

    def look(self, now: float, following: float | None, member: Callable[[str], bool]) -> Look:
        """Judge all Leases.

        Args:
            now: monotonic seconds.
            following: since when, on the same clock, the watch on Leases follows without a gap; None while it does not.
            member: whether a node of this name is in the mesh.
        """
        if following is None:
            self._held = True
            return Look(frozenset(), frozenset(), self._census(member), AT_LEAST_SECONDS)
        for name, lease in self._leases.items():
            if not lease.stale and self._age(lease, now, following) >= self._timing.stale:
                lease.stale = True
                self._changed.add(name)
        members = [lease for name, lease in self._leases.items() if member(name)]
        late = sum(self._age(each, now, following) >= self._timing.late or each.stale for each in members)
        self._held = len(members) > 1 and late * 2 > len(members)
        leftover = frozenset(name for name, lease in self._leases.items() if lease.stale and not member(name))
        return Look(self._news(), leftover, self._census(member), self._again(now, following))

    def _age(self, lease: _Lease, now: float, following: float) -> float:
        return now - max(lease.seen, following)

    def _news(self) -> frozenset[str]:
        if self._held:
            return frozenset()
        news, self._changed = frozenset(self._changed), set()
        return news

    def _again(self, now: float, following: float) -> float | None:
        left = [
            self._timing.stale - self._age(each, now, following) for each in self._leases.values() if not each.stale
        ]
        if self._held:
            left.append(AT_LEAST_SECONDS)
        return max(0.0, min(left)) if left else None

    def _census(self, member: Callable[[str], bool]) -> Census:
        members = [lease for name, lease in self._leases.items() if member(name)]
        silent = sum(each.stale for each in members)
        return Census(len(members), silent, sum(each.proven and not each.stale for each in members))
