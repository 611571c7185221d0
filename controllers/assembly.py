# SPDX-License-Identifier: Apache-2.0
"""The operator, put together: what it watches, which controller hears of it, what only the leader runs.

Nodes ────┬─> node:  a Peer for each labelled Node          (peers.py)
Mesh ─────┼─> peer:  the operator's verdict on each Peer    (keys.py, readiness.py)
Peers ────┼─> mesh:  the Mesh's status                      (mesh.py, relays.py)
slices ───┼─> slice: what agents read of all Peers          (slices.py, slicing.py)
Leases ───┤─> relay: the managed relay's objects            (relay/)
relay ────┘
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from ..api.constants import NODE_LEASE_NAMESPACE
from ..runtime.client import Client
from ..runtime.controller import Controller
from ..runtime.elector import Elector
from ..runtime.events import EventRecorder
from ..runtime.health import HealthServer
from ..runtime.manager import Manager
from ..runtime.reflector import Reflector
from ..runtime.store import Store
from ..telemetry import Telemetry
from . import keys, mesh, networks, peers
from .kinds import LEASE, MESH, NODE, PEER, SLICE
from .leases import Leases
from .liveness import Timing
from .relay.watches import relay_controller, relay_reflectors
from .relays import RelayResolver
from .slices import SliceReconciler

COMPONENT = "wirekube.io/operator"
RESYNC = 600.0
WORKERS = 4  # of the controllers that write an object for each node: most of their time they wait for answers


@dataclass(frozen=True)
class Watched:
    """The reflectors, and what every controller is made with; `namespace` is the operator's, and its agents'."""

    namespace: str
    client: Client
    telemetry: Telemetry
    events: EventRecorder
    nodes: Reflector
    meshes: Reflector
    peers: Reflector
    slices: Reflector
    leases: Reflector

    @property
    def stores(self) -> tuple[Store, Store, Store]:
        """Nodes, Meshes and Peers."""
        return self.nodes.store, self.meshes.store, self.peers.store


def assemble(
    client: Client,
    telemetry: Telemetry,
    health: HealthServer | None = None,
    *,
    namespace: str,
    relay_image: str = "",
    timing: Timing | None = None,
    election: Elector | None = None,
) -> Manager:
    """Put the operator together.

    Args:
        client: connected.
        telemetry: for all parts.
        health: gets their checks.
        namespace: of the operator, and of what it makes.
        relay_image: of managed relays; empty for the operator's own.
        timing: of the agents' Leases; None takes the usual one.
        election: None leads at once.
    """
    seen = _watched(client, telemetry, namespace)
    leases = Leases(client, seen.leases, seen.peers, timing)
    relay = relay_reflectors(client, telemetry, namespace)
    view = relay.view(seen.nodes.store)
    judge, status = _peer_controller(seen, leases), _mesh_controller(seen, leases, RelayResolver(seen=view.seen))
    leases.tell(judge.enqueue, status.enqueue)
    relays = relay_controller(client, telemetry, relay, view, seen.meshes, seen.nodes, status, relay_image)

    manager = Manager(telemetry, health, election=election)
    for reflector in (seen.meshes, seen.peers, seen.nodes, seen.slices, seen.leases, *relay.all()):
        manager.add_reflector(reflector)
    for controller in (_node_controller(seen), judge, status, _slice_controller(seen), relays):
        manager.add_controller(controller)
    manager.add("events", seen.events, leader=True)
    manager.add("leases", leases, leader=True)
    return manager


def _watched(client: Client, telemetry: Telemetry, namespace: str) -> Watched:
    # A cluster does not lose all its Nodes at once; a list that says so would remove every Peer.
    nodes: Reflector = Reflector(
        client, NODE, resync=RESYNC, telemetry=telemetry, list_filter=lambda found: bool(found) or not len(nodes.store)
    )
    meshes, members, slices = (
        Reflector(client, kind, resync=RESYNC, telemetry=telemetry) for kind in (MESH, PEER, SLICE)
    )
    keys.add_indexes(members.store)
    peers.add_index(members.store)
    for module in (networks, mesh):
        module.add_indexes(nodes.store, members.store)
    leases = Reflector(client, LEASE, namespace=NODE_LEASE_NAMESPACE, telemetry=telemetry)
    events = EventRecorder(client, COMPONENT, socket.gethostname(), telemetry)
    return Watched(namespace, client, telemetry, events, nodes, meshes, members, slices, leases)


def _node_controller(seen: Watched) -> Controller:
    reconciler = peers.PeerReconciler(seen.client, *seen.stores, seen.events)
    controller = Controller("node", reconciler, telemetry=seen.telemetry, workers=WORKERS)
    controller.watches(seen.nodes, networks.node_to_nodes(seen.nodes.store))
    controller.watches(seen.meshes, peers.mesh_to_nodes(seen.nodes.store))
    controller.watches(seen.peers)
    return controller


def _peer_controller(seen: Watched, leases: Leases) -> Controller:
    reconciler = keys.PeerStatusReconciler(seen.client, *seen.stores, seen.events, leases, namespace=seen.namespace)
    controller = Controller("peer", reconciler, telemetry=seen.telemetry, workers=WORKERS)
    controller.watches(seen.peers, keys.peer_to_peers(seen.peers.store))
    controller.watches(seen.nodes, networks.node_to_nodes(seen.nodes.store))
    controller.watches(seen.meshes, keys.mesh_to_peers(seen.peers.store))
    return controller


def _mesh_controller(seen: Watched, leases: Leases, relays: RelayResolver) -> Controller:
    reconciler = mesh.MeshReconciler(
        seen.client, *seen.stores, seen.events, lambda: leases.census, relays=relays, namespace=seen.namespace
    )
    controller = Controller("mesh", reconciler, telemetry=seen.telemetry)
    controller.watches(seen.meshes)
    controller.watches(seen.peers, mesh.peer_to_mesh)
    controller.watches(seen.nodes, reconciler.node_to_mesh)
    return controller


def _slice_controller(seen: Watched) -> Controller:
    nodes, members = seen.nodes.store, seen.peers.store
    reconciler = SliceReconciler(
        seen.client, nodes, members, seen.slices.store, lambda: nodes.count(mesh.MEMBER, "yes")
    )
    controller = Controller("slice", reconciler, telemetry=seen.telemetry)
    controller.watches(seen.peers, reconciler.peer_to_slices)
    controller.watches(seen.nodes, reconciler.node_to_slices)
    controller.watches(seen.slices, reconciler.slice_to_slices)
    return controller
