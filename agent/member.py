# SPDX-License-Identifier: Apache-2.0
"""This node while it is in the mesh: everything between the facts and the packets, put together.

    facts ──update──> relay client, path driver ──legs──┐
                                                        v
    netlink, nft ──changed──────────────────────> converge ──> data plane
    WireGuard's counters, each second ──> path driver
    STUN ──report──> path driver, status

One task converges, so that two changes never meet in the middle; whoever learns something only marks what is due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace

from ..api.constants import FWMARK
from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from ..wire.endpoint import Endpoint
from .activity import Activity
from .dataplane import Adopted, DataPlane, Desired, Failure, problem_of, roamed
from .facts import MeshFacts, OwnFacts, PeerFacts
from .keys import NodeKey
from .lease import Turns
from .local import Local
from .nat.socket import ProbeSocket
from .pathdriver import PathDriver
from .paths.model import Mode, Transition
from .relayclient import NO_PROXY, ProxyMoved, RelayClient, RelayEvent
from .relays import Relays
from .report import NodeView
from .resolve import Resolver
from .routing.host import HostNetwork
from .steering import table
from .steering.table import SteeringError
from .surroundings import fitting, outside
from .vicinity import local_nat, seen_nat
from .wireguard.backend import BackendError

log = get_logger("agent.member")

STATS_SECONDS = 1.0
REMIND_SECONDS = 5.0
VERIFY_HOST_SECONDS = 30.0  # a change is notified; this is for what nobody notified
RETRY_SECONDS = 2.0
NAMES_SECONDS = 300.0
RETRY_NAMES_SECONDS = 5.0
LETTING_GO_SECONDS = 2.0  # the session outlives a switch to `never` by so much


class Member:
    """One node's part in the mesh. All methods belong to the event loop's thread.

    Args:
        node: the Node's name.
        key: ours.
        plane: opened.
        adopted: what `plane.open` found.
        relay_keys: relay name to the key that it showed first; kept up to date here.
        changed: called when something that status or local API show has changed.
        transition: called with each change of a path.

    Attributes:
        peers: all other nodes, by name, with the networks that this host can have.
        left_out: networks that this host cannot have, with the reason.
        problem: (reason, message) why the data plane is not ready; None when it is.
    """

    def __init__(
        self,
        node: str,
        key: NodeKey,
        plane: DataPlane,
        host: HostNetwork,
        adopted: Adopted,
        resolver: Resolver,
        relay_keys: dict[str, bytes],
        telemetry: Telemetry,
        *,
        changed: Callable[[], None],
        transition: Callable[[Transition], None],
    ) -> None:
        self.key, self.plane, self._host, self._adopted = key, plane, host, adopted
        self._changed, self._transition = changed, transition
        self._telemetry = telemetry
        self.mesh: MeshFacts | None = None
        self.own: OwnFacts | None = None
        self.peers: dict[str, PeerFacts] = {}
        self._told: tuple[PeerFacts, ...] = ()  # with the networks that this host cannot have, too
        self.left_out: tuple[str, ...] = ()
        self.problem: tuple[str, str] | None = ("Starting", "the data plane is being set up")
        self._server: frozenset[tuple[str, int]] = frozenset()
        self._proxies: dict[bytes, Endpoint] = {}
        self._activity = Activity()
        self._host_changed = asyncio.Event()
        self._resolve_again = asyncio.Event()
        self._due = asyncio.Event()
        self._all_due = True
        self._ready = asyncio.Event()
        self._reminded = 0.0
        self._converging, self._counting = Turns(), Turns()
        self._direct: frozenset[str] = frozenset()
        self._shaken: frozenset[bytes] = frozenset()
        self.relay = RelayClient(key.private, mark=FWMARK, on_event=self._relay_event, telemetry=telemetry)
        self.relays = Relays(resolver, relay_keys, up=self.relay.up, pinned=self._resolve_again.set, changed=changed)
        self.driver = PathDriver(
            key.private, self.relay, telemetry, node, steer=self._due.set, changed=self._path_changed
        )
        self.probes = ProbeSocket(self.driver.heard, random.SystemRandom())
        self.local = Local(host, resolver, self.probes, telemetry, self._tell_local, self._reaches_directly)
        plane.use_key(key.private)

    # Facts.

    def update(
        self, mesh: MeshFacts, own: OwnFacts, peers: tuple[PeerFacts, ...], server: frozenset[tuple[str, int]]
    ) -> None:
        """Take the facts; what differs is acted on."""
        news = (mesh, own, peers, server)
        if news == (self.mesh, self.own, self._told, self._server):
            return
        relays_changed = self.mesh is None or self.mesh.relays != mesh.relays
        endpoint_changed = self.own is None or self.own.endpoint != own.endpoint
        self.mesh, self.own, self._told, self._server = news
        self.relays.named = mesh.relays
        if relays_changed or endpoint_changed:
            self._resolve_again.set()
        self.local.configure(mesh.listen_port, mesh.stun_servers)
        self.driver.set_policy(mesh.policy)
        self.relay.set_underlay(self.local.underlay, mesh.listen_port)
        self._follow_peers()
        self._mark_all()

    def _follow_peers(self) -> None:
        """Make proxies and paths for the peers that are there, and only for those."""
        fit, self.left_out = fitting(self._told, self.local.around, self.mesh.ranges if self.mesh else ())
        self.peers = {peer.name: peer for peer in fit}
        keys = {peer.key for peer in self.peers.values()}
        for key in [key for key in self._proxies if key not in keys]:
            self.relay.remove_peer(key)
            del self._proxies[key]
        for key in keys - self._proxies.keys():
            self._proxies[key] = self.relay.add_peer(key)
        mesh = self.mesh
        self.driver.set_limits((each.ip for each in self.local.attached), mesh.ranges if mesh else (), self._server)
        seen = {peer.name: seen_nat(peer, self.local.attached) for peer in self.peers.values()}
        self.driver.set_peers({name: replace(peer, nat=seen[name]) for name, peer in self.peers.items()})
        self._adopt()

    def _adopt(self) -> None:
        """Continue what an agent before us left in the table, once for each peer."""
        for peer in self.peers.values():
            legs = self._adopted.legs(peer.key, (str(each.ip) for each in self.local.attached))
            if legs is not None:
                self.driver.adopt(peer.name, legs)
                log.info("path adopted", peer=peer.name, direct=str(legs.direct) if legs.direct else None)
        self._adopted = self._adopted.without(peer.key for peer in self.peers.values())

    def describe(self, base: NodeView) -> NodeView:
        """Return the view of a node that is in the mesh."""
        return replace(
            base,
            key=self.key,
            mesh=self.mesh,
            own=self.own,
            nat=self.local.nat,
            candidates=self.local.candidates,
            relay=self.relays.view,
            peers=tuple(self.peers.values()),
            paths={name: self.driver.paths.view(name) for name in self.peers},
            ports=self.plane.ports,
            stats=self.plane.stats,
            problem=self.problem,
            refused=self.plane.problems,
            left_out=self.left_out,
        )

    # Tasks.

    def stuck(self) -> bool:
        """Whether the host has not answered for long: what should be is not made."""
        return self._converging.stuck() or self._counting.stuck()

    async def run(self) -> None:
        """Run until cancelled; the data plane is left as it is."""
        try:
            async with asyncio.TaskGroup() as group:
                for task in (
                    self._converge(),
                    self.relay.run(),
                    self._discover(),
                    self._watch_counters(),
                    self._host.changes(lambda _kinds: self._host_changed.set()),
                    self._follow_host(),
                    self._follow_names(),
                    self._guard_table(),
                    self._verify(),
                ):
                    group.create_task(task)
        finally:
            self.driver.close()
            self.probes.close()

    async def _converge(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            everything, self._all_due = self._all_due, False
            try:
                with self._converging:
                    await self._act(everything)
            except Failure as error:
                self._failed(error)
                await asyncio.sleep(RETRY_SECONDS)
                self._mark_all()

    async def _act(self, everything: bool) -> None:
        desired = self._desired()
        if desired is None:
            return
        await self.plane.steer(desired)
        if not self._ready.is_set():
            self.driver.use(self.probes)
        if everything:
            with self._telemetry.tracer.start_as_current_span("converge", attributes={"peers": len(desired.peers)}):
                await self.plane.apply(desired)
            self._works()
        self.driver.installed(desired.legs)
        direct = frozenset(name for name, legs in desired.legs.items() if legs.direct is not None)
        if direct != self._direct and not everything:
            await self.plane.configure(desired)
        self._direct = direct
        self.driver.configured(peer.key for peer in desired.peers)

    def _desired(self) -> Desired | None:
        if self.mesh is None or self.own is None:
            return None
        proxies = {key: proxy for key, proxy in self._proxies.items() if proxy != NO_PROXY}
        peers = tuple(self.peers.values())
        away = outside(self.local.attached, self.own, peers)
        return Desired(self.mesh, self.own, peers, dict(self.driver.legs), proxies, self.probes.port, away)

    def _works(self) -> None:
        if self.problem is not None:
            self.problem = None
            log.info("data plane ready", peers=len(self.peers))
            self._changed()
        self._ready.set()

    def _failed(self, error: Exception) -> None:
        problem = problem_of(error)
        if problem != self.problem:
            self.problem = problem
            log.warning("the data plane is not as it should be; trying again", error=str(error))
            self._changed()

    def _mark_all(self) -> None:
        self._all_due = True
        self._due.set()

    async def _discover(self) -> None:
        await self._ready.wait()  # STUN through WireGuard's port needs the table
        await self.local.discover()

    async def _watch_counters(self) -> None:
        await self._ready.wait()
        while True:
            await asyncio.sleep(STATS_SECONDS)
            try:
                with self._counting:
                    stats = await self.plane.read_stats()
            except BackendError:
                self._mark_all()  # a slow answer is no failure yet; converging finds out
                continue
            names = {peer.key: peer.name for peer in self.peers.values()}
            active = self._activity.update(stats, time.monotonic())
            moved = {names[key]: endpoint for key, endpoint in roamed(stats).items() if key in names}
            self.driver.traffic(
                {names[key]: busy for key, busy in active.items() if key in names},
                [names[key] for key in self._activity.sent if key in names],
                [names[key] for key in self._activity.received if key in names],
                moved,
            )
            shaken = frozenset(key for key, each in stats.items() if each.last_handshake > 0)
            if not shaken <= self._shaken:
                self._mark_all()  # keepalives may begin
            self._shaken = shaken
            self._remind()
            if any(endpoint in self.driver.legs[name].accept for name, endpoint in moved.items()):
                self._mark_all()  # the new address is confirmed and in the table: the constant endpoint can stand again

    def _remind(self) -> None:
        now = time.monotonic()
        if now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            self.driver.remind()

    async def _verify(self) -> None:
        while True:
            await asyncio.sleep(VERIFY_HOST_SECONDS)
            if self.local.read_resolvers():
                self._follow_peers()
            self._mark_all()

    async def _guard_table(self) -> None:
        await self._ready.wait()
        while True:
            try:
                await table.guard(self.plane.verify_table)
            except SteeringError as error:
                self._failed(error)
                self._mark_all()
                await asyncio.sleep(RETRY_SECONDS)

    # The host.

    async def _follow_host(self) -> None:
        while True:
            await self._host_changed.wait()
            self._host_changed.clear()
            try:
                before = self.local.around
                if await self.local.look() and self.mesh is not None:
                    self.relay.set_underlay(self.local.underlay, self.mesh.listen_port)
                    self._follow_peers()
                    self.driver.network_changed()
                elif before != self.local.around:
                    self._follow_peers()
            except Failure as error:
                self._failed(error)
            self._mark_all()

    def _tell_local(self) -> None:
        self.driver.set_local(local_nat(self.local.nat), (each.endpoint for each in self.local.candidates))
        self._changed()

    def _reaches_directly(self) -> bool:
        return any(legs.direct is not None for legs in self.driver.legs.values())

    # Names and the relay.

    async def _follow_names(self) -> None:
        """Resolve the relays' names and our annotation, on a change and every 5 minutes."""
        while True:
            self._resolve_again.clear()
            mesh, own = self.mesh, self.own
            if mesh is not None and own is not None:
                # Each side goes direct alone, and the other may be later. A relay that is named again is not let go.
                if not mesh.relays and self.relays.view.name and await self._names_changed(LETTING_GO_SECONDS):
                    continue
                if not mesh.relays and mesh.policy.mode is not Mode.NEVER:
                    self.driver.no_relay("the Mesh names no relay")
                self.relay.configure(await self.relays.servers())
                await self.local.annotate(own.endpoint)
            await self._names_changed(NAMES_SECONDS if self.relays.view.name else RETRY_NAMES_SECONDS)

    async def _names_changed(self, seconds: float) -> bool:
        """Wait until other names are to be resolved, or for so long; return whether they are."""
        try:
            async with asyncio.timeout(seconds):
                await self._resolve_again.wait()
        except TimeoutError:
            return False
        return True

    def _relay_event(self, event: RelayEvent) -> None:
        if isinstance(event, ProxyMoved):
            if event.key in self._proxies:
                self._proxies[event.key] = event.endpoint
                self._due.set()
            return
        self.relays.event(event)
        self.driver.relay_event(event)

    def _path_changed(self, transition: Transition) -> None:
        self._transition(transition)
        self._changed()
