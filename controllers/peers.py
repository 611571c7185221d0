# SPDX-License-Identifier: Apache-2.0
"""Node to Peer: a Node with the label has a Peer of its name, with addresses; any other Node has none.

The Peer also gets those of the Node's own networks that the Mesh's routing asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..api.addresses import Network, RangeError, addresses_at, allocate
from ..api.constants import FIELD_MANAGER_OPERATOR
from ..api.effective import mesh_ranges
from ..api.reading import readable_network
from ..runtime.controller import Result
from ..runtime.errors import Conflict, NotFound
from ..runtime.events import EventRecorder
from ..runtime.objects import Key, Kind, Object
from ..runtime.reflector import Event
from ..runtime.store import Store
from ..telemetry.logs import get_logger
from .kinds import MESH_KEY, NODE, PEER, seniority, spec_of, uid_of
from .networks import routing_of, wanted_networks
from .nodes import EndpointError, annotated_endpoint, wants_mesh

log = get_logger("peers")

BY_MESH_ADDRESS = "meshAddress"
FULL_RETRY = 30.0  # seconds; a node that leaves makes room, and is no event of the one that waits
_FIELDS = ("addresses", "endpoint", "nodeAddresses", "podCIDRs")  # of the spec, the operator's


class Writer(Protocol):
    """The part of a client that is used here."""

    async def apply(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """See `Verbs.apply`."""

    async def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """See `Verbs.delete`."""


class PeerReconciler:
    """Keeps the Peer of one Node. Between its decision and the write of it nothing is awaited, so workers may be several.

    Args:
        client: writes Peers.
        nodes: all Nodes, with the index of `networks.add_indexes`.
        meshes: the Mesh, whose status names the ranges.
        peers: all Peers, with the index of `add_index`.
        events: for Events on Nodes.
    """

    def __init__(self, client: Writer, nodes: Store, meshes: Store, peers: Store, events: EventRecorder) -> None:
        self._client = client
        self._nodes = nodes
        self._meshes = meshes
        self._peers = peers
        self._events = events
        self._given: dict[str, tuple[str, ...]] = {}  # by Node; the store may not show our last writes yet
        self._holders: dict[str, str] = {}  # the inverse
        self._refused: dict[str, str] = {}  # what was said about a Node's annotation last

    async def reconcile(self, key: Key) -> Result:
        """Make, update or delete one Peer."""
        name = key[1]
        node, peer = self._nodes.get(key), self._peers.get(key)
        if node is None or not wants_mesh(node):
            self._forget(name)
            self._refused.pop(name, None)
            await self._remove(peer, node)
            return Result()
        mesh = self._meshes.get(MESH_KEY)
        ranges = mesh_ranges(mesh)
        if not ranges or (peer is not None and peer["metadata"].get("deletionTimestamp")):
            return Result()  # the Mesh's status, or the end of the old Peer, queues us again
        more = wanted_networks(node, self._nodes, routing_of(mesh))
        addresses = self._addresses(name, node, peer, ranges)
        if addresses is None:
            return Result(FULL_RETRY)
        wanted = desired_peer(node, peer, addresses, self._endpoint(node), more)
        if not has_all(peer, wanted):
            await self._client.apply(PEER, wanted, field_manager=FIELD_MANAGER_OPERATOR)
            log.info("applied a Peer", peer=name, addresses=wanted["spec"]["addresses"])
        return Result()

    def _addresses(
        self, name: str, node: Object, peer: Object | None, ranges: tuple[Network, ...]
    ) -> tuple[str, ...] | None:
        # What we gave comes first: somebody may have written another cluster's addresses over it.
        existing = self._given.get(name) or addresses_of(peer)
        try:
            place = allocate(
                name,
                ranges,
                existing=existing,
                taken=lambda place: self._taken(name, peer, addresses_at(place, ranges), existing),
                others=len(self._peers) + len(self._given),
            )
        except RangeError as error:
            self._events.event(node, "Warning", "NoMeshAddress", "AllocateAddress", str(error))
            return None
        self._give(name, addresses_at(place, ranges))
        return self._given[name]

    def _taken(self, name: str, mine: Object | None, addresses: tuple[str, ...], existing: Iterable[str]) -> bool:
        """Whether another node has one of the addresses; of two Peers that share one, the older keeps it."""
        own = set(readable_addresses(existing))
        for address in addresses:
            for other in self._peers.by_index(BY_MESH_ADDRESS, address):
                younger = mine is not None and seniority(mine) < seniority(other)
                if other["metadata"]["name"] != name and not (address in own and younger):
                    return True
            # The store may not show our last writes yet.
            holder = self._holders.get(address, name)
            older = mine is not None and address in own
            if holder != name and self._peers.get(("", holder)) is None and not older:
                return True
        return False

    def _give(self, name: str, addresses: tuple[str, ...]) -> None:
        self._forget(name)
        self._given[name] = addresses
        self._holders.update(dict.fromkeys(addresses, name))

    def _forget(self, name: str) -> None:
        for address in self._given.pop(name, ()):
            if self._holders.get(address) == name:
                del self._holders[address]

    def _endpoint(self, node: Object) -> str | None:
        """Return the annotation's endpoint; say once what is wrong with it."""
        name = node["metadata"]["name"]
        try:
            endpoint = annotated_endpoint(node)
        except EndpointError as error:
            if self._refused.get(name) != str(error):
                self._refused[name] = str(error)
                self._events.event(node, "Warning", "InvalidEndpoint", "ReadAnnotation", str(error))
            return None
        self._refused.pop(name, None)
        return endpoint

    async def _remove(self, peer: Object | None, node: Object | None) -> None:
        if peer is None or not ours(peer) or peer["metadata"].get("deletionTimestamp"):
            return
        name = peer["metadata"]["name"]
        try:
            await self._client.delete(PEER, name, uid=uid_of(peer))
        except (NotFound, Conflict):
            return  # gone, or another one of that name by now, which its own event brings to us
        if node is None:
            self._events.event(peer, "Normal", "NoNode", "DeletePeer", f"this cluster has no Node {name} (any more)")
        log.info(
            "deleted a Peer", peer=name, why="its Node has left the mesh" if node else "there is no such Node here"
        )


def add_index(peers: Store) -> None:
    """Make the store of Peers ready for the reconciler."""
    peers.add_index(BY_MESH_ADDRESS, lambda peer: readable_addresses(addresses_of(peer)))


def desired_peer(
    node: Object, peer: Object | None, addresses: Iterable[str], endpoint: str | None, more: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the full set of fields that the operator owns. With a uid it updates that very Peer and revives none."""
    name = node["metadata"]["name"]
    owner = {"apiVersion": NODE.group_version, "kind": NODE.kind, "name": name, "uid": uid_of(node)}
    metadata = {"name": name, "ownerReferences": [owner]} | ({"uid": uid_of(peer)} if peer is not None else {})
    spec = {"addresses": list(addresses)} | ({"endpoint": endpoint} if endpoint is not None else {}) | more
    return {"metadata": metadata, "spec": spec}


def has_all(peer: Object | None, wanted: Object) -> bool:
    """Whether the Peer shows what we would send."""
    if peer is None:
        return False
    spec = spec_of(peer)
    same = all(spec.get(field) == wanted["spec"].get(field) for field in _FIELDS)
    # Another owner may stand beside ours; the garbage collector removes it when there is no such Node.
    return same and {uid_of_owner(each) for each in wanted["metadata"]["ownerReferences"]} <= set(owners_of(peer))


def uid_of_owner(reference: dict[str, Any]) -> str:
    """Return the uid in an owner reference."""
    return str(reference.get("uid"))


def owners_of(peer: Object) -> list[str]:
    """Return the uids of the Nodes that own the Peer."""
    references = peer["metadata"].get("ownerReferences") or []
    return [uid_of_owner(each) for each in references if each.get("kind") == NODE.kind]


def ours(peer: Object) -> bool:
    """Whether a Node owns the Peer; one that a person made is never deleted by us."""
    return bool(owners_of(peer))


def addresses_of(peer: Object | None) -> tuple[str, ...]:
    """Return the mesh addresses of a Peer, as far as they can be read."""
    found = spec_of(peer).get("addresses") if peer is not None else None
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def readable_addresses(texts: Iterable[str]) -> list[str]:
    """Return addresses as we write them; what cannot be read is skipped."""
    return [str(each) for text in texts if (each := readable_network(text)) is not None]


def mesh_to_nodes(nodes: Store) -> Callable[[Event], list[Key]]:
    """Return a mapper: new ranges and other routing concern every Node."""

    def mapper(event: Event) -> list[Key]:
        old, new = ((mesh_ranges(obj), routing_of(obj)) for obj in (event.old, event.new))
        return list(nodes.items()) if event.key == MESH_KEY and old != new else []

    return mapper
