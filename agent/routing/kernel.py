# SPDX-License-Identifier: Apache-2.0
"""Rows of rtnetlink as our values, and our values as calls. Names and numbers are from linux/rtnetlink.h.

pyroute2 passes an unknown keyword over in silence. Whoever writes here dumps and compares afterwards.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Final

from ..wireguard.rtnl import RtNetlink
from .model import Address, Interface, Network, Route, Rule, SetAddress, SetRoute, SetRule

FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS: Final = {family: version for version, family in FAMILIES.items()}
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
IFA_UNUSABLE: Final = 0x08 | 0x20 | 0x40  # duplicate, deprecated, tentative
IFA_NODAD, IFA_NOPREFIXROUTE = 0x02, 0x200
UNICAST: Final = 1  # route type, and the rule action "look a table up"
SCOPE_GLOBAL, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
NO_SUPPRESS: Final = 0xFFFFFFFF
_NOWHERE: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - a default route's destination


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A network interface; `kind` is empty for a physical one, `running` means up and with a carrier."""

    index: int
    name: str
    kind: str
    mtu: int
    up: bool
    running: bool
    loopback: bool


@dataclass(frozen=True, slots=True)
class AddressRow:
    """An address with its interface; `usable` is False for a deprecated, tentative or duplicate one, and below global."""

    link: int
    address: Interface
    usable: bool


async def links(ip: RtNetlink) -> list[LinkRow]:
    """Return every interface of this network namespace."""
    return [_link(row) async for row in await ip.get_links()]


def _link(row: Any) -> LinkRow:
    flags = int(row["flags"])
    return LinkRow(
        int(row["index"]),
        str(row.get("ifname")),
        str(row.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""),
        int(row.get("mtu") or 0),
        bool(flags & IFF_UP),
        flags & IFF_UP != 0 and flags & IFF_RUNNING != 0,
        bool(flags & IFF_LOOPBACK),
    )


async def addresses(ip: RtNetlink) -> list[AddressRow]:
    """Return every address of both families but link-local ones."""
    rows = [_address(row) async for row in await ip.get_addr()]
    return [row for row in rows if row is not None and not row.address.is_link_local]


def _address(row: Any) -> AddressRow | None:
    if row["family"] not in VERSIONS:
        return None
    flags = row.get("IFA_FLAGS")
    flags = int(row["flags"] if flags is None else flags)
    # On a point-to-point link IFA_ADDRESS is the other end, IFA_LOCAL is ours; IPv6 has IFA_ADDRESS alone.
    text = row.get("IFA_LOCAL") or row.get("IFA_ADDRESS")
    usable = not flags & IFA_UNUSABLE and int(row["scope"]) == SCOPE_GLOBAL
    return AddressRow(int(row["index"]), ip_interface(f"{text}/{row['prefixlen']}"), usable)


async def rules(ip: RtNetlink) -> list[Rule]:
    """Return the rules of both families."""
    return [
        _rule(row, version)
        for version, family in FAMILIES.items()
        async for row in await ip.get_rules(family=family)
        if row["family"] == family  # a kernel without IPv6 answers with those of IPv4
    ]


def _rule(row: Any, version: int) -> Rule:
    suppress = row.get("FRA_SUPPRESS_PREFIXLEN")
    known = {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_FWMARK", "FRA_FWMASK", "FRA_SUPPRESS_PREFIXLEN"}
    source = row.get("FRA_SRC")
    single = ip_address(source) if source and row["src_len"] == ip_address(source).max_prefixlen else None
    known |= {"FRA_SRC"} if single else set()
    plain = not {name for name, _ in row["attrs"]} - known and row["action"] == UNICAST and not row["flags"]
    table = row.get("FRA_TABLE")
    return Rule(
        version,
        int(row.get("FRA_PRIORITY") or 0),
        int(row["table"] if table is None else table),
        row.get("FRA_FWMARK") or None,
        (row.get("FRA_FWMASK") or None) if row.get("FRA_FWMARK") else None,
        None if suppress in {None, NO_SUPPRESS} else int(suppress),
        int(row.get("FRA_PROTOCOL") or 0),
        plain and bool(single) == bool(row["src_len"]) and not row["dst_len"] and not row["tos"],
        single,
    )


async def routes(ip: RtNetlink, table: int) -> list[Route]:
    """Return the unicast routes of a table in both families, and others (blackhole, ...) as not plain."""
    return [route async for row in await ip.get_routes(table=table) for route in _routes(row, table)]


def _routes(row: Any, table: int) -> Iterator[Route]:
    version = VERSIONS.get(row["family"])
    # Without strict checking an old kernel answers with every table; an IPv6 dump has cached clones (0x200) too.
    if version is None or (row.get("RTA_TABLE") or row["table"]) != table or row["flags"] & 0x200:
        return
    destination = row.get("RTA_DST") or _NOWHERE[version]
    source = row.get("RTA_PREFSRC")
    foreign = {"RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH", "RTA_ENCAP", "RTA_METRICS"} & {n for n, _ in row["attrs"]}
    yield Route(
        ip_network(f"{destination}/{row['dst_len']}"),
        table,
        int(row.get("RTA_OIF") or 0),
        int(row["proto"]),
        ip_address(source) if source else None,
        row["type"] == UNICAST and not foreign,
    )


async def next_hops(ip: RtNetlink, table: int) -> list[tuple[Network, Address]]:
    """Return (destination, next hop) of each route of a table that has one, once for each of several."""
    found = []
    async for row in await ip.get_routes(table=table):
        version = VERSIONS.get(row["family"])
        if version is None or (row.get("RTA_TABLE") or row["table"]) != table or row["flags"] & 0x200:
            continue
        destination = ip_network(f"{row.get('RTA_DST') or _NOWHERE[version]}/{row['dst_len']}")
        hops = (each.get("RTA_GATEWAY") for each in (row, *(row.get("RTA_MULTIPATH") or ())))
        found += [(destination, ip_address(hop)) for hop in hops if hop]
    return found


async def set_route(ip: RtNetlink, action: SetRoute) -> None:
    """Install or delete a route."""
    route = action.route
    version = route.destination.version
    call: dict[str, Any] = {"dst": str(route.destination), "table": route.table, "family": FAMILIES[version]}
    if route.link:
        call["oif"] = route.link
    if not action.present:
        # Scope "nowhere" and protocol 0 match any route.
        await ip.route(
            "del", **call, proto=route.protocol, scope=SCOPE_NOWHERE if version == 4 else SCOPE_GLOBAL, type=0
        )
        return
    if route.source is not None:
        call["prefsrc"] = str(route.source)
    scope = SCOPE_LINK if version == 4 else SCOPE_GLOBAL
    await ip.route("replace", **call, proto=route.protocol, scope=scope)


async def set_rule(ip: RtNetlink, action: SetRule) -> None:
    """Add or delete a rule."""
    rule = action.rule
    call: dict[str, Any] = {"family": FAMILIES[rule.version], "priority": rule.priority, "table": rule.table}
    if rule.fwmark is not None:
        call |= {"fwmark": rule.fwmark, "fwmask": rule.fwmask}
    if rule.suppress is not None:
        call["FRA_SUPPRESS_PREFIXLEN"] = rule.suppress
    if rule.source is not None:
        call["src"] = f"{rule.source}/{rule.source.max_prefixlen}"
    if rule.protocol:
        call["protocol"] = rule.protocol
    await ip.rule("add" if action.present else "del", **call)


async def set_address(ip: RtNetlink, action: SetAddress) -> None:
    """Add or delete an address.

    It is added without a prefix route, so that main never leads into the mesh, and without duplicate detection: until
    that ends an IPv6 route cannot name it as its source.
    """
    call = {"index": action.link, "address": str(action.address.ip), "prefixlen": action.address.network.prefixlen}
    if action.present:
        await ip.addr("replace", **call, flags=IFA_NOPREFIXROUTE | (IFA_NODAD if action.address.version == 6 else 0))
    else:
        await ip.addr("del", **call)


async def route_get(ip: RtNetlink, destination: Address, mark: int) -> tuple[Address, int] | None:
    """Return source address and interface index of the route that a marked packet takes, None when there is none."""
    for row in await ip.route("get", dst=str(destination), mark=mark):
        source, link = row.get("RTA_PREFSRC"), row.get("RTA_OIF")
        if source and link:
            return _parse(source), int(link)
    return None


def _parse(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)
