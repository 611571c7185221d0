# SPDX-License-Identifier: Apache-2.0
"""What the relay client is told and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

from ...wire.endpoint import Endpoint


@dataclass(frozen=True)
class RelayServer:
    """One relay. `name` is "host:port" as configured, `endpoints` its addresses in the order of trial."""

    name: str
    endpoints: tuple[Endpoint, ...]
    public_key: bytes | None = None  # None: accept any and report it
    replicas: int = 1  # processes behind these addresses, one session is wanted with each


@dataclass(frozen=True)
class RelayUp:
    """A session stands, the first or one more, and the relay proved its key. `rtt` is in seconds."""

    server: RelayServer
    rtt: float
    relay_public_key: bytes


@dataclass(frozen=True)
class RelayLost:
    """A session ended, and others stand: what it carried goes by them."""

    server: RelayServer
    reason: str


@dataclass(frozen=True)
class RelayDown:
    """No session is left, or there was none and an attempt failed."""

    server: RelayServer
    reason: str


@dataclass(frozen=True)
class RelayRtt:
    """A ping came back; seconds."""

    server: RelayServer
    rtt: float


@dataclass(frozen=True)
class PeerPresent:
    """A peer that was added has a session with a relay that we have one with; said again when it is a new one."""

    key: bytes


@dataclass(frozen=True)
class PeerGone:
    """A peer that was added has no session with any relay that we have one with."""

    key: bytes


@dataclass(frozen=True)
class Signal:
    """A peer's opaque message. The relay vouches for the sender's key; only the seal inside proves it."""

    key: bytes
    payload: bytes


@dataclass(frozen=True)
class ProxyMoved:
    """The peer's proxy has another address; port 0 means that there is none."""

    key: bytes
    endpoint: Endpoint


RelayEvent = RelayUp | RelayLost | RelayDown | RelayRtt | PeerPresent | PeerGone | Signal | ProxyMoved


@dataclass(slots=True)
class PeerStats:
    """Totals of one peer. Bytes are WireGuard's, drops are trains or single packets."""

    trains_out: int = 0
    bytes_out: int = 0
    trains_in: int = 0
    bytes_in: int = 0
    dropped_held: int = 0  # not handed over, and no initiation
    dropped_full: int = 0  # the session's queue was full
    dropped_local: int = 0  # WireGuard's socket did not take it
    refused_source: int = 0  # came to the proxy from elsewhere than WireGuard
