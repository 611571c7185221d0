# SPDX-License-Identifier: Apache-2.0
"""The agent: follows the Mesh and its own Peer, joins, leaves, saves what it knows.

no Mesh, no Peer of ours ──> Waiting ──both──> Running ──Peer gone──> host cleaned, Idle
API server silent for 3 s at the start ──> Cached: the last known mesh is used until it answers
API server lost later ──> Offline: what was seen last is used
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Literal

import anyio

from ..api.constants import DEFAULT_INTERFACE
from ..api.reading import Problem
from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from ..wire.endpoint import Endpoint, IPAddress
from . import handover, keys, metrics, report
from .config import Config
from .dataplane import DataPlane, Failure, problem_of
from .facts import MeshFacts, OwnFacts, PeerFacts, PeerFactsReader, parse_mesh, parse_own
from .keys import KeyRefused, NodeKey
from .lease import LeaseKeeper, Turns
from .localapi import LocalApi, NodeReport
from .member import Member
from .paths.model import State, Transition
from .peersource import Snapshot, WatchedSlices
from .publisher import Publisher
from .relayclient import PeerStats, counters
from .report import NodeView
from .resolve import Resolver
from .routing.host import HostNetwork
from .state import Memory

log = get_logger("agent")

FIRST_ANSWER_SECONDS = 3.0
RETRY_SECONDS = 5.0
SAVE_SECONDS = 5.0

Facts = tuple[MeshFacts, OwnFacts, tuple[PeerFacts, ...]]


class Agent:
    """One node's agent.

    Args:
        config: the environment.
        telemetry: traces and metrics.
    """

    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        self._config, self._telemetry = config, telemetry
        self._memory = Memory(config.state_dir)
        self._resolver = Resolver(config.resolv_conf, config.host_resolv_confs)
        self._resolver.last_good = self._memory.names
        self._wake = asyncio.Event()
        self._reader = PeerFactsReader(config.node)
        self._source = WatchedSlices(config.node, config.kubeconfig, self._urls(), telemetry, self._wake.set)
        self._host = HostNetwork(None, config.sysctl_record)
        self._plane = DataPlane(self._host, config.helper)
        self._publisher = Publisher(self._source, self.view)
        self._turns = Turns()
        self._lease = LeaseKeeper(config.node, self._source.renew, self._stuck)
        self._key: NodeKey | None = None
        self._member: Member | None = None
        self._task: asyncio.Task[None] | None = None
        self._phase, self._problem = "Starting", ("Starting", "the agent has just started")
        self._said: tuple[Problem, ...] = ()
        self._dirty_host = True
        self._shown = self.view()
        self._relayed = PeerStats()
        metrics.export(telemetry.meter, lambda: self._shown)
        counters.export(telemetry.meter, lambda: self._relayed)

    def _urls(self) -> tuple[str | None, ...]:
        """API server URLs in the order of trial: the one for all nodes, the credentials' own, the last good one."""
        named = [self._config.apiserver] if self._config.apiserver else []
        last = [self._memory.apiserver] if self._memory.apiserver else []
        return tuple(dict.fromkeys([*named, None, *last]))

    def unready(self) -> str | None:
        """Return why the node is not ready, None when it is; a node that is not in the mesh is."""
        if self._phase == "Idle":
            return None
        problem = self._member.problem if self._member is not None else self._problem
        return None if problem is None else f"{problem[0]}: {problem[1]}"

    def _stuck(self) -> bool:
        return self._turns.stuck() or (self._member is not None and self._member.stuck())

    async def run(self) -> None:
        """Run until cancelled; then leave everything as it is for the next agent, with a note.

        Raises:
            Misconfigured: no usable credentials.
            OSError: the run folder is not writable.
        """
        server = LocalApi(self._node_report, asyncio.get_running_loop()).serve(self._config.socket)
        try:
            async with asyncio.TaskGroup() as group:
                parts = self._source, self._publisher, self._lease
                for task in (*(part.run() for part in parts), self._follow(), self._save()):
                    group.create_task(task)
        except BaseExceptionGroup as several:
            raise _first(several) from None  # what failed first ends the process; the others were cancelled
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._hand_over()
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop_member()
            server.close()

    # Following.

    async def _follow(self) -> None:
        await self._first_answer()
        while True:
            self._wake.clear()
            with self._turns:
                retry = await self._step(self._source.snapshot())
            try:
                async with asyncio.timeout(retry):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _first_answer(self) -> None:
        try:
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._source.synced.wait()
        except TimeoutError:
            self._source.remember(self._memory.mesh, self._memory.peers)
            count = len(self._memory.peers)
            error = self._source.unhealthy() or self._source.problem
            log.warning("no mesh from the API server yet; starting from the last known one", peers=count, error=error)

    async def _step(self, snapshot: Snapshot) -> float | None:
        """Act on what is known; return seconds until it is to be tried again, None for the next change."""
        if self._task is not None and self._task.done():
            self._task.result()  # raises what ended it: the process ends with it
        try:
            if snapshot.left:
                await self._leave()
                return None
            facts = self._facts(snapshot)
            if facts is None:
                self._publisher.due.set()
                return None
            await self._join(facts)
        except (KeyRefused, *Failure) as error:
            self._fail(error)
            return RETRY_SECONDS
        self._phase = "Running" if snapshot.live else "Cached"
        return None

    def _fail(self, error: Exception) -> None:
        self._phase = "Failing"
        problem = ("KeyRefused", str(error)) if isinstance(error, KeyRefused) else problem_of(error)
        if problem != self._problem:
            self._problem = problem
            log.warning("cannot join the mesh; trying again", reason=problem[0], error=problem[1])
        self._publisher.due.set()

    def _facts(self, snapshot: Snapshot) -> Facts | None:
        """Read the objects; None, with the reason in `_problem`, when there is not enough to act on."""
        found = _read(snapshot)
        if isinstance(found, Problem):
            self._wait(found.reason, found.message)
            return None
        mesh, own = found
        peers, problems = self._reader.read(snapshot.mesh, snapshot.peers, self._servers())
        for problem in set(problems) - set(self._said):
            # A key that nobody has judged yet is no fault: the operator's word comes within moments.
            say = log.info if problem.reason == "KeyNotAccepted" else log.warning
            say("left out", peer=problem.peer, reason=problem.reason, message=problem.message)
        self._said = problems
        return mesh, replace(own, networks=self._reader.networks), peers

    def _servers(self) -> tuple[IPAddress, ...]:
        """Return the addresses of the API server as we are connected to it."""
        return tuple(sorted({Endpoint.of(*each).ip for each in self._source.server_endpoints()}, key=int))

    def _wait(self, reason: str, message: str) -> None:
        if self._problem != (reason, message):
            self._problem = (reason, message)
            log.info("waiting", reason=reason, message=message)
        self._phase = "Waiting" if self._member is None else self._phase

    async def _join(self, facts: Facts) -> None:
        mesh, own, peers = facts
        if self._member is not None and self._plane.interface != mesh.interface:
            log.info("the interface gets another name", old=self._plane.interface, new=mesh.interface)
            await self._stop_member()
            await self._plane.close()
        if self._member is None:
            self._member = await self._start_member(mesh)
            self._member.update(mesh, own, peers, self._source.server_endpoints())
            self._task = asyncio.create_task(self._member.run())
            self._task.add_done_callback(lambda _: self._wake.set())
        else:
            self._member.update(mesh, own, peers, self._source.server_endpoints())
        self._publisher.due.set()

    async def _start_member(self, mesh: MeshFacts) -> Member:
        self._dirty_host = True
        adopted = await self._plane.open(mesh.interface, mesh.mtu)
        handover.discard(self._config.run_dir)
        config = self._config
        self._key = keys.load_or_create(config.state_dir, config.node, keys.machine_id(), adopted.private_key)
        if self._key.problem:
            log.warning("the private key cannot be saved; it is lost at a restart", error=self._key.problem)
        member = Member(
            config.node,
            self._key,
            self._plane,
            self._host,
            adopted,
            self._resolver,
            self._memory.relay_keys,
            self._telemetry,
            changed=self._publisher.due.set,
            transition=self._transition,
        )
        await member.local.look()
        return member

    async def _stop_member(self) -> None:
        task, self._task, self._member = self._task, None, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _leave(self) -> None:
        """Take everything off the host; once, until the node joins again."""
        await self._stop_member()
        if self._dirty_host:
            known = parse_mesh(self._memory.mesh) if self._memory.mesh else None
            name = known.interface if isinstance(known, MeshFacts) else DEFAULT_INTERFACE
            await self._plane.close(name)
            self._memory.forget()
            self._publisher.forget()
            self._dirty_host = False
            log.info("this node is not in the mesh; the host is clean")
        self._phase, self._problem = "Idle", ("NoPeer", "this node is not in the mesh")

    # Saying.

    def view(self) -> NodeView:
        """Return all that is known about this node."""
        member, plane = self._member, self._plane
        base = NodeView(
            node=self._config.node,
            phase=self._phase_now(),
            key=self._key,
            interface=plane.interface,
            backend=plane.kind,
            ipv4_only=plane.ipv4_only,
            server=self._source.server,
            problem=self._problem,
        )
        return base if member is None else member.describe(base)

    def _phase_now(self) -> str:
        return "Offline" if self._phase == "Running" and self._source.unhealthy() else self._phase

    def _node_report(self) -> NodeReport:
        return report.node_report(self.view(), time.monotonic(), time.time())

    def _transition(self, change: Transition) -> None:
        """Tell of a path that was lost or came back; the first path of a pair is no news."""
        own = self._source.snapshot().own
        if own is None or self._source.events is None or change.old is State.CONNECTING:
            return
        kind: Literal["Normal", "Warning"] = "Warning" if change.new is State.UNREACHABLE else "Normal"
        note = f"{change.name}: {change.old} to {change.new}: {change.message}"
        self._source.events.event(own, kind, change.reason, f"Path{change.new}", note)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._show()
            self._remember()

    def _show(self) -> None:
        """Make what the exporter's thread reads."""
        self._shown = self.view()
        if self._member is not None:
            self._relayed = self._member.relay.total()

    def _remember(self, *, force: bool = False) -> None:
        snapshot = self._source.snapshot()
        if not snapshot.live or snapshot.own is None:
            return
        self._memory.take(snapshot.mesh, snapshot.peers, self._source.server)
        if problem := self._memory.save(time.monotonic(), force=force):
            log.warning("the state cannot be saved", error=problem)

    async def _hand_over(self) -> None:
        """Tell the next agent that what it finds is alive."""
        self._remember(force=True)
        member, plane = self._member, self._plane
        if member is None or member.mesh is None or plane.interface is None or plane.kind is None:
            return
        try:
            note = handover.Note(
                boot_id=handover.boot_id(),
                interface=plane.interface,
                ifindex=await plane.link_index(),
                kind=plane.kind,
                fingerprint=handover.fingerprint(member.key.public),
                listen_port=member.mesh.listen_port,
            )
            handover.write(self._config.run_dir, note)
        except Failure as error:
            log.warning("no hand-over note could be left", error=str(error))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _read(snapshot: Snapshot) -> tuple[MeshFacts, OwnFacts] | Problem:
    """Read the Mesh and our own Peer; a problem when one of them is absent or malformed."""
    if snapshot.own is None and not snapshot.live:
        return Problem("", "NoAPIServer", "the API server has shown no mesh yet, and none is known from before")
    if snapshot.own is None:
        return Problem("", "NoPeer", "this node has no WireKubePeer: is it labelled wirekube.io/vpn-enabled=true?")
    if snapshot.mesh is None:
        return Problem("", "NoMesh", "there is no WireKubeMesh named default")
    mesh, own = parse_mesh(snapshot.mesh), parse_own(snapshot.own)
    if isinstance(mesh, Problem):
        return Problem("", "MeshMalformed", mesh.message)
    if isinstance(own, Problem):
        return Problem("", "PeerMalformed", own.message)
    return mesh, own
