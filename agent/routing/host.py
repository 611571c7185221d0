# SPDX-License-Identifier: Apache-2.0
"""The host's network as it is: observe, compare with the plan, change only what differs."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from ...api.constants import DEFAULT_INTERFACE, FIRST_TABLE, FWMARK, ROUTE_PROTOCOL, TABLE, VIRTUAL_IPV4
from ..wireguard.rtnl import AsyncIPRoute, NetlinkError, RtNetlink
from . import kernel, watch
from .candidates import candidate_interfaces
from .kernel import AddressRow, LinkRow
from .model import (
    Action,
    Address,
    HostPlan,
    HostState,
    Interface,
    Network,
    RestoreSysctls,
    Route,
    SetAddress,
    SetLink,
    SetRoute,
    SetRule,
    SetSysctl,
)
from .plan import DOCUMENTATION, FILTER, MAIN, STRICT, WANTED_SYSCTLS, host_actions, removal
from .sysctl import Sysctls, default_root

NO_ROUTE: Final = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES))
ABSENT: Final = frozenset((errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV))
"""A deletion that finds nothing; ENODEV when the link is gone, which took its routes and addresses along."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The address that WireGuard's packets leave with, and the interface that they take."""

    address: IPv4Address
    interface: str


class HostNetwork:
    """Reads and writes the routing of the network namespace that it is used in.

    Attributes:
        interface: the mesh interface, whose addresses are no candidates.
        problems: what the kernel refused in the last `reconcile` or `remove`, one line each. One refusal never keeps
            the rest from being done: a single bad network of one peer must not cost the others theirs.

    Args:
        proc_sys: /proc/sys/net; None takes the host's mount when there is one, else the own one.
        record: JSON file in the run directory for old sysctl values.
        interface: the mesh interface, until a plan names it.
    """

    def __init__(self, proc_sys: Path | None, record: Path, interface: str = DEFAULT_INTERFACE) -> None:
        self._sysctls = Sysctls(proc_sys or default_root(), record)
        self.interface = interface
        self.problems: tuple[str, ...] = ()

    @property
    def ipv6(self) -> bool:
        """Whether host and mesh interface have IPv6."""
        return self._sysctls.ipv6(self.interface)

    async def observe(self, interface: str) -> HostState:
        """Read everything that a plan is compared with."""
        async with AsyncIPRoute() as ip:
            return await self._observe(ip, interface)

    async def reconcile(self, plan: HostPlan) -> list[str]:
        """Make the host what the plan says; return what was changed, empty when it already was so.

        What was written is read again and compared, as pyroute2 drops what it does not know: see `problems`.

        Raises:
            OSError: the kernel cannot be asked at all (NetlinkError is one for some errors).
        """
        self.interface = plan.interface
        async with AsyncIPRoute() as ip:
            observed = await self._observe(ip, plan.interface, plan.loose)
            if observed.link is None:
                self.problems = (f"the interface {plan.interface} does not exist",)
                return []
            done, problems = await self._execute(ip, host_actions(plan, observed))
            if done:
                left = host_actions(plan, await self._observe(ip, plan.interface, plan.loose))
                problems += [f"{action}: done, but not so afterwards" for action in left if str(action) in done]
        self.problems = tuple(problems)
        return done

    async def remove(self, interface: str) -> list[str]:
        """Take away our rules in both families, our tables, our routes in main, and restore sysctls.

        Works by table, mark and protocol number, so after a crash and for another version's leftovers too. The
        interface with its addresses is the WireGuard backend's.

        Returns:
            what was changed; empty when there was nothing.
        """
        async with AsyncIPRoute() as ip:
            done, problems = await self._execute(ip, removal(await self._observe(ip, interface)))
        try:
            done += self._sysctls.restore()
        except OSError as error:
            problems.append(f"sysctls cannot be restored: {error}")
        self.problems = tuple(problems)
        return done

    async def underlay(self) -> Underlay | None:
        """Return what WireGuard's packets to any other network leave with, None without a route."""
        async with AsyncIPRoute() as ip:
            try:
                found = await kernel.route_get(ip, IPv4Address(VIRTUAL_IPV4), FWMARK)
            except NetlinkError as error:
                if error.code in NO_ROUTE:
                    return None
                raise
            names = {link.index: link.name for link in await kernel.links(ip)}
        if found is None or not isinstance(found[0], IPv4Address) or found[1] not in names:
            return None
        return Underlay(found[0], names[found[1]])

    async def attached(self) -> list[Interface]:
        """Return the addresses that other nodes may try, with their networks, in a stable order."""
        async with AsyncIPRoute() as ip:
            return candidate_interfaces(await kernel.links(ip), await kernel.addresses(ip), self.interface)

    async def surroundings(self) -> tuple[frozenset[Address], tuple[tuple[Network, Address], ...]]:
        """Return the addresses of all interfaces but the mesh's, and main's routes with a next hop: (destination, hop)."""
        async with AsyncIPRoute() as ip:
            own = next((link.index for link in await kernel.links(ip) if link.name == self.interface), None)
            addresses = [row.address.ip for row in await kernel.addresses(ip) if row.link != own]
            return frozenset(addresses), tuple(await kernel.next_hops(ip, MAIN))

    async def changes(self, callback: watch.Callback) -> None:
        """See watch.changes; runs until it is cancelled."""
        await watch.changes(callback)

    async def _observe(self, ip: RtNetlink, interface: str, loose: frozenset[Address] = frozenset()) -> HostState:
        links = await kernel.links(ip)
        own = next((link for link in links if link.name == interface), None)
        index = own.index if own else None
        addresses = await kernel.addresses(ip)
        main = await kernel.routes(ip, MAIN)
        tables = [*await kernel.routes(ip, TABLE), *await kernel.routes(ip, FIRST_TABLE)]
        arriving = {row.link for row in addresses if row.address.ip in loose}
        underlay = frozenset(link.name for link in links if link.index in arriving and not link.loopback)
        return HostState(
            link=index,
            mtu=own.mtu if own else 0,
            up=own.up if own else False,
            versions=frozenset((4, 6) if self._sysctls.ipv6(interface) else (4,)),
            addresses=frozenset(row.address for row in addresses if row.link == index),
            routes=frozenset((*tables, *filter(_is_ours, main))),
            rules=frozenset(await kernel.rules(ip)),
            sysctls=self._sysctls.read(interface, WANTED_SYSCTLS),
            defaults=_defaults(main, index),
            spare=_spare(links, addresses, interface),
            strict={name: old for name in underlay if (old := self._strict(name)) is not None},
            underlay=underlay,
            loosened=frozenset(self._sysctls.changed()) - {interface},
        )

    def _strict(self, interface: str) -> str | None:
        """Return the interface's own reverse path filter if it filters strictly: the kernel takes the larger of the two."""
        common, own = (self._sysctls.read(name, [FILTER]).get(FILTER, "0") for name in ("all", interface))
        return own if max(common, own) == STRICT else None

    async def _execute(self, ip: RtNetlink, actions: list[Action]) -> tuple[list[str], list[str]]:
        """Return what was done and what was refused."""
        done: list[str] = []
        problems: list[str] = []
        for action in actions:
            try:
                if await self._perform(ip, action):
                    done.append(str(action))
            except (NetlinkError, OSError, ValueError) as error:
                problems.append(f"{action}: {error}")
        return done, problems

    async def _perform(self, ip: RtNetlink, action: Action) -> bool:
        """Carry one action out; False when somebody else was faster."""
        try:
            await self._call(ip, action)
        except NetlinkError as error:
            deletes = isinstance(action, SetRoute | SetRule | SetAddress) and not action.present
            if error.code not in (ABSENT if deletes else {errno.EEXIST}):
                raise
            return False
        return True

    async def _call(self, ip: RtNetlink, action: Action) -> None:
        match action:
            case SetLink(link, mtu):
                await ip.link("set", index=link, mtu=mtu, state="up")
            case SetSysctl(interface, name, value, old):
                self._sysctls.write(interface, name, value, old)
            case RestoreSysctls(interface):
                self._sysctls.restore(interface)
            case SetAddress():
                await kernel.set_address(ip, action)
            case SetRoute():
                await kernel.set_route(ip, action)
            case SetRule():
                await kernel.set_rule(ip, action)


def _is_ours(route: Route) -> bool:
    """Whether a route of table main is ours; the number alone is FRR's for IS-IS too."""
    return route.protocol == ROUTE_PROTOCOL and route.destination in DOCUMENTATION.values()


def _defaults(main: list[Route], own: int | None) -> frozenset[int]:
    """Return the IP versions with a default route of somebody else; a blackhole counts, its owner meant it."""
    return frozenset(
        route.destination.version for route in main if route.destination.prefixlen == 0 and route.link != (own or -1)
    )


def _spare(links: list[LinkRow], addresses: list[AddressRow], own: str) -> dict[int, int]:
    """Return per IP version the first running interface, not ours and not loopback, with a usable address."""
    indexes = sorted(link.index for link in links if link.running and not link.loopback and link.name != own)
    having = {(row.address.version, row.link) for row in addresses if row.usable}
    found = {version: next((i for i in indexes if (version, i) in having), None) for version in (4, 6)}
    return {version: index for version, index in found.items() if index is not None}
