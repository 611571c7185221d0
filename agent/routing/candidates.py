# SPDX-License-Identifier: Apache-2.0
"""Which of the host's addresses another node may try. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from .kernel import AddressRow, LinkRow
from .model import Address, Interface

VIRTUAL_NAMES: Final = (
    *("cni*", "docker*", f"br-{'[0-9a-f]' * 12}", "veth*", "cali*", "flannel*", "cilium*", "kube-*", "lxc*", "virbr*"),
    *("podman*", "vxlan.*", "tunl*", "weave*", "genev_sys*"),
)
"""Names that container networks give to their links. Physical links (without a kind) count under any name."""

TUNNEL_KINDS: Final = frozenset(
    {"vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "ip6tnl", "ipip", "sit", "fou"}
)
"""Links whose packets go to other nodes as packets of this host, and may then go through the mesh.

A path over such a one would carry the mesh inside itself, again and again.
"""


def is_candidate_link(link: LinkRow, own: str) -> bool:
    """Whether other nodes may reach this host over the link.

    But for tunnels the kind alone says nothing: a host's own uplink may be a bridge or, in a container, a veth named eth0.
    """
    container = bool(link.kind) and any(fnmatchcase(link.name, pattern) for pattern in VIRTUAL_NAMES)
    tunnel = link.kind in TUNNEL_KINDS
    return link.running and not link.loopback and link.name != own and not container and not tunnel


def candidate_interfaces(links: Iterable[LinkRow], addresses: Iterable[AddressRow], own: str) -> list[Interface]:
    """Return the usable global unicast addresses with their networks, each address once, in a stable order, IPv4 first."""
    usable = {link.index for link in links if is_candidate_link(link, own)}
    rows = (row.address for row in addresses if row.usable and row.link in usable and _unicast(row.address.ip))
    found = {address.ip: address for address in rows}
    return [found[ip] for ip in sorted(found, key=lambda ip: (ip.version, int(ip)))]


def _unicast(ip: Address) -> bool:
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved)
