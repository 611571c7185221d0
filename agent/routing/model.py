# SPDX-License-Identifier: Apache-2.0
"""The words of a host's routing: what it should be, what it is, and what can be done to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from ...api.constants import ROUTE_PROTOCOL

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address


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
        preferred: those of the routes that are asked before table main.
        outside: addresses of this host that answer by table main.
        loose: addresses of this host whose interfaces must not filter strictly by reverse path.
    """

    interface: str
    mtu: int
    addresses: tuple[Interface, ...]
    routes: frozenset[Network]
    source4: IPv4Address | None
    source6: IPv6Address | None
    preferred: frozenset[Network] = frozenset()
    outside: frozenset[Address] = frozenset()
    loose: frozenset[Address] = frozenset()


@dataclass(frozen=True)
class Rule:
    """One policy rule; `source` is a single address that packets come from.

    `plain` is False when it has a selector or an action that these fields do not express.
    """

    version: int
    priority: int
    table: int
    fwmark: int | None = None
    fwmask: int | None = None
    suppress: int | None = None
    protocol: int = 0
    plain: bool = True
    source: Address | None = None

    def __str__(self) -> str:
        mark = "" if self.fwmark is None else f" fwmark {self.fwmark:#x}"
        mark += "" if self.source is None else f" from {self.source}"
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
        routes: those of our tables over any interface, and in table main ours for the documentation addresses.
        rules: all rules of both families.
        sysctls: WANTED_SYSCTLS's names with the values that they have; a missing one does not exist.
        defaults: the IP versions with a default route in table main that is not over the mesh interface.
        spare: per IP version the interface that a route for the documentation address may use.
        strict: interfaces with an address of the plan's `loose` that filter strictly, with their own value.
        underlay: all interfaces with such an address.
        loosened: interfaces whose filter we made loose.
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
    strict: dict[str, str] = field(default_factory=dict)
    underlay: frozenset[str] = frozenset()
    loosened: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SetLink:
    """Give the interface an MTU and bring it up."""

    link: int
    mtu: int

    def __str__(self) -> str:
        return f"set link {self.link} up with MTU {self.mtu}"


@dataclass(frozen=True)
class SetSysctl:
    """Write a sysctl of an interface, keeping the old value."""

    interface: str
    name: str
    value: str
    old: str

    def __str__(self) -> str:
        return f"sysctl net.ipv4.conf.{self.interface}.{self.name} from {self.old} to {self.value}"


@dataclass(frozen=True)
class RestoreSysctls:
    """Give an interface back the values that it had."""

    interface: str

    def __str__(self) -> str:
        return f"restore the sysctls of {self.interface}"


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


Action = SetLink | SetSysctl | RestoreSysctls | SetAddress | SetRoute | SetRule
