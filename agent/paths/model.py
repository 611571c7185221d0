# SPDX-License-Identifier: Apache-2.0
"""The words of the path machine: what it is told, what it decides, what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...wire.endpoint import Endpoint
from .seal import Signal


class Mode(StrEnum):
    """`spec.relay.mode` of the Mesh."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class State(StrEnum):
    """How a pair is reached, as people read it."""

    CONNECTING = "Connecting"
    DIRECT = "Direct"
    RELAYED = "Relayed"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True)
class NatFacts:
    """What decides whether two nodes can meet.

    Attributes:
        udp_blocked: no UDP passes.
        symmetric: others cannot be told the outside port.
        port_restricted: only the asked address and port may answer; False where that is unknown.
        public: there is no NAT.
        addresses: outside IP addresses as text, to see that two nodes share one.
    """

    udp_blocked: bool = False
    symmetric: bool = False
    port_restricted: bool = False
    public: bool = False
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Policy:
    """The Mesh's relay settings, in seconds."""

    mode: Mode = Mode.AUTO
    handshake_timeout: float = 30.0
    retry_cap: float = 120.0


@dataclass(frozen=True)
class SendPing:
    """Send an authenticated ping."""

    name: str
    to: Endpoint
    txid: bytes
    mapped: bool


@dataclass(frozen=True)
class SendPong:
    """Answer a ping."""

    name: str
    to: Endpoint
    txid: bytes
    mapped: bool
    seen: Endpoint


@dataclass(frozen=True)
class Steer:
    """Send the peer's packets to `direct`, or to its local proxy when that is None; take packets of `accept` for its.

    The shell answers by `Paths.installed` when the table is written.
    """

    name: str
    direct: Endpoint | None
    accept: frozenset[Endpoint]


@dataclass(frozen=True)
class SendSignal:
    """Send a sealed message over the relay."""

    name: str
    signal: Signal


@dataclass(frozen=True)
class Transition:
    """A pair's state changed."""

    name: str
    old: State
    new: State
    reason: str
    message: str


Effect = SendPing | SendPong | Steer | SendSignal | Transition


@dataclass(frozen=True)
class PathView:
    """One pair for people and for status. Times are in the machine's clock, `rtt` in seconds."""

    state: State
    direct: Endpoint | None
    accept: frozenset[Endpoint]
    rtt: float | None
    reason: str
    message: str
    since: float
    attempts: int
    next_retry: float | None
