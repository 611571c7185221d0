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

Networks of Nodes (their addresses, their pod ranges) are for the mesh although main knows another way to them: the LAN,
which looks alike at every home, or a CNI's route through a node's address. While there are any, two more stand between
1 and 2:

- from each own address that is outside (`surroundings.py`): table main. What was sent there came without the mesh, and is
  answered without it.
- everything: table 22348, which has these networks again. A rule cannot pick some routes of 22347 out.

Where `local` was moved so far up that there is no place between (nobody is known to do that), they are left out.

Packets between nodes arrive from addresses that are routed into the mesh by then, at an interface that is not the mesh's:
a strict reverse path filter there would drop them, and is made loose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from ...api.constants import FIRST_TABLE, FWMARK, ROUTE_PROTOCOL, TABLE, VIRTUAL_IPV4, VIRTUAL_IPV6
from .model import (
    Action,
    Address,
    HostPlan,
    HostState,
    Network,
    RestoreSysctls,
    Route,
    Rule,
    SetAddress,
    SetLink,
    SetRoute,
    SetRule,
    SetSysctl,
)

MAIN: Final = 254
LOCAL: Final = 255
MARK_PRIORITY: Final = 110  # after Cilium's rule for `local` at 100
OUTSIDE_PRIORITY: Final = 197
FIRST_PRIORITY: Final = 198
MAIN_PRIORITY: Final = 199
MESH_PRIORITY: Final = 200
DOCUMENTATION: Final[dict[int, Network]] = {4: IPv4Network(VIRTUAL_IPV4), 6: IPv6Network(VIRTUAL_IPV6)}

WANTED_SYSCTLS: Final = {"rp_filter": "2", "disable_xfrm": "1", "disable_policy": "1"}
"""Of `ipv4/conf/INTERFACE/`. The kernel uses max(all, interface) for rp_filter: 2 (loose) wins over a strict 1."""
FILTER: Final = "rp_filter"
STRICT, LOOSE = "1", "2"


def is_ours(rule: Rule) -> bool:
    """Whether a rule is one of the mesh, of any priority: by table, by mark, or those for main by their form.

    The protocol number alone proves nothing: FRR uses the same one for IS-IS.
    """
    outside = rule.source is not None and rule.priority == OUTSIDE_PRIORITY
    for_main = rule.table == MAIN and rule.protocol == ROUTE_PROTOCOL and (rule.suppress == 0 or outside)
    return rule.table in (TABLE, FIRST_TABLE) or rule.fwmark == FWMARK or for_main


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


def preferring_rules(plan: HostPlan, mark: Rule) -> tuple[Rule, ...]:
    """Return the rules that are there only while something is asked before table main, in the kernel's order.

    Args:
        plan: what is asked first.
        mark: the rule for our mark in the same IP version, which has to come before them.
    """
    version = mark.version
    if mark.priority >= OUTSIDE_PRIORITY or not any(network.version == version for network in plan.preferred):
        return ()
    own = sorted((address for address in plan.outside if address.version == version), key=int)
    return (
        *(Rule(version, OUTSIDE_PRIORITY, MAIN, protocol=ROUTE_PROTOCOL, source=address) for address in own),
        Rule(version, FIRST_PRIORITY, FIRST_TABLE, suppress=0, protocol=ROUTE_PROTOCOL),
    )


def wanted_routes(plan: HostPlan, observed: HostState) -> frozenset[Route]:
    """Return the routes of our tables, and those for the documentation address where there is no default route."""
    if observed.link is None:
        return frozenset()
    sources: dict[int, Address | None] = {4: plan.source4, 6: plan.source6}
    mesh = (
        Route(network, table, observed.link, source=sources[network.version])
        for table, networks in ((TABLE, plan.routes), (FIRST_TABLE, plan.preferred))
        for network in networks
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
        *(SetSysctl(name, FILTER, LOOSE, old) for name, old in sorted(observed.strict.items())),
        *_rules_to_add(plan, observed),
        *_routes(plan, observed),
        *(SetRule(rule, present=False) for rule in _stale_rules(plan, observed)),
        *(RestoreSysctls(name) for name in sorted(observed.loosened - observed.underlay)),
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


def _all_rules(plan: HostPlan, observed: HostState, version: int) -> list[Rule]:
    mark, main, mesh = wanted_rules(observed.rules, version)
    return [mark, *preferring_rules(plan, mark), main, mesh]


def _rules_to_add(plan: HostPlan, observed: HostState) -> Iterator[Action]:
    for version in sorted(observed.versions):
        for rule in _all_rules(plan, observed, version):
            if rule not in observed.rules:
                yield SetRule(rule, present=True)


def _stale_rules(plan: HostPlan, observed: HostState) -> list[Rule]:
    wanted = {rule for version in observed.versions for rule in _all_rules(plan, observed, version)}
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
