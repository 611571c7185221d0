# SPDX-License-Identifier: Apache-2.0
"""Whose a network is: of the Peers' mesh addresses and allowedIPs, those that count; `nodenetworks` has the rest. Pure.

An allowedIP takes traffic from every node, so some networks are nobody's to announce. In this order:

- what overlaps the mesh's own ranges, or a mesh address: the mesh;
- what covers an API server: kubelets, whose packets carry no mark of ours, must reach it without the mesh. The operator
  publishes these addresses in the Mesh's status; an agent adds those that it is connected to;
- what covers an address of another node, which the packets between nodes go to. Every Peer shows its node's in
  `.status.candidates` and `.spec.endpoint`, so operator and agents decide alike, and at once. A node may announce the
  network that it stands in itself; and Nodes that are not in the mesh may stand behind one that is;
- what belongs to another Node by the Mesh's `routing`: its addresses, its pod ranges;
- what an older Peer has.

What overlaps one of the Mesh's `routing.excludeCIDRs` goes through the mesh for nobody.

Addresses inside the cluster's Service and pod ranges are nobody's place (bridges of the CNI, the Service of the API
server): a network that covers them may go through the mesh.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from .intervals import Intervals
from .reading import Address, Network, Problem, Reading, readable_address, readable_network
from .v1alpha1 import WireKubeMesh

Claimed = dict[str, frozenset[Network]]
"""By Peer."""

NOTHING: Final[Claimed] = {}
EXCLUDED: Final = "which the Mesh's routing.excludeCIDRs names"


@dataclass(frozen=True)
class Reserved:
    """What no Peer may announce.

    Attributes:
        mesh: the ranges of mesh addresses.
        cluster: Service and pod ranges; addresses inside count neither as an API server's nor as a node's.
        servers: addresses of API servers.
        relays: addresses of relays.
        excluded: networks that the user keeps outside of the mesh.
    """

    mesh: tuple[Network, ...] = ()
    cluster: tuple[Network, ...] = ()
    servers: tuple[Address, ...] = ()
    relays: tuple[Address, ...] = ()
    excluded: tuple[Network, ...] = ()


def reserved(mesh: WireKubeMesh, connected: Iterable[Address] = ()) -> Reserved:
    """Return what is reserved by the Mesh, and by the API servers that this process is connected to."""
    status = mesh.status
    hosts = (text.rpartition(":")[0].strip("[]") for relay in status.relays for text in relay.endpoints)
    return Reserved(
        tuple(map(ip_network, status.mesh_cidrs)),
        tuple(map(ip_network, status.cluster_cidrs)),
        (*map(ip_address, status.api_servers), *connected),
        tuple(ip for host in dict.fromkeys(hosts) if (ip := readable_address(host)) is not None),
        tuple(
            each
            for text in mesh.spec.routing.exclude_cidrs
            if (each := readable_network(text, strict=False)) is not None
        ),
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
    nodes: Claimed = NOTHING,
    pods: Claimed = NOTHING,
) -> Claimed:
    """Return the allowedIPs that each Peer keeps, older Peers first; Peers without any are left out.

    Args:
        peers: older ones first.
        addresses: mesh addresses.
        reserved: what is nobody's.
        problems: what is left out is added.
        nodes: the Nodes' own addresses that go through the mesh.
        pods: the same of their pod ranges.
    """
    peers = list(peers)
    claiming = [peer for peer in peers if peer.allowed]
    if not claiming:
        return {}
    taken, places = _taken(addresses, reserved), Places(peers, (*reserved.mesh, *reserved.cluster), nodes)
    excluded, ranges = covering(reserved.excluded, EXCLUDED), _pod_ranges(pods)
    result: Claimed = {}
    for peer in claiming:
        name, own = peer.name, pod_range_of(peer.name)
        kept: set[Network] = set()
        for text, wanted in peer.allowed:
            if wanted is None or wanted.prefixlen == 0:
                problems.append(Problem(name, "AllowedIPMalformed", f"{text} is no network, or a default route"))
                continue
            clash = taken.overlapping(wanted) or places.inside(wanted, name)
            clash = clash or next((each for each in ranges.all_overlapping(wanted) if each[1] != own), None)
            if (out := excluded.overlapping(wanted)) is not None:
                problems.append(Problem(name, "AllowedIPExcluded", f"{text} overlaps {out[0]}, {out[1]}"))
            elif clash is not None:
                problems.append(Problem(name, "AllowedIPOverlaps", f"{text} overlaps {clash[0]}, {clash[1]}"))
            else:
                kept.add(wanted)
                taken.add(wanted, f"which the Peer {name} has")
        result[name] = frozenset(kept)
    return result


def mesh_networks(addresses: Mapping[str, Iterable[Network]], reserved: Reserved) -> Iterator[tuple[Network, str]]:
    """Yield the mesh's own networks with the words that say so."""
    for network in reserved.mesh:
        yield network, "the mesh's own range"
    for name, own in addresses.items():
        for network in own:
            yield network, f"the mesh address of the Peer {name}"


def pod_range_of(node: str) -> str:
    """Return the words that say whose a pod range is."""
    return f"a pod range of the Node {node}"


def _taken(addresses: Mapping[str, Iterable[Network]], reserved: Reserved) -> Intervals:
    taken = Intervals()
    for network, words in mesh_networks(addresses, reserved):
        taken.add_new(network, words)
    cluster = covering(reserved.cluster)
    for server in reserved.servers:
        if cluster.overlapping(network := ip_network(server)) is None:
            taken.add_new(network, "an address of the API server, which is reached without the mesh")
    return taken


def _pod_ranges(pods: Claimed) -> Intervals:
    found = Intervals()
    for name, ranges in pods.items():
        for network in ranges:
            found.add(network, pod_range_of(name))
    return found


def covering(networks: Iterable[Network], words: str = "") -> Intervals:
    """Return a look-up of networks that may overlap each other, with the same words for all."""
    found = Intervals()
    for network in sorted(networks, key=lambda each: each.prefixlen):
        # Of two that overlap the larger one, which contains the other.
        found.add_new(network, words)
    return found


class Places:
    """The addresses of nodes, with a quick look-up of those inside a network.

    Args:
        peers: whose candidates and endpoints are taken.
        nowhere: addresses in there are nobody's.
        nodes: further addresses, by Peer.
    """

    def __init__(self, peers: Iterable[Reading], nowhere: Iterable[Network], nodes: Claimed = NOTHING) -> None:
        excluded = covering(nowhere)
        self._places: dict[int, list[tuple[int, str]]] = {4: [], 6: []}
        for peer in peers:
            for place in (*peer.places, *nodes.get(peer.name, ())):
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
