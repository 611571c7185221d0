# SPDX-License-Identifier: Apache-2.0
"""What the host's routing should be, what it is, and the actions that make the one the other. Pure.

Three rules in each family, in the order in which the kernel asks them, all after the rule for table `local`:

1. fwmark 0x574B: table main. WireGuard's own packets, probes and the relay client's carry the mark, so an endpoint is
   never routed through the mesh. This holds as long as main has no route over our interface: our addresses are added
   without the prefix route that the kernel would make there.
2. everything: table main with `suppress_prefixlength 0`, which is main without its default route. What main knows more
   exactly (attached LANs, the CNI's pod routes) is never captured by a network that a peer announces.
3. everything: table 22347 with `suppress_prefixlength 0`: the mesh. A /0 in the table, whoever put it there, is never
   used, so no peer can take the host's default route.

What is left falls through to the system's own rule for main, and takes its default route. Rules 1 and 2 may share
priority 199 when `local` was moved up there; their order is then of no matter, as both only ask main.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from ...api.constants import FWMARK, ROUTE_PROTOCOL, TABLE, VIRTUAL_IPV4, VIRTUAL_IPV6

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

MAIN: Final = 254
LOCAL: Final = 255
MARK_PRIORITY: Final = 110  # after Cilium's rule for `local` at 100
MAIN_PRIORITY: Final = 199
MESH_PRIORITY: Final = 200
DOCUMENTATION: Final[dict[int, Network]] = {4: IPv4Network(VIRTUAL_IPV4), 6: IPv6Network(VIRTUAL_IPV6)}

WANTED_SYSCTLS: Final = {"rp_filter": "2", "disable_xfrm": "1", "disable_policy": "1"}
"""Of `ipv4/conf/INTERFACE/`. The kernel uses max(all, interface) for rp_filter: 2 (loose) wins over a strict 1."""


@dataclass(frozen=True)
class HostPlan:
    """What the host should look like.

    Attributes:
        interface: the mesh interface; the WireGuard backend makes it.
        mtu: its MTU.
        addresses: its addresses, all that it has but link-local ones.
        routes: destinations in table 22347. A /0 is left out.
        source4: the preferred source of the IPv4 routes.
        source6: the same of the IPv6 ones.
    """

    interface: str
    mtu: int
    addresses: tuple[Interface, ...]
    routes: frozenset[Network]
    source4: IPv4Address | None
    source6: IPv6Address | None


@dataclass(frozen=True)
class Rule:
    """One policy rule. `plain` is False when it has a selector or an action that these fields do not express."""

    version: int
    priority: int
    table: int
    fwmark: int | None = None
    fwmask: int | None = None
    suppress: int | None = None
    protocol: int = 0
    plain: bool = True

    def __str__(self) -> str:
        mark = "" if self.fwmark is None else f" fwmark {self.fwmark:#x}"
        suppress = "" if self.suppress is None else f" suppress_prefixlength {self.suppress}"
        return f"IPv{self.version} rule {self.priority}:{mark} lookup {self.table}{suppress}"


@dataclass(frozen=True)
class Route:
    """One route. `link` is the index of the interface, 0 for none; `plain` as in Rule (a gateway, several hops, ...)."""

    destination: Network
    table: int
    link: int
    protocol: int = ROUTE_PROTOCOL
    source: Address | None = None
    plain: bool = True

    def __str__(self) -> str:
        source = "" if self.source is None else f" src {self.source}"
        return f"route {self.destination} link {self.link} table {self.table}{source}"


@dataclass(frozen=True)
class HostState:
    """What was observed.

    Attributes:
        link: index of the mesh interface, None when there is none.
        mtu: its MTU.
        up: whether it is up.
        versions: the IP versions that can be used on it: {4} or {4, 6}.
        addresses: its addresses but link-local ones.
        routes: those of table 22347 over any interface, and in table main ours for the documentation addresses.
        rules: all rules of both families.
        sysctls: WANTED_SYSCTLS's names with the values that they have; a missing one does not exist.
        defaults: the IP versions with a default route in table main that is not over the mesh interface.
        spare: per IP version the interface that a route for the documentation address may use.
    """

    link: int | None = None
    mtu: int = 0
    up: bool = False
    versions: frozenset[int] = frozenset((4,))
    addresses: frozenset[Interface] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    sysctls: dict[str, str] = field(default_factory=dict)
    defaults: frozenset[int] = frozenset()
    spare: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SetLink:
    """Give the interface an MTU and bring it up."""

    link: int
    mtu: int

    def __str__(self) -> str:
        return f"set link {self.link} up with MTU {self.mtu}"


@dataclass(frozen=True)
class SetSysctl:
    """Write one of WANTED_SYSCTLS on the interface, keeping the old value."""

    interface: str
    name: str
    value: str
    old: str

    def __str__(self) -> str:
        return f"sysctl net.ipv4.conf.{self.interface}.{self.name} from {self.old} to {self.value}"


@dataclass(frozen=True)
class SetAddress:
    """Add or delete an address of the interface."""

    link: int
    address: Interface
    present: bool

    def __str__(self) -> str:
        return f"{'add' if self.present else 'delete'} address {self.address}"


@dataclass(frozen=True)
class SetRoute:
    """Install (in place of one with the same destination and table) or delete a route."""

    route: Route
    present: bool

    def __str__(self) -> str:
        return f"{'install' if self.present else 'delete'} {self.route}"


@dataclass(frozen=True)
class SetRule:
    """Add or delete a rule."""

    rule: Rule
    present: bool

    def __str__(self) -> str:
        return f"{'add' if self.present else 'delete'} {self.rule}"


Action = SetLink | SetSysctl | SetAddress | SetRoute | SetRule


def is_ours(rule: Rule) -> bool:
    """Whether a rule is one of the mesh, of any priority: by table, by mark, or the one for main by its form.

    The protocol number alone proves nothing: FRR uses the same one for IS-IS.
    """
    suppressing = rule.table == MAIN and rule.suppress == 0 and rule.protocol == ROUTE_PROTOCOL
    return rule.table == TABLE or rule.fwmark == FWMARK or suppressing


def mark_priority(rules: Iterable[Rule], version: int) -> int:
    """Return the priority of the fwmark rule: after every rule for table `local`, before the mesh's (199 at most)."""
    local = max((rule.priority for rule in rules if rule.version == version and rule.table == LOCAL), default=0)
    return min(max(local + 10, MARK_PRIORITY), MAIN_PRIORITY)


def wanted_rules(rules: Iterable[Rule], version: int) -> tuple[Rule, Rule, Rule]:
    """Return the three rules of one IP version, in the order in which the kernel asks them."""
    mark = mark_priority(rules, version)
    return (
        Rule(version, mark, MAIN, fwmark=FWMARK, fwmask=0xFFFFFFFF, protocol=ROUTE_PROTOCOL),
        Rule(version, MAIN_PRIORITY, MAIN, suppress=0, protocol=ROUTE_PROTOCOL),
        Rule(version, MESH_PRIORITY, TABLE, suppress=0, protocol=ROUTE_PROTOCOL),
    )


def wanted_routes(plan: HostPlan, observed: HostState) -> frozenset[Route]:
    """Return the routes of table 22347, and those for the documentation address where there is no default route."""
    if observed.link is None:
        return frozenset()
    sources: dict[int, Address | None] = {4: plan.source4, 6: plan.source6}
    mesh = (
        Route(network, TABLE, observed.link, source=sources[network.version])
        for network in plan.routes
        if network.version in observed.versions and network.prefixlen
    )
    spare = (
        Route(DOCUMENTATION[version], MAIN, observed.spare[version])
        for version in observed.versions - observed.defaults
        if version in observed.spare
    )
    return frozenset((*mesh, *spare))


def host_actions(plan: HostPlan, observed: HostState) -> list[Action]:
    """Return what to do, only differences, in a safe order; empty while the interface does not exist.

    Things are added in the order in which they protect: the rules for the mark and for main stand before the mesh's
    routes and rule, and what is out of date goes last, so that at no time marked packets can enter the mesh.
    """
    if observed.link is None:
        return []
    return [
        *_link(plan, observed, observed.link),
        *_rules_to_add(observed),
        *_routes(plan, observed),
        *(SetRule(rule, present=False) for rule in _stale_rules(observed)),
    ]


def removal(observed: HostState) -> list[Action]:
    """Return what takes all of ours away: rules first, so that nothing is routed into a half-empty table."""
    return [
        *(SetRule(rule, present=False) for rule in _ordered_rules(filter(is_ours, observed.rules))),
        *(SetRoute(route, present=False) for route in _ordered(observed.routes)),
    ]


def _link(plan: HostPlan, observed: HostState, link: int) -> Iterator[Action]:
    for name, value in WANTED_SYSCTLS.items():
        old = observed.sysctls.get(name)
        if old is not None and old != value:
            yield SetSysctl(plan.interface, name, value, old)
    if not observed.up or observed.mtu != plan.mtu:
        yield SetLink(link, plan.mtu)
    wanted = {address for address in plan.addresses if address.version in observed.versions}
    for address in sorted(wanted - observed.addresses, key=str):
        yield SetAddress(link, address, present=True)
    for address in sorted(observed.addresses - wanted, key=str):
        yield SetAddress(link, address, present=False)


def _rules_to_add(observed: HostState) -> Iterator[Action]:
    for version in sorted(observed.versions):
        for rule in wanted_rules(observed.rules, version):
            if rule not in observed.rules:
                yield SetRule(rule, present=True)


def _stale_rules(observed: HostState) -> list[Rule]:
    wanted = {rule for version in observed.versions for rule in wanted_rules(observed.rules, version)}
    return _ordered_rules(rule for rule in observed.rules if is_ours(rule) and rule not in wanted)


def _routes(plan: HostPlan, observed: HostState) -> Iterator[Action]:
    """Yield the routes to install, then those to delete but for destinations that were just replaced.

    In IPv6 two routes of one destination over different links can stand beside each other, so there the old one is
    always deleted.
    """
    wanted = wanted_routes(plan, observed)
    replaced = {(route.destination, route.table) for route in wanted if route.destination.version == 4}
    for route in _ordered(wanted - observed.routes):
        yield SetRoute(route, present=True)
    for route in _ordered(observed.routes - wanted):
        if (route.destination, route.table) not in replaced:
            yield SetRoute(route, present=False)


def _ordered(routes: Iterable[Route]) -> list[Route]:
    return sorted(
        routes, key=lambda route: (route.destination.version, str(route.destination), route.table, route.link)
    )


def _ordered_rules(rules: Iterable[Rule]) -> list[Rule]:
    return sorted(rules, key=lambda rule: (rule.version, rule.priority, str(rule)))
