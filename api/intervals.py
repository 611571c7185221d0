# SPDX-License-Identifier: Apache-2.0
"""A set of networks that do not overlap, with a quick look-up of what a further one would overlap."""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


class Intervals:
    """Networks of both families, each with the words that say whose it is."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._items: dict[int, list[tuple[Network, str]]] = {4: [], 6: []}

    def overlapping(self, network: Network) -> tuple[Network, str] | None:
        """Return one member that overlaps the network, with its words, or None."""
        items = self._items[network.version]
        last = int(network.broadcast_address)
        # Members do not overlap, so only the last one that starts before our end can reach into it.
        index = bisect_right(self._starts[network.version], last) - 1
        if index < 0:
            return None
        found = items[index]
        return found if int(found[0].broadcast_address) >= int(network.network_address) else None

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
