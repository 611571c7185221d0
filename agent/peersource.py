# SPDX-License-Identifier: Apache-2.0
"""Where the agent reads the Mesh and the Peers from: the one door between Kubernetes and the data plane.

Peers come in slices that the operator keeps (`api/slices.py`); behind this door they look like the Peers themselves. Of
the Peers proper an agent may read one at a time, and reads its own only: to repair its status, and before it leaves.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio

from ..api.constants import FIELD_MANAGER_AGENT, FWMARK, GROUP_VERSION, MESH_NAME
from ..api.slices import SliceReader
from ..runtime.client import Client
from ..runtime.errors import ApiError, Misconfigured, NotFound
from ..runtime.events import EventRecorder
from ..runtime.objects import Kind, Object
from ..runtime.reflector import Pause, Reflector
from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from .lease import LEASE
from .membership import Membership, really_gone
from .ownpeer import OwnPeer

log = get_logger("agent.peers")

MESH = Kind(GROUP_VERSION, "wirekubemeshes", "WireKubeMesh")
PEER = Kind(GROUP_VERSION, "wirekubepeers", "WireKubePeer")
SLICE = Kind(GROUP_VERSION, "wirekubepeerslices", "WireKubePeerSlice")
COMPONENT = "wirekube.io/agent"
CONNECT_SECONDS = 3.0  # for one try: another URL may be the one that works
RETRY_SECONDS = 2.0
LOOK_SECONDS, LOST_SECONDS = 1.0, 15.0
BURST_SECONDS = 0.005
APART_SECONDS = 0.0003  # for each peer, between two looks
MOST_APART_SECONDS = 0.3
ASK_SECONDS = 2.0  # between questions about our own Peer while it is missing
REREAD_SECONDS = 300.0  # until our own Peer's status is compared again with what we wrote


@dataclass(frozen=True)
class Snapshot:
    """What is known now.

    Attributes:
        mesh: the Mesh; None when there is none, or none is known.
        own: our Peer; None when this node is not in the mesh.
        peers: all Peers that the data plane keeps, our own among them.
        live: the API server says so; False for what was on disk.
        left: the API server has confirmed that this node is not in the mesh.
    """

    mesh: Object | None
    own: Object | None
    peers: tuple[Object, ...]
    live: bool
    left: bool


class _ServerLost(Exception):
    """The API server has not answered for long."""


class PeerSource(Protocol):
    """Yields facts, and takes this node's status."""

    def snapshot(self) -> Snapshot:
        """Return what is known now."""

    async def publish(self, status: Object) -> bool:
        """Write our Peer's status; False when there is nobody to take it now.

        Raises:
            ApiError: the API server refuses it, or cannot be reached.
        """

    async def renew(self, lease: Object) -> bool:
        """Write our Lease; False when this node is not in the mesh, or there is nobody to take it now.

        Raises:
            ApiError: the API server refuses it, or cannot be reached.
        """


class WatchedSlices:
    """Reads by watching the Mesh and the slices of Peers.

    Args:
        node: our Node's name.
        kubeconfig: path; None takes the pod's service account.
        urls: API server URLs in the order of trial; None is the one of the credentials.
        changed: called after each change, in the event loop.
    """

    def __init__(
        self,
        node: str,
        kubeconfig: str | None,
        urls: tuple[str | None, ...],
        telemetry: Telemetry,
        changed: Callable[[], None],
    ) -> None:
        self._node, self._kubeconfig, self._urls = node, kubeconfig, urls
        self._telemetry, self._changed = telemetry, changed
        self._members = Membership(node)
        self._reader = SliceReader()
        self._own = OwnPeer()
        self._mesh: Object | None = None
        self._client: Client | None = None
        self._meshes: Reflector | None = None
        self._slices: Reflector | None = None
        self._again: asyncio.TimerHandle | None = None
        self._looked = float("-inf")
        self._absent = asyncio.Event()
        self.events: EventRecorder | None = None
        self.synced = asyncio.Event()
        self.problem = "the API server has not answered yet"

    def remember(self, mesh: Object | None, peers: list[Object]) -> None:
        """Start from the last known mesh, until the API server answers."""
        self._mesh = self._mesh or mesh
        self._members.remember({peer["metadata"]["name"]: peer for peer in peers})

    def snapshot(self) -> Snapshot:
        """See PeerSource.snapshot."""
        peers = self._members.peers
        own = self._own.merged(peers.get(self._node))
        return Snapshot(self._mesh, own, tuple(peers.values()), self.synced.is_set(), self._members.left)

    @property
    def server(self) -> str | None:
        """The URL in use."""
        return self._client.server if self._client is not None else None

    def server_endpoints(self) -> frozenset[tuple[str, int]]:
        """Return address and port of the API server as connected to."""
        found = self._client.server_addresses() if self._client is not None else ()
        return frozenset((str(endpoint.ip), endpoint.port) for endpoint in found)

    def unhealthy(self) -> str | None:
        """Return why the view may be old; None while it follows the API server."""
        if self._meshes is None or self._slices is None:
            return self.problem
        stale = next((r for r in (self._meshes, self._slices) if not r.fresh()), None)
        return None if stale is None else str(stale.last_error or f"no watch on {stale.kind.plural} yet")

    async def publish(self, status: Object) -> bool:
        """See PeerSource.publish."""
        if self._client is None or self._members.peers.get(self._node) is None or not self.synced.is_set():
            return False
        body = {"metadata": {"name": self._node}, "status": status}
        try:
            self._own.take(await self._client.apply_status(PEER, body, field_manager=FIELD_MANAGER_AGENT))
        except NotFound:
            return False  # the watch tells the rest
        return True

    async def renew(self, lease: Object) -> bool:
        """See PeerSource.renew."""
        if self._client is None or self._members.peers.get(self._node) is None or not self.synced.is_set():
            return False
        await self._client.apply(LEASE, lease, field_manager=FIELD_MANAGER_AGENT)
        return True

    async def run(self) -> None:
        """Connect, watch, and find out about our own Peer when it is not there; runs until cancelled.

        Raises:
            Misconfigured: no usable credentials.
        """
        while True:
            try:
                await self._follow(await self._connect())
            except* _ServerLost:
                log.warning("the API server is lost; trying every URL again", error=self.unhealthy())

    async def _follow(self, client: Client) -> None:
        """Watch through one client, until it has been of no use for long and there is another URL to try."""
        self._client = client
        log.info("connected", server=client.server)
        self._meshes = Reflector(client, MESH, telemetry=self._telemetry)
        # A list without our own Peer may be a lie; whether it is, `_ask_about_own` finds out.
        self._slices = Reflector(client, SLICE, telemetry=self._telemetry)
        for reflector in (self._meshes, self._slices):
            reflector.add_handler(lambda _event: self._soon())
        self.events = EventRecorder(client, COMPONENT, self._node, self._telemetry)
        try:
            async with asyncio.TaskGroup() as group:
                for runnable in (self._meshes, self._slices, self.events):
                    group.create_task(runnable.run())
                group.create_task(self._first_sync())
                group.create_task(self._read_own(client))
                group.create_task(self._ask_about_own(client))
                group.create_task(self._give_up())
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    async def _connect(self) -> Client:
        said = ""
        while True:
            for url in self._urls:
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        return await Client.connect(
                            kubeconfig=self._kubeconfig, server=url, mark=FWMARK, telemetry=self._telemetry
                        )
                except Misconfigured:
                    raise
                except ApiError as error:
                    self.problem = error.message
                except TimeoutError:
                    self.problem = f"{url or 'the API server'}: no answer within {CONNECT_SECONDS:.0f} s"
                if said != self.problem:
                    said = self.problem
                    log.warning("cannot use the API server yet; trying again", error=said)
            await asyncio.sleep(RETRY_SECONDS)

    async def _give_up(self) -> None:
        """Raise when the API server has been lost for long: the URL in use may lead through the mesh, another not."""
        lost = 0.0
        while len(self._urls) > 1:
            await asyncio.sleep(LOOK_SECONDS)
            lost = lost + LOOK_SECONDS if self.unhealthy() else 0.0
            if lost >= LOST_SECONDS:
                raise _ServerLost

    async def _first_sync(self) -> None:
        assert self._meshes is not None and self._slices is not None  # noqa: S101, PT018 - made before the tasks
        await self._meshes.synced.wait()
        await self._slices.synced.wait()
        self._take()
        self.synced.set()
        self._changed()

    def _soon(self) -> None:
        """Events come in bursts; one look at the stores serves many."""
        since = asyncio.get_running_loop().time() - self._looked
        self._look_after(pause_before_look(len(self._members.peers), since))

    def _look_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._again is not None and not self._again.cancelled() and self._again.when() <= loop.time() + seconds:
            return
        if self._again is not None:
            self._again.cancel()
        self._again = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._again, self._looked = None, asyncio.get_running_loop().time()
        if self.synced.is_set() and all(r is not None and r.synced.is_set() for r in (self._meshes, self._slices)):
            self._take()
            self._changed()

    def _take(self) -> None:
        assert self._meshes is not None and self._slices is not None  # noqa: S101, PT018 - as above
        # A Mesh that was deleted stays in force for who is a member: it says how to leave, not that one has to.
        self._mesh = self._meshes.store.get(("", MESH_NAME)) or self._mesh
        now = time.monotonic()
        again = self._members.observe(self._reader.read(self._slices.store.items().values()), now)
        self._own.look(self._members.peers.get(self._node))
        if self._members.missing:
            self._absent.set()
        if again is not None:
            self._look_after(max(0.0, again - now))

    async def _read_own(self, client: Client) -> None:
        """Read our own Peer whenever its slice shows something else than what we know of it, and now and then."""
        pause = Pause(random.Random())  # noqa: S311 - spreads requests, hides nothing
        while True:
            await self._own.due(REREAD_SECONDS)
            try:
                self._own.take(await client.get(PEER, self._node))
            except NotFound:
                continue  # gone, or about to be made anew, which the slice will tell
            except ApiError:
                self._own.again()
                await asyncio.sleep(pause.next())
                continue
            pause.reset()
            self._changed()

    async def _ask_about_own(self, client: Client) -> None:
        """Leave when two looks, some time apart, say that we are out while the others stay: a mass deletion has no order."""
        while True:
            await self._absent.wait()
            self._absent.clear()
            before: frozenset[str] | None = None
            while self._members.missing:
                others = await self._others_without_us(client)
                if others is not None and before is not None and before <= others:
                    log.info("this node has no Peer: it is not in the mesh")
                    self._members.leave()
                    self._changed()
                    break
                before = others
                await asyncio.sleep(ASK_SECONDS)

    async def _others_without_us(self, client: Client) -> frozenset[str] | None:
        """Return the names of the other Peers where ours is gone and they are not; None for anything else."""
        try:
            await client.get(PEER, self._node)
        except NotFound as error:
            if error.whole_resource:
                return None
        except ApiError:
            return None
        else:
            return None
        try:
            listed, _ = await client.list(SLICE)
        except ApiError:
            return None
        by_name = SliceReader().read(listed)
        return frozenset(by_name) if really_gone(self._node, self._members.peers, by_name) else None


def pause_before_look(peers: int, since: float) -> float:
    """Return the seconds from an event to the look that serves it: 5 ms after a quiet time.

    Each look costs time for each peer, so while events keep coming the looks stand further apart the more peers there are.

    Args:
        peers: how many there are.
        since: seconds since the last look.
    """
    return max(BURST_SECONDS, min(MOST_APART_SECONDS, peers * APART_SECONDS) - since)
