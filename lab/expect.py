# SPDX-License-Identifier: Apache-2.0
"""Which paths two nodes can have by the NATs in front of them, and how a demo judges and shows what they got. Pure.

UDP blocked        x  anything           relayed
symmetric          x  symmetric          relayed
symmetric          x  port-restricted    direct or relayed: direct takes guessing ports
anything else                            direct
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .topology import Nat, Topology

DIRECT, RELAYED = "Direct", "Relayed"
FIRST_PING_SECONDS = 3.0
_EITHER = frozenset((DIRECT, RELAYED))


def allowed_paths(topology: Topology, first: str, second: str) -> frozenset[str]:
    """Return the states that a pair may end in."""
    nodes = topology.node(first), topology.node(second)
    routers = {topology.router_of(node) for node in nodes}
    if len(routers) == 1 and None not in routers:
        return frozenset((DIRECT,))  # neighbours in one LAN
    return allowed_by_nat(*(topology.nat_of(node) for node in nodes))


def allowed_by_nat(first: Nat, second: Nat) -> frozenset[str]:
    """Return the states that two nodes behind different routers may end in."""
    kinds = {first, second}
    if Nat.UDP_BLOCKED in kinds or kinds == {Nat.SYMMETRIC}:
        return frozenset((RELAYED,))
    if kinds == {Nat.SYMMETRIC, Nat.EIM_APDF}:
        return _EITHER
    return frozenset((DIRECT,))


@dataclass(frozen=True)
class PairResult:
    """What was seen of one pair. Times are in seconds, counted from the moment when both agents ran.

    Attributes:
        first: one node.
        second: the other.
        states: how each of them reaches the other.
        allowed: the states that their NATs allow.
        rtt: median of pings by the IPv4 mesh address.
        first_ping: until the first answers in both directions, by IPv4; None for never.
        first_ping6: the same by IPv6.
        final_path: until both had the path that they have now.
    """

    first: str
    second: str
    states: tuple[str, str]
    allowed: frozenset[str]
    rtt: float | None
    first_ping: float | None
    first_ping6: float | None
    final_path: float | None

    def settled(self) -> bool:
        """Tell whether the pair has all that it should have, however long it took."""
        agree = self.states[0] == self.states[1] and self.states[0] in self.allowed
        return agree and self.first_ping is not None and self.first_ping6 is not None

    def faults(self) -> list[str]:
        """Return what is wrong with the pair, in words."""
        name, found = f"{self.first} <-> {self.second}", []
        if self.states[0] != self.states[1] or self.states[0] not in self.allowed:
            found.append(f"{name} is {' / '.join(self.states)}, should be {_words(self.allowed)}")
        for family, took in (("IPv4", self.first_ping), ("IPv6", self.first_ping6)):
            if took is None:
                found.append(f"{name} has not answered a ping by {family} in both directions")
        if self.first_ping is not None and self.first_ping >= FIRST_PING_SECONDS:
            found.append(
                f"{name} answered its first ping after {self.first_ping:.1f} s, not {FIRST_PING_SECONDS:.0f} s"
            )
        return found

    def row(self) -> list[str]:
        """Return the cells of the table."""
        state = self.states[0] if self.states[0] == self.states[1] else " / ".join(self.states)
        rtt = f"{self.rtt * 1000:.1f} ms" if self.rtt is not None else "-"
        times = (_seconds(each) for each in (self.first_ping, self.first_ping6, self.final_path))
        return [f"{self.first} <-> {self.second}", state.lower(), _words(self.allowed).lower(), rtt, *times]


HEADER = ("PAIR", "PATH", "ALLOWED", "RTT", "FIRST PING", "BY IPV6", "FINAL PATH")


def _words(states: frozenset[str]) -> str:
    return " or ".join(sorted(states))


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{max(0.0, value):.2f} s"


@dataclass(frozen=True)
class FaultResult:
    """What a direct pair did while its UDP was lost and given back. Times in seconds.

    Attributes:
        to_relay: from the loss until both sides were relayed; None for never.
        to_direct: from the healing until both sides were direct; None for never.
        gap: longest time between two answered pings.
        lost: pings without an answer.
        sent: pings in all.
        endpoints_moved: what `wg show` prints otherwise than before; empty when nothing moved.
    """

    to_relay: float | None
    to_direct: float | None
    gap: float
    lost: int
    sent: int
    endpoints_moved: Sequence[str]

    def faults(self, most_gap: float) -> list[str]:
        """Return what is wrong, in words."""
        found = []
        if self.to_relay is None:
            found.append("the pair that lost UDP did not move to the relay")
        if self.to_direct is None:
            found.append("the pair that lost UDP did not return to direct")
        if self.gap > most_gap:
            found.append(f"its ping stopped for {self.gap:.2f} s, longer than {most_gap:.1f} s")
        found += [f"a WireGuard endpoint moved: {each}" for each in self.endpoints_moved]
        return found
