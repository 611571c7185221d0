# SPDX-License-Identifier: Apache-2.0
"""Which Peer stands in which slice, and when a slice is written. Pure.

A Peer keeps its slice for as long as it is in the mesh, so a change of one Peer is a change of one slice: its cost does
not grow with the mesh. There are about 16 slices, and more once they hold 100 Peers each: so a slice is small, and of
several changes in a small mesh each goes out at once, though no slice is written more than once a second.

             change                                      change, change, ... (the slice was written lately)
    quiet ──────┬─ 0.05 s ─> write                busy ─────┬── until 0.5 s without a change, at the latest ──> write
                                                            │   after 1 s (66 Peers) to 15 s (1000 Peers)

Every agent gets every write: of a thousand agents and a thousand Peers, all slices written once are 600 MB. When all of
them join at once, waiting for more changes makes the difference between each agent getting each Peer about three times
and getting it thirty times, by which the API server falls behind, and which makes it last still longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Final

from ..api.slices import Entry
from ..api.v1alpha1.slice import MOST_SLICE_PEERS

SLICES: Final = 16
PREFIX: Final = "peers-"
GATHER_SECONDS: Final = 0.05  # what belongs together, say key and acceptance, comes together
APART_SECONDS: Final = 1.0  # between two writes of a slice
QUIET_SECONDS: Final = 0.5
MOST_WAIT_SECONDS: Final = 15.0
_PEERS_A_SECOND: Final = 66  # of the longest wait


def peers_a_slice(total: int) -> int:
    """Return how many Peers a slice takes in a mesh of so many."""
    return min(MOST_SLICE_PEERS, max(1, -(-total // SLICES)))


class Slicing:
    """The Peers by slice. Each Peer stands in one slice; a slice has no more Peers than its limit was when it took them."""

    def __init__(self) -> None:
        self._slice_of: dict[str, str] = {}
        self._slices: dict[str, dict[str, Entry]] = {}

    def __len__(self) -> int:
        return len(self._slice_of)

    def names(self) -> list[str]:
        """Return the names of all Peers."""
        return list(self._slice_of)

    def slices(self) -> list[str]:
        """Return the names of all slices that have Peers."""
        return list(self._slices)

    def entries(self, name: str) -> list[Entry]:
        """Return the entries of a slice, by the names of the Peers; none for a slice that is not ours."""
        return [entry for _, entry in sorted(self._slices.get(name, {}).items())]

    def adopt(self, name: str, entries: Iterable[Entry]) -> None:
        """Take over a slice that is there; a Peer that stands in another slice already stays in that."""
        for entry in list(entries)[:MOST_SLICE_PEERS]:
            if entry["name"] not in self._slice_of:
                self._enter(name, entry)

    def put(self, entry: Entry, expected: int = 0) -> str | None:
        """Set a Peer's entry; return the slice that this changes, None when nothing changes.

        Args:
            entry: of the Peer.
            expected: how many Peers the mesh is about to have, when those are more.
        """
        name = self._slice_of.get(entry["name"])
        if name is not None and self._slices[name][entry["name"]] == entry:
            return None
        name = name or self._with_room(expected)
        self._enter(name, entry)
        return name

    def remove(self, peer: str) -> str | None:
        """Take a Peer out; return the slice that this changes, None when it was in none."""
        name = self._slice_of.pop(peer, None)
        if name is not None:
            del self._slices[name][peer]
            if not self._slices[name]:
                del self._slices[name]
        return name

    def _enter(self, name: str, entry: Entry) -> None:
        self._slice_of[entry["name"]] = name
        self._slices.setdefault(name, {})[entry["name"]] = entry

    def _with_room(self, expected: int) -> str:
        """Return the emptiest slice that takes one more Peer, or the name of a new one."""
        limit = peers_a_slice(max(len(self) + 1, expected))
        found = min(self._slices, key=lambda name: len(self._slices[name]), default=None)
        if found is not None and len(self._slices[found]) < limit:
            return found
        return next(name for number in count(1) if (name := f"{PREFIX}{number}") not in self._slices)


@dataclass
class Pace:
    """When one slice may be written. Times are monotonic seconds.

    Attributes:
        written: when it was written last.
        first: since when it differs from what was written; None while it does not.
        last: when it changed last.
    """

    written: float = float("-inf")
    first: float | None = None
    last: float = float("-inf")

    def change(self, now: float) -> None:
        """Note a change."""
        self.first = now if self.first is None else self.first
        self.last = now

    def done(self, now: float) -> None:
        """Note that it was written."""
        self.written, self.first = now, None

    def due(self, peers: int) -> float:
        """Return when it is to be written; `peers` is how many the mesh has. Without a change: when it may be."""
        earliest = self.written + APART_SECONDS
        if self.first is None:
            return earliest
        longest = min(MOST_WAIT_SECONDS, max(APART_SECONDS, peers / _PEERS_A_SECOND))
        if self.first >= self.written + longest:
            return max(earliest, self.first + GATHER_SECONDS)
        return max(earliest, min(self.last + QUIET_SECONDS, self.first + longest))
