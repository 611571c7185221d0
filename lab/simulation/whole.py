# SPDX-License-Identifier: Apache-2.0
"""A simulated agent that is the agent's own code: its door to Kubernetes, its reading of the mesh, its writing of status."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable

from ...agent.facts import MeshFacts, PeerFacts, PeerFactsReader, parse_mesh
from ...agent.keys import NodeKey
from ...agent.nat.report import Behaviour, NatReport, Udp
from ...agent.paths.candidates import Candidate, Kind
from ...agent.paths.model import PathView, State
from ...agent.peersource import WatchedSlices
from ...agent.publisher import Publisher
from ...agent.report import NodeView
from ...telemetry import noop
from ...wire.endpoint import Endpoint
from .light import endpoint_of, key_of

NAT = NatReport(Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT, Udp.OPEN)


class WholeAgent:
    """The control side of an agent, with a data plane that it only claims to have.

    Args:
        name: of the Node.
        kubeconfig: path.
        changed: called after each look with the agent.
    """

    def __init__(self, name: str, kubeconfig: str, changed: Callable[[WholeAgent], None]) -> None:
        self.name, self._changed = name, changed
        self.endpoint = endpoint_of(name, 0)
        self._source = WatchedSlices(name, kubeconfig, (None,), noop(), self._look)
        self.ready = self._source.synced
        self._reader = PeerFactsReader(name)
        self._mesh: MeshFacts | None = None
        self._peers: dict[str, PeerFacts] = {}
        self._publisher = Publisher(self._source, self._view)

    @property
    def known(self) -> int:
        """How many nodes it knows with their keys, itself among them."""
        return len(self._peers) + bool(self._reader.networks)

    def endpoint_seen(self, name: str) -> str | None:
        """Return the endpoint that it knows of another node."""
        peer = self._peers.get(name)
        return str(peer.candidates[0]) if peer is not None and peer.candidates else None

    def move(self, endpoint: str) -> None:
        """Get another address."""
        self.endpoint = endpoint
        self._publisher.due.set()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._source.run())
            group.create_task(self._publisher.run())

    def _look(self) -> None:
        snapshot = self._source.snapshot()
        mesh = parse_mesh(snapshot.mesh) if snapshot.mesh is not None else None
        self._mesh = mesh if isinstance(mesh, MeshFacts) else None
        peers, _ = self._reader.read(snapshot.mesh, snapshot.peers)
        self._peers = {each.name: each for each in peers}
        self._publisher.due.set()
        self._changed(self)

    def _view(self) -> NodeView:
        path = PathView(State.DIRECT, None, frozenset(), None, "Simulated", "no data plane", 0.0, 0, None)
        shown = (self.endpoint, endpoint_of(self.name, -1), endpoint_of(self.name, -2))
        kinds = (Kind.SERVER_REFLEXIVE, Kind.HOST, Kind.HOST)
        return NodeView(
            self.name,
            "Running",
            key=NodeKey(bytes(32), base64.b64decode(key_of(self.name)), None),
            mesh=self._mesh,
            nat=NAT,
            candidates=tuple(Candidate(Endpoint.parse(text), kind) for text, kind in zip(shown, kinds, strict=True)),
            paths=dict.fromkeys(self._peers, path),
            problem=None,
        )
