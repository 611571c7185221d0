# SPDX-License-Identifier: Apache-2.0
"""Which ranges the mesh takes and which addresses a node gets. Pure.

A node's place in the ranges is a hash of its name, so a node that is made again gets its addresses back.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from itertools import pairwise
from typing import TypeVar

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_N = TypeVar("_N", IPv4Network, IPv6Network)

# Benchmarking (RFC 2544) twice, then parts of the shared and private space that few use.
IPV4_RANGES = tuple(
    IPv4Network(text) for text in ("198.18.0.0/16", "198.19.0.0/16", "100.127.0.0/16", "10.213.0.0/16", "172.29.0.0/16")
)
_WIDEST = 8  # prefix length: sums do not grow beyond it
_LARGEST = 1 << 32  # places of one range that are used; an IPv6 range has more than anybody needs


class RangeError(ValueError):
    """There is no usable range, or no free address in it; the message is for people."""


@dataclass(frozen=True)
class Ranges:
    """The ranges in force, at most one of a family, and what is wrong.

    Attributes:
        networks: IPv4 first.
        problems: for people; empty when all is as it was asked for.
    """

    networks: tuple[Network, ...]
    problems: tuple[str, ...] = ()


def unique_local(mesh_uid: str) -> IPv6Network:
    """Return fd + 40 bits of SHA-256(UID of the Mesh), as a /48 (RFC 4193)."""
    prefix = b"\xfd" + hashlib.sha256(mesh_uid.encode()).digest()[:5]
    return IPv6Network((prefix + bytes(10), 48))


def choose_ranges(
    mesh_uid: str,
    taken: Iterable[Network],
    *,
    current: Sequence[Network] = (),
    wanted: Sequence[Network] = (),
) -> Ranges:
    """Choose the mesh's ranges.

    Args:
        mesh_uid: `metadata.uid` of the Mesh; decides the IPv6 range.
        taken: networks that the cluster uses: Node addresses, podCIDRs, Service ranges.
        current: ranges in force; they stay unless another one is wanted.
        wanted: ranges that the user gave, at most one of a family.

    Returns:
        At most one range of each family. A wanted range that overlaps is refused, and what was in force stays.
    """
    busy = list(taken)
    candidates: dict[int, Sequence[Network]] = {4: IPV4_RANGES, 6: (unique_local(mesh_uid),)}
    chosen: list[Network] = []
    problems: list[str] = []
    for version, automatic in candidates.items():
        now = next((n for n in current if n.version == version), None)
        given = next((n for n in wanted if n.version == version), None)
        network, problem = _choose(version, automatic, busy, now, given)
        chosen += [network] if network else []
        problems += [problem] if problem else []
    return Ranges(tuple(chosen), tuple(problems))


def _choose(
    version: int, automatic: Sequence[Network], busy: Sequence[Network], now: Network | None, given: Network | None
) -> tuple[Network | None, str]:
    if now is not None and given in {None, now}:
        return now, ""
    if given is not None:
        if given.num_addresses < 4:
            return now, f"the range {given} is too small for a mesh"
        clash = next((n for n in busy if _overlap(n, given)), None)
        return (given, "") if clash is None else (now, f"the range {given} overlaps {clash}, which the cluster uses")
    free = next((n for n in automatic if not any(_overlap(n, other) for other in busy)), None)
    field = "meshCIDR" if version == 4 else "meshCIDR6"
    return free, "" if free else f"no IPv{version} range is free; set spec.{field}"


def summarise(networks: Iterable[Network], avoid: Iterable[Address], most: int) -> tuple[Network, ...]:
    """Return few networks that cover the given ones, IPv4 first: for many small ones next to each other, one large one.

    Args:
        networks: of either family.
        avoid: no network of the result contains one of these addresses; a given one that does is left out.
        most: as many networks of each family are returned; while there are more, neighbours are merged, those first that
            make the smallest. What cannot be merged is left out.
    """
    found, kept_out = tuple(networks), tuple(avoid)
    four = _merged(
        [n for n in found if isinstance(n, IPv4Network)], sorted(int(ip) for ip in kept_out if ip.version == 4), most
    )
    six = _merged(
        [n for n in found if isinstance(n, IPv6Network)], sorted(int(ip) for ip in kept_out if ip.version == 6), most
    )
    return (*four, *six)


def _merged(networks: Sequence[_N], avoid: Sequence[int], most: int) -> list[_N]:
    kept: list[_N] = list(collapse_addresses(n for n in networks if n.prefixlen >= _WIDEST and not _contains(n, avoid)))
    while len(kept) > most:
        pairs = (_around(one, other) for one, other in pairwise(kept))
        fit: list[_N] = [each for each in pairs if each.prefixlen >= _WIDEST and not _contains(each, avoid)]
        if not fit:
            return kept[:most]
        smallest = max(each.prefixlen for each in fit)
        kept = list(collapse_addresses(kept + [each for each in fit if each.prefixlen == smallest]))
    return kept


def _around(one: _N, other: _N) -> _N:
    """Return the smallest network that contains both."""
    differ = (int(one.network_address) ^ int(other.network_address)).bit_length()
    length = min(one.prefixlen, other.prefixlen, one.max_prefixlen - differ)
    return one.supernet(new_prefix=length)


def _contains(network: Network, addresses: Sequence[int]) -> bool:
    """Tell whether one of the addresses, which are sorted, lies in the network."""
    at = bisect_left(addresses, int(network.network_address))
    return at < len(addresses) and addresses[at] <= int(network.broadcast_address)


def _overlap(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def size(ranges: Sequence[Network]) -> int:
    """Return how many places the ranges have in common, first and last included."""
    return min((min(n.num_addresses, _LARGEST) for n in ranges), default=0)


def place_of(addresses: Iterable[str], ranges: Sequence[Network]) -> int | None:
    """Return the place in the ranges that a node has by its addresses; None when none of them is usable."""
    for text in addresses:
        try:
            network = ip_network(text)
        except ValueError:
            continue
        for candidate in ranges:
            if network.version == candidate.version and network.num_addresses == 1:
                place = int(network.network_address) - int(candidate.network_address)
                if 0 < place < size(ranges) - 1:
                    return place
    return None


def capacity(ranges: Sequence[Network]) -> int:
    """Return how many nodes get an address: neither the network's own address nor the broadcast address is one."""
    return max(0, size(ranges) - 2)


def allocate(
    node: str, ranges: Sequence[Network], *, existing: Iterable[str], taken: Callable[[int], bool], others: int
) -> int:
    """Return the node's place in the ranges: the one it has, else by the hash of its name, else the next free one.

    Args:
        node: name of the Node.
        ranges: in force; one place counts in all of them.
        existing: addresses that the Peer has.
        taken: whether somebody else has a place.
        others: how many may have one.

    Raises:
        RangeError: the ranges are full.
    """
    kept = place_of(existing, ranges)
    if kept is not None and not taken(kept):
        return kept
    usable = capacity(ranges)
    if usable < 1:
        raise RangeError("there is no range of mesh addresses")
    start = int.from_bytes(hashlib.sha256(node.encode()).digest()) % usable
    # Of one place more than the others have, one is free.
    for step in range(min(usable, others + 1)):
        place = 1 + (start + step) % usable
        if not taken(place):
            return place
    raise RangeError(f"no address is free in {', '.join(map(str, ranges))}")


def addresses_at(place: int, ranges: Sequence[Network]) -> tuple[str, ...]:
    """Return the addresses of a place, `IPV4/32` and `IPV6/128`."""
    return tuple(f"{n.network_address + place}/{n.max_prefixlen}" for n in ranges)
