# SPDX-License-Identifier: Apache-2.0
"""Follows the agents' Leases: tells the controllers of Peers and Mesh when a verdict may have changed, and clears away.

Leases have no owner, for agents read no Nodes. One that nobody renews and whose node has no Peer is deleted here; while an
agent still renews, its Lease stays, so that nothing is deleted and made again when Peers vanish by accident.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import anyio

from ..api.constants import NODE_LEASE_NAMESPACE
from ..runtime.errors import ApiError, Conflict, NotFound
from ..runtime.objects import Key, Kind, Object
from ..runtime.reflector import Event, Reflector
from ..telemetry.logs import get_logger
from .kinds import LEASE, MESH_KEY, spec_of, uid_of
from .liveness import Census, Look, Timing, Tracker

log = get_logger("leases")

PAUSE_SECONDS = 0.5  # between two looks, however many events there are
RECOUNT_SECONDS = 15.0  # between two counts that the Mesh shows: every agent gets each of them
CLEAR_SECONDS = 10.0  # until a Lease that could not be deleted is tried again

Enqueue = Callable[[Key], None]


class Deleter(Protocol):
    """The part of a client that is used here."""

    async def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """See `Verbs.delete`."""


class Leases:
    """What the Leases of all agents say; `run` looks at them when it is time.

    Args:
        client: deletes Leases.
        leases: those of NODE_LEASE_NAMESPACE.
        peers: who is in the mesh.
        timing: of renewals.
        clock: monotonic seconds, those of `Reflector.following_since`.

    Attributes:
        census: of the agents, as the Mesh should show it; None before the first look.
    """

    def __init__(
        self,
        client: Deleter,
        leases: Reflector,
        peers: Reflector,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._leases, self._peers, self._clock = client, leases, peers, clock
        self._tracker = Tracker(timing or Timing())
        self._wake = anyio.Event()
        self._counted = float("-inf")
        self._enqueue_peer: Enqueue = lambda _key: None
        self._enqueue_mesh: Enqueue = lambda _key: None
        self.census: Census | None = None
        leases.add_handler(self._handle)

    def tell(self, peer: Enqueue, mesh: Enqueue) -> None:
        """Queue a Peer, or the Mesh, there when its verdict may be another one."""
        self._enqueue_peer, self._enqueue_mesh = peer, mesh

    def silent(self, name: str, *, shown: bool) -> bool:
        """See `Tracker.silent`."""
        return self._tracker.silent(name, shown=shown)

    async def run(self) -> None:
        """Look at the Leases until cancelled."""
        await self._leases.synced.wait()
        await self._peers.synced.wait()  # before that no node is in the mesh
        while True:
            self._wake = anyio.Event()
            look = self._tracker.look(self._clock(), self._leases.following_since, self._is_member)
            self._publish(look)
            cleared = await self._clear(look.leftover)
            with anyio.move_on_after(look.again if cleared else CLEAR_SECONDS):
                await self._wake.wait()
            await anyio.sleep(PAUSE_SECONDS)

    def _handle(self, event: Event) -> None:
        name = event.key[1]
        if event.new is not None:
            news = self._tracker.saw(name, str(spec_of(event.new).get("renewTime")), self._clock())
        elif not (news := self._is_member(name)):
            self._tracker.forget(name)
        # The clock of a member whose Lease somebody has deleted goes on: its agent makes a new one.
        if news:
            self._wake.set()

    def _is_member(self, name: str) -> bool:
        return self._peers.store.get(("", name)) is not None

    def _publish(self, look: Look) -> None:
        for name in look.news:
            self._enqueue_peer(("", name))
        if look.census == self.census:
            return
        now = self._clock()
        turned = self.census is None or look.census.most_silent is not self.census.most_silent
        if turned or now - self._counted >= RECOUNT_SECONDS:
            self.census, self._counted = look.census, now
            self._enqueue_mesh(MESH_KEY)

    async def _clear(self, leftover: frozenset[str]) -> bool:
        """Delete what nobody needs any more; return whether that was possible."""
        for name in leftover:
            lease = self._leases.store.get((NODE_LEASE_NAMESPACE, name))
            if lease is None:
                self._tracker.forget(name)
            elif not await self._delete(name, lease):
                return False
        return True

    async def _delete(self, name: str, lease: Object) -> bool:
        try:
            await self._client.delete(LEASE, name, namespace=NODE_LEASE_NAMESPACE, uid=uid_of(lease))
        except (NotFound, Conflict):
            pass  # gone, or another one by now: the watch tells
        except ApiError as error:
            log.warning(
                "the Lease of a node that has left cannot be deleted; trying again", lease=name, error=str(error)
            )
            return False
        else:
            log.info("deleted a Lease: its node is not in the mesh", lease=name)
        return True
