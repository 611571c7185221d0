# SPDX-License-Identifier: Apache-2.0
"""Addresses at which a node may be reached: making our own list, and choosing which of a peer's list to try. Pure.

A peer's list is somebody else's word. What no node can honestly be reached at is never probed, so that a stolen node
cannot turn the mesh into a port scanner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network

from ...wire.endpoint import Endpoint, IPAddress

MAX_CANDIDATES = 8
RTT_GAIN = 0.75  # another address must be this much faster: two that are alike must not take turns
RTT_STEP = 0.002  # seconds; below it a difference is noise
LAN = tuple(
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)  # RFC 1918, 4193


class Kind(StrEnum):
    """Where a candidate comes from, in order of preference."""

    MANUAL = "manual"
    HOST = "host"
    SERVER_REFLEXIVE = "serverReflexive"


@dataclass(frozen=True)
class Candidate:
    """One address of a node."""

    endpoint: Endpoint
    kind: Kind


def own_candidates(
    manual: Iterable[Endpoint],
    host: Iterable[IPAddress],
    mapped: Iterable[Endpoint],
    *,
    listen_port: int,
    symmetric: bool,
) -> tuple[Candidate, ...]:
    """Return what this node publishes, best first, each address once.

    A symmetric NAT's outside address is left out: it is another one for whoever reads it.
    """
    found = [Candidate(endpoint, Kind.MANUAL) for endpoint in manual]
    if not symmetric:
        found += [Candidate(endpoint, Kind.SERVER_REFLEXIVE) for endpoint in mapped]
    found += [Candidate(Endpoint(ip, listen_port), Kind.HOST) for ip in host]
    unique: dict[Endpoint, Candidate] = {}
    for candidate in found:
        unique.setdefault(candidate.endpoint, candidate)
    return tuple(unique.values())[:MAX_CANDIDATES]


def usable(
    candidates: Iterable[Endpoint],
    own: Collection[IPAddress],
    forbidden: Iterable[IPv4Network | IPv6Network],
) -> tuple[Endpoint, ...]:
    """Return those of a peer's candidates that may be probed: at most 8, IPv4 (the steering table's family).

    Args:
        candidates: as the peer published them.
        own: this host's addresses.
        forbidden: mesh ranges and other networks where no peer's underlay address can lie.
    """
    networks = tuple(forbidden)
    kept = (
        candidate
        for candidate in candidates
        if candidate.ip.version == 4
        and candidate.port
        and candidate.ip not in own
        and not _never(candidate.ip)
        and not any(candidate.ip in network for network in networks)
    )
    return tuple(dict.fromkeys(kept))[:MAX_CANDIDATES]


def _never(ip: IPAddress) -> bool:
    # 240.0.0.0/4 is "reserved" and contains the broadcast address; a subnet's own broadcast address cannot be known here.
    return (
        ip.is_loopback
        or ip.is_link_local
        or ip.is_multicast
        or ip.is_unspecified
        or (ip.version == 4 and ip.packed[0] >= 240)
    )


def better(new: tuple[Endpoint, float], current: tuple[Endpoint, float]) -> bool:
    """Tell whether a path should move from `current` to `new`, each an address with its RTT in seconds.

    LAN before WAN: a private address that answered with a valid MAC is in our own network. Then by RTT, with hysteresis.
    """
    new_lan, current_lan = _lan(new[0].ip), _lan(current[0].ip)
    if new_lan != current_lan:
        return new_lan
    return new[1] < current[1] * RTT_GAIN and current[1] - new[1] > RTT_STEP


def _lan(ip: IPAddress) -> bool:
    return any(ip in network for network in LAN)
