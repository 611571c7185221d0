# SPDX-License-Identifier: Apache-2.0
"""Peers to slices: agents read Peers only through these objects, see `slicing` and `api/v1alpha1/slice.py`.

A Peer that vanishes while its Node is in the mesh stays in its slice: it is about to be made anew, or somebody deleted the
CRD by accident. So no agent ever takes itself for out of the mesh because of that.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final, Protocol

from ..api.constants import FIELD_MANAGER_OPERATOR
from ..api.slices import entries, entry_of
from ..runtime.controller import Result
from ..runtime.errors import Conflict, NotFound
from ..runtime.objects import Key, Kind, Object, version_of
from ..runtime.reflector import Event
from ..runtime.store import Store
from ..telemetry.logs import get_logger
from .kinds import SLICE, uid_of
from .nodes import wants_mesh
from .slicing import Pace, Slicing

log = get_logger("slices")

ALL: Final[Key] = ("", "")
"""Stands for every slice: at the start, before it is known which Peer stands where."""


class SliceWriter(Protocol):
    """The part of a client that is used here."""

    async def apply(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """See `Verbs.apply`."""

    async def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """See `Verbs.delete`."""


class SliceReconciler:
    """Keeps the slices. Run it with one worker, and with its three mappers.

    Args:
        client: writes slices.
        nodes: all Nodes.
        peers: all Peers.
        slices: all slices.
        members: how many Nodes are in the mesh: when many join at once, their Peers come one after the other.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: SliceWriter,
        nodes: Store,
        peers: Store,
        slices: Store,
        members: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._members, self._clock = client, members, clock
        self._nodes, self._peers, self._store = nodes, peers, slices
        self._slicing: Slicing | None = None
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._written: dict[str, Object] = {}  # the store may not show our last writes yet

    def peer_to_slices(self, event: Event) -> tuple[Key, ...]:
        """Map a Peer to the slice whose content it changes: most changes matter to no other node."""
        if self._slicing is None:
            return (ALL,)
        name = self._place(self._slicing, event.key)
        if name is None:
            return ()
        self._paces[name].change(self._clock())
        return (("", name),)

    def node_to_slices(self, event: Event) -> tuple[Key, ...]:
        """Map a Node whose Peer has vanished: it may leave the mesh now."""
        return self.peer_to_slices(event) if self._peers.get(event.key) is None else ()

    def slice_to_slices(self, event: Event) -> tuple[Key, ...]:
        """Map a slice to itself when others have changed it; what we wrote ourselves comes back as an event, too."""
        written = self._written.get(event.key[1])
        if written is None:
            return (event.key,)
        if event.new is not None and version_of(event.new) < version_of(written):
            return ()
        del self._written[event.key[1]]
        return () if event.new is not None and version_of(event.new) == version_of(written) else (event.key,)

    async def reconcile(self, key: Key) -> Result:
        """Write one slice, or all of them at the start, when it is time."""
        if self._slicing is None:
            self._slicing = self._adopted()
        if key == ALL:
            for name in {*self._slicing.slices(), *(key[1] for key in self._store.items())}:
                await self._write(self._slicing, name)
            return Result()
        wait = self._paces[key[1]].due(max(len(self._slicing), self._members())) - self._clock()
        if wait > 0:
            return Result(wait)
        await self._write(self._slicing, key[1])
        return Result()

    def _adopted(self) -> Slicing:
        """Let each Peer stay where it stands, and enter those that are new."""
        slicing = Slicing()
        for (_, name), found in sorted(self._store.items().items()):
            slicing.adopt(name, entries(found))
        for name in {*slicing.names(), *(key[1] for key in self._peers.items())}:
            self._place(slicing, ("", name))
        log.info("slices of Peers", slices=len(slicing.slices()), peers=len(slicing))
        return slicing

    def _place(self, slicing: Slicing, key: Key) -> str | None:
        """Bring one Peer's entry up to date; return the slice that this changes."""
        peer = self._peers.get(key)
        if peer is None:
            return None if wants_mesh(self._nodes.get(key)) else slicing.remove(key[1])
        entry = entry_of(peer)
        return slicing.remove(key[1]) if entry is None else slicing.put(entry, self._members())

    async def _write(self, slicing: Slicing, name: str) -> None:
        wanted, current = slicing.entries(name), self._current(name)
        if not wanted:
            await self._delete(name, current)
        elif current is None or current.get("peers") != wanted:
            body: Object = {"metadata": {"name": name}, "peers": wanted}
            # What changes from here on is not in it.
            self._paces[name].done(self._clock())
            self._written[name] = await self._client.apply(SLICE, body, field_manager=FIELD_MANAGER_OPERATOR)
        else:
            self._paces[name].first = None

    async def _delete(self, name: str, current: Object | None) -> None:
        self._paces.pop(name, None)
        self._written.pop(name, None)
        if current is None:
            return
        # Gone, or another one of that name by now, which its own event brings to us.
        with contextlib.suppress(NotFound, Conflict):
            await self._client.delete(SLICE, name, uid=uid_of(current))

    def _current(self, name: str) -> Object | None:
        """Return the slice as it is by the last that we heard: the answer to our last write, or the watch."""
        return self._written.get(name) or self._store.get(("", name))
