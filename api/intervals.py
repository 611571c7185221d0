# SPDX-License-Identifier: Apache-2.0
"""A set of networks that do not overlap, with a quick look-up of what a further one would overlap."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


class Intervals:
    """Networks of both families, each with the words that say whose it is."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._items: dict[int, list[tuple[Network, str]]] = {4: [], 6: []}

    def overlapping(self, network: Network) -> tuple[Network, str] | None:
        """Return one member that overlaps the network, with its words, or None."""
        return next(self.all_overlapping(network), None)

    def all_overlapping(self, network: Network) -> Iterator[tuple[Network, str]]:
        """Yield all members that overlap the network, with their words, the last one first."""
        items, first = self._items[network.version], int(network.network_address)
        index = bisect_right(self._starts[network.version], int(network.broadcast_address)) - 1
        # Members do not overlap, so those before one that ends before our start do not reach us either.
        while index >= 0 and int(items[index][0].broadcast_address) >= first:
            yield items[index]
            index -= 1

    def add_new(self, network: Network, words: str) -> None:
        """Add a network unless it overlaps a member."""
        if self.overlapping(network) is None:
            self.add(network, words)

    def add(self, network: Network, words: str) -> None:
        """Add a network that overlaps no member.

        Raises:
            ValueError: it does overlap one.
        """
        if (clash := self.overlapping(network)) is not None:
            raise ValueError(f"{network} overlaps {clash[0]}")
        start = int(network.network_address)
        index = bisect_right(self._starts[network.version], start)
        self._starts[network.version].insert(index, start)
        self._items[network.version].insert(index, (network, words))
