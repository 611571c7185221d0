# SPDX-License-Identifier: Apache-2.0
"""The agent's side of relayed paths: a session with each relay process, a UDP proxy beside WireGuard for each peer."""

from .client import RelayClient
from .events import (
    PeerGone,
    PeerPresent,
    PeerStats,
    ProxyMoved,
    RelayDown,
    RelayEvent,
    RelayLost,
    RelayRtt,
    RelayServer,
    RelayUp,
    Signal,
)
from .gate import opens
from .peers import NO_PROXY, YIELD

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
    "RelayLost",
    "RelayRtt",
    "RelayServer",
    "RelayUp",
    "Signal",
    "opens",
]
