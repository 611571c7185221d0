# SPDX-License-Identifier: Apache-2.0
"""Whose a network is: of the Peers' mesh addresses and allowedIPs, those that count. Pure.

An allowedIP takes traffic from every node, so some networks are nobody's to announce. In this order:

- what overlaps the mesh's own ranges, or a mesh address: the mesh;
- what covers an API server: kubelets, whose packets carry no mark of ours, must reach it without the mesh. The operator
  publishes these addresses in the Mesh's status; an agent adds those that it is connected to;
- what covers an address of another node, which the packets between nodes go to. Every Peer shows its node's in
  `.status.candidates` and `.spec.endpoint`, so operator and agents decide alike, and at once. A node may announce the
  network that it stands in itself; and Nodes that are not in the mesh may stand behind one that is;
- what an older Peer has.

Addresses inside the cluster's Service and pod ranges are nobody's place (bridges of the CNI, the Service of the API
server): a network that covers them may go through the mesh.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from .intervals import Intervals
from .reading import Address, Network, Problem, Reading
from .v1alpha1 import MeshStatus


@dataclass(frozen=True)
class Reserved:
    """What no Peer may announce.

    Attributes:
        mesh: the ranges of mesh addresses.
        cluster: Service and pod ranges; addresses inside count neither as an API server's nor as a node's.
        servers: addresses of API servers.
    """

    mesh: tuple[Network, ...] = ()
    cluster: tuple[Network, ...] = ()
    servers: tuple[Address, ...] = ()


def reserved(status: MeshStatus, connected: Iterable[Address] = ()) -> Reserved:
    """Return what is reserved by the Mesh, and by the API servers that this process is connected to."""
    return Reserved(
        tuple(map(ip_network, status.mesh_cidrs)),
        tuple(map(ip_network, status.cluster_cidrs)),
        (*map(ip_address, status.api_servers), *connected),
    )


def claim_addresses(peers: Iterable[Reading], problems: list[Problem]) -> dict[str, list[Network]]:
    """Return the mesh addresses that each Peer keeps, older Peers first."""
    claimed: dict[Network, str] = {}
    result: dict[str, list[Network]] = {}
    for peer in peers:
        name = peer.name
        result[name] = []
        for text, network in peer.addresses:
            if network is None or network.num_addresses != 1:
                problems.append(Problem(name, "AddressMalformed", f"{text} is not IPV4/32 or IPV6/128"))
            elif network in claimed:
                problems.append(Problem(name, "AddressTaken", f"{text} belongs to the Peer {claimed[network]}"))
            else:
                claimed[network] = name
                result[name].append(network)
    return result


def claim_networks(
    peers: Iterable[Reading],
    addresses: Mapping[str, Iterable[Network]],
    reserved: Reserved,
    problems: list[Problem],
) -> dict[str, frozenset[Network]]:
    """Return the allowedIPs that each Peer keeps, older Peers first; Peers without any are left out."""
    peers = list(peers)
    claiming = [peer for peer in peers if peer.allowed]
    if not claiming:
        return {}
    taken, places = _taken(addresses, reserved), Places(peers, (*reserved.mesh, *reserved.cluster))
    result: dict[str, frozenset[Network]] = {}
    for peer in claiming:
        name = peer.name
        kept: set[Network] = set()
        for text, wanted in peer.allowed:
            if wanted is None or wanted.prefixlen == 0:
                problems.append(Problem(name, "AllowedIPMalformed", f"{text} is no network, or a default route"))
            elif (clash := taken.overlapping(wanted) or places.inside(wanted, name)) is not None:
                problems.append(Problem(name, "AllowedIPOverlaps", f"{text} overlaps {clash[0]}, {clash[1]}"))
            else:
                kept.add(wanted)
                taken.add(wanted, f"which the Peer {name} has")
        result[name] = frozenset(kept)
    return result


def _taken(addresses: Mapping[str, Iterable[Network]], reserved: Reserved) -> Intervals:
    taken = Intervals()
    for network in reserved.mesh:
        taken.add_new(network, "the mesh's own range")
    cluster = _covering(reserved.cluster)
    for server in reserved.servers:
        if cluster.overlapping(network := ip_network(server)) is None:
            taken.add_new(network, "an address of the API server, which is reached without the mesh")
    for name, own in addresses.items():
        for network in own:
            taken.add_new(network, f"the mesh address of the Peer {name}")
    return taken


def _covering(networks: Iterable[Network]) -> Intervals:
    found = Intervals()
    for network in sorted(networks, key=lambda each: each.prefixlen):
        found.add_new(network, "")  # of two that overlap the larger one, which contains the other
    return found


class Places:
    """The addresses of nodes, with a quick look-up of those inside a network.

    Args:
        peers: whose candidates and endpoints are taken.
        nowhere: addresses in there are nobody's.
    """

    def __init__(self, peers: Iterable[Reading], nowhere: Iterable[Network]) -> None:
        excluded = _covering(nowhere)
        self._places: dict[int, list[tuple[int, str]]] = {4: [], 6: []}
        for peer in peers:
            for place in peer.places:
                if excluded.overlapping(place) is None:
                    self._places[place.version].append((int(place.network_address), peer.name))
        for places in self._places.values():
            places.sort()

    def inside(self, network: Network, owner: str) -> tuple[Address, str] | None:
        """Return an address of another node than the owner's that lies in the network, with the words that say whose."""
        places = self._places[network.version]
        last = int(network.broadcast_address)
        for at in range(bisect_left(places, (int(network.network_address), "")), len(places)):
            number, name = places[at]
            if number > last:
                return None
            if name != owner:
                return network.network_address + (
                    number - int(network.network_address)
                ), f"an address of the node {name}"
        return None
