# SPDX-License-Identifier: Apache-2.0
"""Which of a Node's own networks go through the mesh: its addresses and its pod ranges. Pure.

Both are asked for by the Mesh and written by the operator, and both are routed even where a host knows another way to them
(the CNI's plain routes, a network that the host is attached to), so they have to be nobody else's:

- pod ranges: not the mesh's, no API server in them, not what an older Peer's Node has;
- addresses: not the mesh's, in no pod or Service range, and the address of one Node alone. Who of two is meant cannot be
  known, and packets for one must not reach the other, so of two that claim the same neither has it. That they stand in
  the same network says nothing: home networks all look alike.

A node where an API server or a relay is reached keeps all its addresses outside: what others send there must arrive
before there is a mesh, and answers have to take the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from .claims import EXCLUDED, Claimed, Reserved, covering, mesh_networks, pod_range_of
from .intervals import Intervals
from .reading import Network, Problem, Reading

Addresses = Mapping[str, Iterable[Network]]


def claim_pods(peers: Iterable[Reading], addresses: Addresses, reserved: Reserved, problems: list[Problem]) -> Claimed:
    """Return the pod ranges that each Peer keeps, older Peers first; Peers without any are left out."""
    claiming = [peer for peer in peers if peer.pod_cidrs]
    if not claiming:
        return {}
    taken, excluded = _of_the_mesh(addresses, reserved), covering(reserved.excluded, EXCLUDED)
    for server in reserved.servers:
        taken.add_new(ip_network(server), "an address of the API server, which is reached without the mesh")
    result: Claimed = {}
    for peer in claiming:
        kept: set[Network] = set()
        for text, wanted in peer.pod_cidrs:
            if wanted is None or wanted.prefixlen == 0:
                problems.append(Problem(peer.name, "PodCIDRMalformed", f"{text} is no network, or a default route"))
            elif (out := excluded.overlapping(wanted)) is not None:
                problems.append(Problem(peer.name, "PodCIDRExcluded", f"{text} overlaps {out[0]}, {out[1]}"))
            elif (clash := taken.overlapping(wanted)) is not None:
                problems.append(Problem(peer.name, "PodCIDROverlaps", f"{text} overlaps {clash[0]}, {clash[1]}"))
            else:
                kept.add(wanted)
                taken.add(wanted, pod_range_of(peer.name))
        result[peer.name] = frozenset(kept)
    return result


def claim_nodes(
    peers: Iterable[Reading], addresses: Addresses, pods: Claimed, reserved: Reserved, problems: list[Problem]
) -> Claimed:
    """Return the Node's addresses that each Peer keeps; Peers without any are left out."""
    claiming = [peer for peer in peers if peer.node_addresses]
    if not claiming:
        return {}
    rule = _NodeRule(claiming, addresses, pods, reserved)
    result: Claimed = {}
    for peer in claiming:
        kept: set[Network] = set()
        outside = rule.outside(peer)
        for text, wanted in peer.node_addresses:
            problem = ("NodeAddressMalformed", f"{text} is not IPV4/32 or IPV6/128")
            if wanted is not None and wanted.num_addresses == 1:
                found = outside or rule.against(peer.name, wanted)
                if found is None:
                    kept.add(wanted)
                    continue
                problem = found[0], f"{text} {found[1]}"
            problems.append(Problem(peer.name, *problem))
        result[peer.name] = frozenset(kept)
    return result


class _NodeRule:
    """What speaks against an address, as (reason, words that follow the address)."""

    def __init__(self, peers: Iterable[Reading], addresses: Addresses, pods: Claimed, reserved: Reserved) -> None:
        self._taken = _of_the_mesh(addresses, reserved)
        for name, ranges in pods.items():
            for network in ranges:
                self._taken.add_new(network, pod_range_of(name))
        self._cluster = covering(reserved.cluster, "a pod or Service range")
        self._excluded = covering(reserved.excluded, EXCLUDED)
        self._servers, self._relays = set(map(ip_network, reserved.servers)), set(map(ip_network, reserved.relays))
        self._claimants: dict[Network, list[str]] = {}
        for peer in peers:
            for network in _readable(peer):
                self._claimants.setdefault(network, []).append(peer.name)

    def outside(self, peer: Reading) -> tuple[str, str] | None:
        """Return what keeps all of a Peer's addresses outside."""
        own = _readable(peer)
        if own & self._servers:
            return "APIServerAddress", "stays outside of the mesh: an API server is reached at this node"
        if own & self._relays:
            return "RelayAddress", "stays outside of the mesh: a relay is reached at this node"
        return None

    def against(self, name: str, network: Network) -> tuple[str, str] | None:
        """Return what speaks against one address."""
        if (out := self._excluded.overlapping(network)) is not None:
            return "NodeAddressExcluded", f"overlaps {out[0]}, {out[1]}"
        if (clash := self._taken.overlapping(network) or self._cluster.overlapping(network)) is not None:
            return "NodeAddressOverlaps", f"overlaps {clash[0]}, {clash[1]}"
        others = [other for other in self._claimants[network] if other != name]
        return ("NodeAddressTaken", f"is an address of the Node {others[0]}, too") if others else None


def _readable(peer: Reading) -> set[Network]:
    return {network for _, network in peer.node_addresses if network is not None}


def _of_the_mesh(addresses: Addresses, reserved: Reserved) -> Intervals:
    taken = Intervals()
    for network, words in mesh_networks(addresses, reserved):
        taken.add_new(network, words)
    return taken
