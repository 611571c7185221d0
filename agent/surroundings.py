# SPDX-License-Identifier: Apache-2.0
"""What stands around this host, and what follows for the networks of Nodes, which are asked before table main. Pure.

- An address or a pod range of another Node that contains an address of this very host, its gateway or its resolver is
  left out here: the host could not do without them. That it lies in a network that the host is attached to is no reason,
  home networks all look alike.
- An address of this host that the others do not have in the mesh (an API server is reached there, two Nodes claim it, it
  is public) is *outside*: whatever was sent to it came by another way, and the others would refuse an answer that comes
  out of the mesh with it as its source. See `routing/plan.py` and `steering/plan.py` for what keeps answers out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from ..api.claims import covering
from ..api.intervals import Intervals
from ..wire.endpoint import IPAddress
from .facts import Network, OwnFacts, PeerFacts
from .routing.model import Interface


@dataclass(frozen=True)
class Surroundings:
    """What was seen.

    Attributes:
        own: addresses of this host, of every interface but the mesh's.
        hops: table main's routes that have a next hop: destination, next hop.
        resolvers: name servers of the host and of the pod.
    """

    own: frozenset[IPAddress] = frozenset()
    hops: tuple[tuple[Network, IPAddress], ...] = ()
    resolvers: frozenset[IPAddress] = frozenset()


def fitting(
    peers: Sequence[PeerFacts], around: Surroundings, ranges: Collection[Network]
) -> tuple[tuple[PeerFacts, ...], tuple[str, ...]]:
    """Return the peers without the networks that this host cannot have, and a line for each that was left out.

    Args:
        peers: other nodes.
        around: what this host needs.
        ranges: of mesh addresses, Services and pods. A next hop to pods is a node, as plain CNIs write it.
    """
    if not any(peer.preferred for peer in peers):
        return tuple(peers), ()
    pods = (network for peer in peers for network in peer.preferred if network.num_addresses > 1)
    needed = _needed(around, covering(ranges), covering((*ranges, *pods)))
    kept, lines = [], []
    for peer in peers:
        lost = {network: why for network in peer.preferred if (why := _conflict(network, needed))}
        lines += [f"{network} of {peer.name} {lost[network]}" for network in sorted(lost, key=str)]
        kept.append(_without(peer, frozenset(lost)) if lost else peer)
    return tuple(kept), tuple(lines)


def outside(attached: Iterable[Interface], own: OwnFacts, peers: Iterable[PeerFacts]) -> frozenset[IPAddress]:
    """Return this host's addresses that others have no way to through the mesh; none while no peer has such either."""
    if not any(peer.preferred for peer in peers):
        return frozenset()
    return frozenset(each.ip for each in attached if not any(each.ip in network for network in own.networks))


def _needed(around: Surroundings, cluster: Intervals, pods: Intervals) -> dict[IPAddress, str]:
    """Return the addresses that this host cannot do without, with the words that say why."""
    resolvers = (each for each in around.resolvers if cluster.overlapping(ip_network(each)) is None)
    gateways = (hop for destination, hop in around.hops if not _within(destination, pods))
    return (
        dict.fromkeys(resolvers, "this host's resolver")
        | dict.fromkeys(gateways, "this host's gateway")
        | dict.fromkeys(around.own, "an address of this host")
    )


def _within(network: Network, ranges: Intervals) -> bool:
    # Two networks that overlap are one within the other.
    found = ranges.overlapping(network)
    return found is not None and found[0].prefixlen <= network.prefixlen


def _conflict(network: Network, needed: Mapping[IPAddress, str]) -> str:
    """Return what speaks against a network; empty when nothing does."""
    if network.num_addresses == 1:
        words = needed.get(network.network_address)
        return f"is {words}" if words else ""
    found = next((ip for ip in needed if ip in network), None)
    return f"contains {found}, {needed[found]}" if found is not None else ""


def _without(peer: PeerFacts, lost: frozenset[Network]) -> PeerFacts:
    return replace(peer, networks=peer.networks - lost, preferred=peer.preferred - lost)
