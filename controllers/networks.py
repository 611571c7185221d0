# SPDX-License-Identifier: Apache-2.0
"""What goes through the mesh for a Node: asked for by the Mesh, read from the Node, judged on the Peer. Pure.

Addresses and pod ranges of members are judged by the rule that the agents share. An address that a Node outside of the
mesh has, too, only the operator can see; such a one does not get into the Peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Final

from pydantic import ValidationError

from ..api.reading import Problem
from ..api.v1alpha1 import WireKubeMesh
from ..api.v1alpha1.mesh import RoutingSpec
from ..api.v1alpha1.peer import MOST_NODE_ADDRESSES, MOST_POD_CIDRS
from ..runtime.objects import Key, Object
from ..runtime.reflector import Event
from ..runtime.store import Store
from .kinds import spec_of, status_of
from .nodes import networks, pod_ranges, wants_mesh
from .verdicts import NOT_REQUESTED, Verdict

PRIVATE: Final = tuple(
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""RFC 1918, RFC 6598 (carrier-grade NAT), RFC 4193. Public addresses are reached without the mesh."""

ALLOWED_IPS_ACCEPTED, NODE_ADDRESSES_ACCEPTED = "AllowedIPsAccepted", "NodeAddressesAccepted"
POD_CIDRS_ACCEPTED = "PodCIDRsAccepted"
CONDITIONS: Final = (ALLOWED_IPS_ACCEPTED, NODE_ADDRESSES_ACCEPTED, POD_CIDRS_ACCEPTED)
EXPECTED: Final = frozenset({"APIServerAddress", "RelayAddress"})
"""Reasons that every mesh may have: nothing is wrong."""

# Condition, field of the Peer, how the reasons of its problems begin, what is said when there are none.
_FIELDS: Final = (
    (ALLOWED_IPS_ACCEPTED, "allowedIPs", ("AllowedIP",), "all allowedIPs are in use"),
    (
        NODE_ADDRESSES_ACCEPTED,
        "nodeAddresses",
        ("NodeAddress", *EXPECTED),
        "others reach the node at these addresses through the mesh",
    ),
    (POD_CIDRS_ACCEPTED, "podCIDRs", ("PodCIDR",), "others reach the node's pods through the mesh"),
)
_NAMES: Final = tuple(field for _, field, _, _ in _FIELDS)
BY_ADDRESS: Final = "internalIP"
WITH_NETWORKS, WITH_ALLOWED_IPS = "networks", "allowedIPs"
_LONGEST_MESSAGE = 1000


def routing_of(mesh: Object | None) -> RoutingSpec:
    """Return spec.routing of the Mesh; the defaults when there is no Mesh or it is malformed."""
    try:
        return WireKubeMesh.model_validate(mesh).spec.routing if mesh else RoutingSpec()
    except ValidationError:
        return RoutingSpec()


def internal_addresses(node: Object) -> tuple[str, ...]:
    """Return the Node's private InternalIPs, IPV4/32 and IPV6/128, in its order."""
    entries = status_of(node).get("addresses") or []
    texts = (entry.get("address") for entry in entries if entry.get("type") == "InternalIP")
    found = (str(network) for text in texts if (network := _private(text)) is not None)
    return tuple(dict.fromkeys(found))[:MOST_NODE_ADDRESSES]


def _private(text: object) -> object | None:
    try:
        ip = ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return ip_network(ip) if ip is not None and any(ip in network for network in PRIVATE) else None


def pod_cidrs(node: Object) -> tuple[str, ...]:
    """Return the Node's pod ranges."""
    return tuple(dict.fromkeys(map(str, networks(pod_ranges([node])))))[:MOST_POD_CIDRS]


def add_indexes(nodes: Store, peers: Store) -> None:
    """Make the stores ready for what is below."""
    nodes.add_index(BY_ADDRESS, lambda node: list(internal_addresses(node)))
    peers.add_index(WITH_ALLOWED_IPS, lambda peer: ["yes"] if spec_of(peer).get("allowedIPs") else [])
    peers.add_index(WITH_NETWORKS, lambda peer: ["yes"] if has_any(peer) else [])


def has_any(peer: Object) -> bool:
    """Whether the Peer has networks beside its mesh addresses."""
    return any(map(spec_of(peer).get, _NAMES))


def claimed_outside(node: Object, nodes: Store) -> dict[str, str]:
    """Return those of the Node's private addresses that a Node outside of the mesh has, too, with that Node's name."""
    own, found = node["metadata"]["name"], {}
    for address in internal_addresses(node):
        others = (other for other in nodes.by_index(BY_ADDRESS, address) if not wants_mesh(other))
        name = next((other["metadata"]["name"] for other in others if other["metadata"]["name"] != own), None)
        if name is not None:
            found[address] = name
    return found


def wanted_networks(node: Object, nodes: Store, routing: RoutingSpec) -> dict[str, list[str]]:
    """Return the fields of the Peer that the Mesh asks for; what is empty or not asked for is absent."""
    found: dict[str, list[str]] = {}
    if routing.node_addresses == "internal":
        outside = claimed_outside(node, nodes)
        found["nodeAddresses"] = [each for each in internal_addresses(node) if each not in outside]
    if routing.pod_cidrs:
        found["podCIDRs"] = list(pod_cidrs(node))
    return {field: texts for field, texts in found.items() if texts}


def outside_problems(node: Object | None, nodes: Store, routing: RoutingSpec) -> list[Problem]:
    """Return what `wanted_networks` leaves out."""
    if node is None or routing.node_addresses != "internal":
        return []
    return [
        Problem(node["metadata"]["name"], "NodeAddressTaken", f"{address} is an address of the Node {other}, too")
        for address, other in claimed_outside(node, nodes).items()
    ]


def judge_networks(peer: Object, problems: Iterable[Problem]) -> list[Verdict]:
    """Return a condition for each kind of network: what the Peer has, or would have but for a problem."""
    problems, spec = list(problems), spec_of(peer)
    verdicts = []
    for kind, field, reasons, praise in _FIELDS:
        found = [problem for problem in problems if problem.reason.startswith(reasons)]
        if found:
            message = "left out: " + "; ".join(problem.message for problem in found)
            verdicts.append(Verdict(kind, "False", found[0].reason, message[:_LONGEST_MESSAGE]))
        elif spec.get(field):
            verdicts.append(Verdict(kind, "True", "Accepted", praise))
        else:
            verdicts.append(Verdict(kind, "True", NOT_REQUESTED, f"the Peer has no {field}"))
    return verdicts


def related_peers(peers: Store, event: Event) -> list[Object]:
    """Return the Peers whose networks may be judged otherwise because of what has changed in one."""
    old, new = _claims(event.old), _claims(event.new)
    if old != new:
        return peers.by_index(WITH_NETWORKS, "yes")
    # Where a node is reached concerns allowedIPs alone.
    return peers.by_index(WITH_ALLOWED_IPS, "yes") if _places(event.old) != _places(event.new) else []


def node_to_nodes(nodes: Store) -> Callable[[Event], set[Key]]:
    """Return a mapper: a Node concerns itself and all that have an address of it."""

    def mapper(event: Event) -> set[Key]:
        addresses = {text for node in (event.old, event.new) if node is not None for text in internal_addresses(node)}
        sharing = (node for text in addresses for node in nodes.by_index(BY_ADDRESS, text))
        return {event.key} | {("", node["metadata"]["name"]) for node in sharing}

    return mapper


def _claims(peer: Object | None) -> tuple[Any, ...] | None:
    return None if peer is None else tuple(map(spec_of(peer).get, ("addresses", *_NAMES)))


def _places(peer: Object | None) -> tuple[Any, ...] | None:
    return None if peer is None else (spec_of(peer).get("endpoint"), status_of(peer).get("candidates"))
