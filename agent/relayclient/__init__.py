# SPDX-License-Identifier: Apache-2.0
"""The agent's side of relayed paths: one session with a relay, a UDP proxy beside WireGuard for each peer."""

from .client import NO_PROXY, YIELD, RelayClient
from .events import (
    PeerGone,
    PeerPresent,
    PeerStats,
    ProxyMoved,
    RelayDown,
    RelayEvent,
    RelayRtt,
    RelayServer,
    RelayUp,
    Signal,
)
from .gate import opens

__all__ = [
    "NO_PROXY",
    "YIELD",
    "PeerGone",
    "PeerPresent",
    "PeerStats",
    "ProxyMoved",
    "RelayClient",
    "RelayDown",
    "RelayEvent",
    "RelayRtt",
    "RelayServer",
    "RelayUp",
    "Signal",
    "opens",
]
