# SPDX-License-Identifier: Apache-2.0
"""From a topology to namespaces, links, addresses and rules. Pure.

    home-a eth0 -- l0 [lan] nat-home-a wan --+
    cloud  eth0 -----------------------------+-- [br0] internet 203.0.113.0/24 -- stun .1 .2, relay .3, api .5, dns .9
    office eth0 -- l0 [lan] nat-office wan --+

A node with a pod range has a pod behind it, as a CNI would make it: pod-home-a eth0 -- cni0 home-a.

Each box is a network namespace; a link is a veth pair whose ends are born in their namespaces, so that no name of a link
can clash with one of the machine's or of another lab's. None of them has a way out of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from ..api.v1alpha1.mesh import MeshSpec
from .rules import WAN, balancer_rules, node_rules, router_rules
from .topology import (
    API_ADDRESS,
    DNS_ADDRESS,
    DNS_SERVICE,
    FIRST_PUBLIC,
    INTERNET,
    POD_PREFIX,
    RELAY_ADDRESS,
    RELAY_PORT,
    ROUTER_PREFIX,
    STUN_ADDRESSES,
    Node,
    Topology,
    relay_ports,
)

NAMESPACE_PREFIX = "wk"
UPLINK = "eth0"
BRIDGE = "br0"
LAN = "lan"
CNI = "cni0"

_NO_IPV6 = {"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"}
_ROUTER = {"net/ipv4/ip_forward": "1", **_NO_IPV6}
# Duplicate address detection makes an IPv6 address unusable for a second or two.
_NODE = {f"net/ipv6/conf/{name}/accept_dad": "0" for name in ("all", "default", UPLINK)}


@dataclass(frozen=True)
class Box:
    """One network namespace.

    Attributes:
        name: short, as people call it.
        commands: for `ip -batch` inside the namespace.
        sysctls: path below /proc/sys to value, written before the commands.
        rules: for `nft -f` inside the namespace; empty for none.
    """

    name: str
    commands: tuple[str, ...]
    sysctls: dict[str, str] = field(default_factory=dict)
    rules: str = ""


@dataclass(frozen=True)
class Cable:
    """A veth pair: (box, interface) to (box, interface)."""

    first: tuple[str, str]
    second: tuple[str, str]


@dataclass(frozen=True)
class Place:
    """Where a node stands.

    Attributes:
        address: its own, on its only link.
        public: as the internet sees it, its own or its router's.
        router: box name of its router; None for a public node.
    """

    address: IPv4Address
    public: IPv4Address
    router: str | None


@dataclass(frozen=True)
class NetworkPlan:
    """All boxes and cables of a lab, and where each node stands."""

    boxes: tuple[Box, ...]
    cables: tuple[Cable, ...]
    places: dict[str, Place]


def namespace(lab: str, box: str) -> str:
    """Return the name of a box's network namespace; the dots keep labs apart, for no name of a part has one."""
    return f"{NAMESPACE_PREFIX}.{lab}.{box}"


def plan_network(topology: Topology) -> NetworkPlan:
    """Lay out a topology."""
    places = _places(topology)
    spec = MeshSpec.model_validate(topology.mesh)
    services = _services(topology)
    public = [(name, UPLINK) for name in services]
    public += [(node.name, UPLINK) for node in topology.nodes if places[node.name].router is None]
    routers = [node for node in topology.nodes if places[node.name].router and node.behind is None]
    public += [(ROUTER_PREFIX + node.name, WAN) for node in routers]
    cables = [Cable(("internet", f"p{index}"), end) for index, end in enumerate(public)]
    boxes = [_internet(len(public))]
    boxes += [_public_box(name, addresses, _balancer(topology, name)) for name, addresses in services.items()]
    for router in routers:
        inside = [node for node in topology.nodes if places[node.name].router == ROUTER_PREFIX + router.name]
        boxes.append(_router(router, places[router.name], len(inside)))
        cables += [
            Cable((ROUTER_PREFIX + router.name, f"l{at}"), (node.name, UPLINK)) for at, node in enumerate(inside)
        ]
    for node in topology.nodes:
        rules = node_rules(node, spec.interface_name, spec.listen_port)
        boxes.append(_node(node, places[node.name], rules))
        if node.pod_cidr is not None:
            boxes.append(_pod(node.name, node.pod_cidr))
            cables.append(Cable((node.name, CNI), (POD_PREFIX + node.name, UPLINK)))
    return NetworkPlan(tuple(boxes), tuple(cables), places)


def _services(topology: Topology) -> dict[str, tuple[IPv4Address, ...]]:
    found: dict[str, tuple[IPv4Address, ...]] = {"stun": STUN_ADDRESSES, "api": (API_ADDRESS,)}
    if topology.relay is not None:
        found["relay"] = (RELAY_ADDRESS,)
    if topology.names:
        found["dns"] = (DNS_ADDRESS,)
    return found


def _balancer(topology: Topology, service: str) -> str:
    if service != "relay" or topology.relay is None or topology.relay.replicas == 1:
        return ""
    return balancer_rules(RELAY_PORT, relay_ports(topology.relay.replicas))


def _places(topology: Topology) -> dict[str, Place]:
    """Give each public node and router a public address, each LAN a /24, each node behind a router an address there."""
    places: dict[str, Place] = {}
    lans: dict[str, list[str]] = {}
    for index, node in enumerate(topology.nodes):
        public = INTERNET[FIRST_PUBLIC + index]
        router = topology.router_of(node)
        if router is None:
            places[node.name] = Place(public, public, None)
            continue
        inside = lans.setdefault(router, [])
        inside.append(node.name)
        owner = [each.name for each in topology.nodes].index(router)
        places[node.name] = Place(_lan(owner)[1 + len(inside)], INTERNET[FIRST_PUBLIC + owner], ROUTER_PREFIX + router)
    return places


def _lan(index: int) -> IPv4Network:
    return IPv4Network(f"192.168.{10 + index}.0/24")


def _up(link: str) -> str:
    return f"link set {link} up"


def _internet(ports: int) -> Box:
    joined = [f"link set p{index} master {BRIDGE} up" for index in range(ports)]
    return Box("internet", (f"link add {BRIDGE} type bridge", _up(BRIDGE), *joined), dict(_NO_IPV6))


def _public_box(name: str, addresses: tuple[IPv4Address, ...], rules: str) -> Box:
    added = [f"address add {address}/{INTERNET.prefixlen} dev {UPLINK}" for address in addresses]
    return Box(name, (_up("lo"), *added, _up(UPLINK)), dict(_NO_IPV6), rules)


def _router(node: Node, place: Place, inside: int) -> Box:
    gateway = IPv4Interface(f"{_gateway(place.address)}/24")
    commands = [
        f"link add {LAN} type bridge",
        *(f"link set l{index} master {LAN} up" for index in range(inside)),
        f"address add {gateway} dev {LAN}",
        f"address add {place.public}/{INTERNET.prefixlen} dev {WAN}",
        *map(_up, ("lo", LAN, WAN)),
    ]
    return Box(ROUTER_PREFIX + node.name, tuple(commands), dict(_ROUTER), router_rules(node.nat, place.public))


def _gateway(address: IPv4Address) -> IPv4Address:
    return IPv4Network(f"{address}/24", strict=False)[1]


def _pod(node: str, network: IPv4Network) -> Box:
    commands = [
        *map(_up, ("lo", UPLINK)),
        f"address add {network[2]}/{network.prefixlen} dev {UPLINK}",
        f"route add default via {network[1]}",
    ]
    return Box(POD_PREFIX + node, tuple(commands), dict(_NO_IPV6))


def _node(node: Node, place: Place, rules: str) -> Box:
    # A public node has no way out either: its default route leads to the API server's box, which forwards nothing.
    gateway = _gateway(place.address) if place.router else API_ADDRESS
    commands = [
        *map(_up, ("lo", UPLINK)),
        f"address add {place.address}/24 dev {UPLINK}",
        f"route add default via {gateway}",
    ]
    rp_filter = {f"net/ipv4/conf/{name}/rp_filter": str(node.rp_filter) for name in ("all", "default", UPLINK)}
    sysctls = {**_NODE, **rp_filter}
    if node.pod_cidr is not None:
        commands += [f"address add {node.pod_cidr[1]}/{node.pod_cidr.prefixlen} dev {CNI}", _up(CNI)]
        sysctls["net/ipv4/ip_forward"] = "1"
    if node.services:
        commands.append(f"address add {DNS_SERVICE}/32 dev lo")
        sysctls["net/ipv4/ip_forward"] = "1"
    return Box(node.name, tuple(commands), sysctls, rules)
