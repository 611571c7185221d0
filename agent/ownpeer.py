# SPDX-License-Identifier: Apache-2.0
"""Our own Peer: what its slice shows of it, and the rest of its status, which no slice carries.

The rest comes from the answers to our own writes, and from a GET: at the start (times of transition are kept in there),
when the slice shows something else than we know (somebody has changed our status, or the Peer is another one), and now
and then (what no slice carries may have been changed, too).
"""

from __future__ import annotations

import asyncio

from ..runtime.objects import Object, version_of

CARRIED = ("publicKey", "candidates", "nat")  # of a status, by slices


class OwnPeer:
    """Joins the two halves. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._full: Object | None = None
        self._shown: Object | None = None
        self._wanted = asyncio.Event()

    def take(self, full: Object) -> None:
        """Take the Peer as the API server sent it; an answer that was overtaken by a newer one is no news."""
        known = self._full
        if known is None or uid(known) != uid(full) or version_of(known) <= version_of(full):
            self._full = full

    def look(self, shown: Object | None) -> None:
        """Look at what its slice shows now; ask for a GET when that is news, and other news than ours."""
        if shown is self._shown:
            return
        self._shown = shown
        if shown is not None and not agrees(self._full, shown):
            self._wanted.set()

    def again(self) -> None:
        """Ask for another GET: the last one failed."""
        self._wanted.set()

    async def due(self, seconds: float) -> None:
        """Wait until the Peer is to be read again: when it is in a slice and not as we know it, at the latest after that time."""
        while True:
            try:
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()
            except TimeoutError:
                if self._shown is None:
                    continue
            self._wanted.clear()
            return

    def merged(self, shown: Object | None) -> Object | None:
        """Return the Peer: as its slice shows it, with the whole status as far as that is known."""
        full = self._full
        if shown is None or full is None or uid(full) != uid(shown):
            return shown
        return {**shown, "status": full.get("status")}


def agrees(full: Object | None, shown: Object) -> bool:
    """Tell whether the whole Peer has what its slice shows of it."""
    if full is None or uid(full) != uid(shown):
        return False
    whole, part = (each if isinstance(each, dict) else {} for each in (full.get("status"), shown.get("status")))
    return all(whole.get(name) == part.get(name) for name in CARRIED)


def uid(peer: Object) -> str:
    """Return metadata.uid."""
    return str(peer["metadata"].get("uid") or "")
