# SPDX-License-Identifier: Apache-2.0
"""Which Peers are in the mesh with which networks: one rule for the operator and every agent. Pure.

What needs a look at several objects at once is decided here: who owns a public key, and whose a network is.
A malformed object is left out and named; the others do not notice.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from pydantic import ValidationError

from .claims import Problem, Reserved, claim_addresses, claim_networks, reserved
from .v1alpha1 import MeshStatus, WireKubeMesh, WireKubePeer

Object = Mapping[str, Any]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

KEY_ACCEPTED = "KeyAccepted"
_YOUNGEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class EffectivePeer:
    """A Peer as WireGuard should have it.

    Attributes:
        name: of the Peer and its Node.
        public_key: 32 bytes.
        addresses: own mesh addresses.
        networks: everything that is reached through this peer: own mesh addresses and accepted allowedIPs.
        peer: the object it was made from.
    """

    name: str
    public_key: bytes
    addresses: tuple[Address, ...]
    networks: frozenset[Network]
    peer: WireKubePeer


@dataclass(frozen=True)
class Effective:
    """The whole mesh: its peers, oldest first, and what was left out."""

    peers: tuple[EffectivePeer, ...]
    problems: tuple[Problem, ...]


def effective_peers(mesh: Object | None, peers: Iterable[Object], servers: Iterable[Address] = ()) -> Effective:
    """Decide who is in the mesh; a key belongs to the Peer whose KeyAccepted condition is True and names it.

    Args:
        mesh: the WireKubeMesh as the API server sends it; None when there is none.
        peers: all WireKubePeers, as the API server sends them.
        servers: addresses of API servers that are known beside those in the Mesh's status.
    """
    return _effective(mesh, peers, servers, lambda peer: accepted_key(peer) == peer.status.public_key)


def effective_peers_unjudged(
    mesh: Object | None, peers: Iterable[Object], servers: Iterable[Address] = ()
) -> Effective:
    """Decide as `effective_peers`, but admit Peers too whose key no operator has judged yet.

    Of those the oldest gets a key, and never one that belongs to an accepted Peer.
    """
    return _effective(
        mesh, peers, servers, lambda peer: accepted_key(peer) == peer.status.public_key or not _judged(peer)
    )


def accepted_key(peer: WireKubePeer) -> str | None:
    """Return the base64 key that KeyAccepted=True names."""
    found = next((c for c in peer.status.conditions if c.type == KEY_ACCEPTED and c.status == "True"), None)
    return found.message if found else None


def age_order(peer: WireKubePeer) -> tuple[datetime, str]:
    """Return the sort key of seniority: creation time, then name."""
    return peer.metadata.creation_timestamp or _YOUNGEST, peer.metadata.name


def parse_peer(obj: Object) -> WireKubePeer | Problem:
    """Read one Peer; a malformed one becomes a problem that says where."""
    try:
        return WireKubePeer.model_validate(obj)
    except ValidationError as error:
        metadata = obj.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        return Problem(str(name or "?"), "Malformed", explain(error))


def explain(error: ValidationError) -> str:
    """Return the first fault of an object as one line, for people."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'object'}: {first['msg']}"


def mesh_ranges(mesh: Object | None) -> tuple[Network, ...]:
    """Return the ranges in force of a Mesh; none when there is no Mesh or it is malformed."""
    return reservations(mesh).mesh


def reservations(mesh: Object | None, servers: Iterable[Address] = ()) -> Reserved:
    """Return what no Peer may announce, by the Mesh (nothing when there is none or it is malformed) and `servers`."""
    try:
        status = WireKubeMesh.model_validate(mesh).status if mesh else MeshStatus()
    except ValidationError:
        status = MeshStatus()
    return reserved(status, servers)


def _judged(peer: WireKubePeer) -> bool:
    """Tell whether there is a verdict on a key; Unknown says that there was no key yet when the operator looked."""
    return any(each.type == KEY_ACCEPTED and each.status != "Unknown" for each in peer.status.conditions)


def _effective(
    mesh: Object | None,
    objects: Iterable[Object],
    servers: Iterable[Address],
    admits: Callable[[WireKubePeer], bool],
) -> Effective:
    problems: list[Problem] = []
    parsed: list[WireKubePeer] = []
    for obj in objects:
        result = parse_peer(obj)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            parsed.append(result)
    parsed.sort(key=age_order)
    owners = _owners(parsed, admits, problems)
    # Addresses of all Peers count, also of those without a key yet: nobody's allowedIP may take them.
    addresses = claim_addresses(parsed, problems)
    networks = claim_networks(parsed, addresses, reservations(mesh, servers), problems)
    members = tuple(
        EffectivePeer(
            peer.metadata.name,
            base64.b64decode(key),
            tuple(network.network_address for network in addresses[peer.metadata.name]),
            frozenset(addresses[peer.metadata.name]) | networks.get(peer.metadata.name, frozenset()),
            peer,
        )
        for key, peer in owners.items()
    )
    return Effective(members, tuple(problems))


def _owners(
    peers: Iterable[WireKubePeer], admits: Callable[[WireKubePeer], bool], problems: list[Problem]
) -> dict[str, WireKubePeer]:
    """Return who owns each key: accepted Peers before others, older before younger."""
    owners: dict[str, WireKubePeer] = {}
    for peer in sorted(peers, key=lambda p: (accepted_key(p) != p.status.public_key, age_order(p))):
        key = peer.status.public_key
        if key is None:
            continue
        if key in owners:
            message = f"the public key belongs to the Peer {owners[key].metadata.name}"
            problems.append(Problem(peer.metadata.name, "DuplicateKey", message))
        elif admits(peer):
            owners[key] = peer
        else:
            problems.append(Problem(peer.metadata.name, "KeyNotAccepted", "the operator has not accepted the key"))
    return dict(sorted(owners.items(), key=lambda item: age_order(item[1])))
