# SPDX-License-Identifier: Apache-2.0
"""Which Peers are in the mesh with which networks: one rule for the operator and every agent. Pure.

What needs a look at several objects at once is decided here: who owns a public key, and whose a network is.
A malformed object is left out and named; the others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pydantic import ValidationError

from .claims import Reserved, claim_addresses, claim_networks, reserved
from .constants import MESH_NAME
from .nodenetworks import claim_nodes, claim_pods
from .reading import Address, Network, Object, PeerReader, Problem, Reading
from .v1alpha1 import WireKubeMesh

_NO_MESH: Object = {"metadata": {"name": MESH_NAME}}


@dataclass(frozen=True)
class EffectivePeer:
    """A Peer as WireGuard should have it.

    Attributes:
        name: of the Peer and its Node.
        public_key: 32 bytes.
        addresses: own mesh addresses.
        networks: everything that is reached through this peer: own mesh addresses, accepted allowedIPs, `preferred`.
        preferred: the Node's own addresses and pod ranges: they go through the mesh whatever other way there is.
        reading: what it was made from.
    """

    name: str
    public_key: bytes
    addresses: tuple[Address, ...]
    networks: frozenset[Network]
    preferred: frozenset[Network]
    reading: Reading = field(compare=False)


@dataclass(frozen=True)
class Effective:
    """The whole mesh: its peers, oldest first, and what was left out."""

    peers: tuple[EffectivePeer, ...]
    problems: tuple[Problem, ...]


class EffectivePeers:
    """The rule with a memory: an object that has not changed is not read again, and the same mesh not decided again.

    A key belongs to the Peer whose KeyAccepted condition is True and names it.

    Args:
        unjudged: admit Peers too whose key no operator has judged yet. Of those the oldest gets a key, and never one
            that belongs to an accepted Peer.
    """

    def __init__(self, *, unjudged: bool = False) -> None:
        self._admits = _accepted_or_unjudged if unjudged else _accepted
        self._reader = PeerReader()
        self._last: tuple[tuple[Reading | Problem, ...], Reserved, Effective] | None = None

    def decide(self, mesh: Object | None, peers: Iterable[Object], servers: Iterable[Address] = ()) -> Effective:
        """Decide who is in the mesh.

        Args:
            mesh: the WireKubeMesh as the API server sends it; None when there is none.
            peers: all WireKubePeers, as the API server sends them. They must not be changed afterwards.
            servers: addresses of API servers that are known beside those in the Mesh's status.
        """
        readings, kept_free = self._reader.read(peers), reservations(mesh, servers)
        if self._last is None or self._last[:2] != (readings, kept_free):
            self._last = readings, kept_free, _decide(readings, kept_free, self._admits)
        return self._last[2]


def mesh_ranges(mesh: Object | None) -> tuple[Network, ...]:
    """Return the ranges in force of a Mesh; none when there is no Mesh or it is malformed."""
    return reservations(mesh).mesh


def reservations(mesh: Object | None, servers: Iterable[Address] = ()) -> Reserved:
    """Return what no Peer may announce, by the Mesh (nothing when there is none or it is malformed) and `servers`."""
    try:
        parsed = WireKubeMesh.model_validate(mesh or _NO_MESH)
    except ValidationError:
        parsed = WireKubeMesh.model_validate(_NO_MESH)
    return reserved(parsed, servers)


def _accepted(peer: Reading) -> bool:
    return peer.accepted


def _accepted_or_unjudged(peer: Reading) -> bool:
    return peer.accepted or not peer.judged


def _decide(readings: Iterable[Reading | Problem], kept_free: Reserved, admits: Callable[[Reading], bool]) -> Effective:
    peers: list[Reading] = []
    problems: list[Problem] = []
    for each in readings:
        if isinstance(each, Reading):
            peers.append(each)
        else:
            problems.append(each)
    peers.sort(key=lambda peer: peer.age)
    owners = _owners(peers, admits, problems)
    # Networks of all Peers count, also of those without a key yet: nobody else may take them.
    addresses = claim_addresses(peers, problems)
    pods = claim_pods(peers, addresses, kept_free, problems)
    nodes = claim_nodes(peers, addresses, pods, kept_free, problems)
    allowed = claim_networks(peers, addresses, kept_free, problems, nodes, pods)
    members = []
    for owner in owners:
        own, none = addresses[owner.name], frozenset[Network]()
        preferred = nodes.get(owner.name, none) | pods.get(owner.name, none)
        networks = allowed.get(owner.name, none).union(own, preferred)
        hosts = tuple(network.network_address for network in own)
        members.append(EffectivePeer(owner.name, owner.key, hosts, networks, preferred, owner))
    return Effective(tuple(members), tuple(problems))


def _owners(peers: Iterable[Reading], admits: Callable[[Reading], bool], problems: list[Problem]) -> list[Reading]:
    """Return the Peers that own their key, oldest first: accepted ones come before others, older before younger."""
    owners: dict[str, Reading] = {}
    for peer in sorted(peers, key=lambda each: not each.accepted):  # which keeps the order among equals
        key = peer.public_key
        if key is None:
            continue
        if key in owners:
            message = f"the public key belongs to the Peer {owners[key].name}"
            problems.append(Problem(peer.name, "DuplicateKey", message))
        elif admits(peer):
            owners[key] = peer
        else:
            problems.append(Problem(peer.name, "KeyNotAccepted", "the operator has not accepted the key"))
    return sorted(owners.values(), key=lambda peer: peer.age)
