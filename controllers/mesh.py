# SPDX-License-Identifier: Apache-2.0
"""The Mesh's status: ranges in force, relay addresses, counts, conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, Protocol

from pydantic import ValidationError

from ..api.addresses import Ranges, capacity, choose_ranges
from ..api.constants import FIELD_MANAGER_OPERATOR, NAMESPACE
from ..api.reading import explain
from ..api.v1alpha1 import WireKubeMesh
from ..runtime.conditions import is_true
from ..runtime.controller import Result
from ..runtime.errors import ApiError, NotFound
from ..runtime.events import EventRecorder
from ..runtime.objects import Key, Kind, Object
from ..runtime.reflector import Event
from ..runtime.store import Store
from .cluster import ClusterNetworks, Reader, Services
from .kinds import MESH, MESH_KEY, conditions_of, generation_of, now_iso, spec_of, status_of, uid_of
from .liveness import Census
from .nodes import node_networks, wants_mesh
from .readiness import AGENTS_REPORTING, READY, judge_agents
from .relay.addresses import node_address
from .relay.state import RELAY_READY
from .relays import RelayResolver
from .verdicts import Verdict, conditions, transitions

ADDRESSES_READY = "AddressesReady"
COUNT_PAUSE = 5.0  # seconds between writes that carry nothing but counts: every agent gets each of them
RANGES_RETRY = 30.0
MEMBER, STANDING = "member", "standing"  # indexes
_NAMED = 5  # nodes, in a message
# Many Nodes that join make many of these, and none is urgent.
_COUNTS = frozenset({"peers", "readyPeers", "clusterCIDRs"})
_NO_RELAY_WANTED = frozenset({"Disabled", "NotConfigured"})
_EXPECTED = _NO_RELAY_WANTED | {"RelayStarting"}


class MeshClient(Reader, Protocol):
    """The part of a client that is used here."""

    async def apply_status(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """See `Verbs.apply_status`."""


class MeshReconciler:
    """Writes the status of the one Mesh.

    Args:
        client: writes the status; reads the Service ranges and the API server's addresses.
        nodes: all Nodes, for their addresses and pod ranges, with the index of `add_indexes`.
        meshes: the Mesh.
        peers: all Peers, to be counted, with the index of `add_indexes`.
        events: for Events on the Mesh.
        census: counts the agents; None while that is not done.
        relays: resolves relay names.
        namespace: where the agents' pods are, for people.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: MeshClient,
        nodes: Store,
        meshes: Store,
        peers: Store,
        events: EventRecorder,
        census: Callable[[], Census | None],
        *,
        relays: RelayResolver | None = None,
        namespace: str = NAMESPACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._meshes = meshes
        self._peers = peers
        self._events = events
        self._census, self._namespace = census, namespace
        self._relays = relays or RelayResolver()
        self._clock = clock
        self._cluster = ClusterNetworks(client, clock)
        self._written = float("-inf")

    async def reconcile(self, key: Key) -> Result:
        """Compute the status and write it when it differs; counts alone at most every 5 s."""
        obj = self._meshes.get(key)
        if key != MESH_KEY or obj is None or obj["metadata"].get("deletionTimestamp"):
            return Result()
        try:
            mesh = WireKubeMesh.model_validate(obj)
        except ValidationError as error:
            verdicts = undecided("Malformed", explain(error), Verdict(READY, "False", "Malformed", explain(error)))
            return await self._write(obj, kept(obj), verdicts, None)
        try:
            services = await self._cluster.services()
        except ApiError as error:
            if not conditions_of(obj):
                unknown = undecided("ClusterNotRead", f"the cluster's own ranges cannot be read: {error.message}")
                await self._write(obj, kept(obj), unknown, None)
            raise
        ranges = self._ranges(mesh, obj, services)
        relays = await self._relays.resolve(mesh.spec.relay, status_of(obj).get("relays") or [])
        agents = judge_agents(self._census(), conditions_of(obj), self._namespace)
        verdicts = [self._judge_addresses(ranges), relays.verdict, agents]
        verdicts.append(ready_verdict(verdicts))
        fields = counts(self._peers) | {
            "observedGeneration": generation_of(obj),
            "meshCIDRs": [str(network) for network in ranges.networks],
            "clusterCIDRs": self._cluster.cidrs(self._nodes, services),
            "apiServers": list(services.api_servers),
            "relays": relays.entries,
        }
        again = [each for each in (relays.again, RANGES_RETRY if ranges.problems else None) if each is not None]
        return await self._write(obj, fields, verdicts, min(again, default=None))

    def _ranges(self, mesh: WireKubeMesh, obj: Object, services: Services) -> Ranges:
        current = [ip_network(text) for text in mesh.status.mesh_cidrs]
        wanted = [ip_network(text) for text in (mesh.spec.mesh_cidr, mesh.spec.mesh_cidr6) if text]
        wrong = family_problem(mesh)
        if wrong:
            return Ranges(tuple(current), (wrong,))
        settled = {network.version for network in current} == {4, 6} and set(wanted) <= set(current)
        taken = [] if settled else [*node_networks(self._nodes.items().values()), *services.ranges]
        return choose_ranges(uid_of(obj), taken, current=current, wanted=wanted)

    def _judge_addresses(self, ranges: Ranges) -> Verdict:
        members, room = self._nodes.count(MEMBER, "yes"), capacity(ranges.networks)
        if ranges.problems or not ranges.networks or members <= room:
            return addresses_verdict(ranges)
        names = (node["metadata"]["name"] for node in self._nodes.by_index(MEMBER, "yes"))
        return exhausted_verdict(ranges, members, [name for name in names if self._peers.get(("", name)) is None])

    def node_to_mesh(self, event: Event) -> tuple[Key, ...]:
        """Map a Node to the Mesh when its addresses, where a relay is reached on it, its pod ranges or its label are new."""
        old, new = (_places(obj) for obj in (event.old, event.new))
        if old == new:
            return ()
        self._cluster.nodes_changed()
        return (MESH_KEY,)

    async def _write(self, obj: Object, fields: dict[str, Any], verdicts: list[Verdict], again: float | None) -> Result:
        wanted = fields | {"conditions": conditions(obj, verdicts, now_iso())}
        changed = changed_fields(status_of(obj), wanted)
        if not changed:
            return Result(again)
        wait = self._written + COUNT_PAUSE - self._clock()
        if changed <= _COUNTS and wait > 0:
            return Result(wait)
        body = {"metadata": {"name": obj["metadata"]["name"]}, "status": wanted}
        try:
            await self._client.apply_status(MESH, body, field_manager=FIELD_MANAGER_OPERATOR)
        except NotFound as error:
            if error.whole_resource:
                raise
            return Result()
        self._written = self._clock()
        for news in transitions(obj, verdicts):
            normal = news.status == "True" or news.reason in _EXPECTED
            self._events.event(
                obj, "Normal" if normal else "Warning", news.reason, f"Judge{news.type}", news.message or news.type
            )
        return Result(again)


def kept(obj: Object) -> dict[str, Any]:
    """Return all of the status but its conditions: what an apply leaves out would be removed."""
    return {name: value for name, value in status_of(obj).items() if name != "conditions"}


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """Return the names of the fields that differ."""
    return {name for name in old.keys() | new.keys() if (old.get(name) or None) != (new.get(name) or None)}


def add_indexes(nodes: Store, peers: Store) -> None:
    """Make the stores ready for the reconciler: it counts without looking at each object."""
    nodes.add_index(MEMBER, lambda node: ["yes"] if wants_mesh(node) else [])
    peers.add_index(STANDING, _standing)


def _standing(peer: Object | None) -> list[str]:
    if peer is None or peer["metadata"].get("deletionTimestamp"):
        return []
    return ["alive", "ready"] if is_true(conditions_of(peer), READY) else ["alive"]


def counts(peers: Store) -> dict[str, Any]:
    """Count Peers."""
    return {"peers": peers.count(STANDING, "alive"), "readyPeers": peers.count(STANDING, "ready")}


def family_problem(mesh: WireKubeMesh) -> str:
    """Return what is wrong when a range stands in the field of the other family, else an empty string."""
    for field, version, text in (("meshCIDR", 4, mesh.spec.mesh_cidr), ("meshCIDR6", 6, mesh.spec.mesh_cidr6)):
        if text and ip_network(text).version != version:
            return f"spec.{field} must be an IPv{version} range, not {text}"
    return ""


def addresses_verdict(ranges: Ranges) -> Verdict:
    """Return AddressesReady."""
    shown = ", ".join(map(str, ranges.networks))
    if ranges.problems:
        message = "; ".join(ranges.problems) + (f"; in force: {shown}" if shown else "")
        return Verdict(ADDRESSES_READY, "False", "RangeRefused", message)
    return Verdict(ADDRESSES_READY, "True", "RangesChosen", f"mesh addresses come from {shown}")


def exhausted_verdict(ranges: Ranges, members: int, without: list[str]) -> Verdict:
    """Return AddressesReady when there are more nodes than addresses; `without` are the nodes that have none."""
    shown = ", ".join(map(str, ranges.networks))
    some = ", ".join(without[:_NAMED]) + (" and others" if len(without) > _NAMED else "")
    message = (
        f"{members} nodes are in the mesh, and {shown} has {capacity(ranges.networks)} addresses: "
        f"{len(without)} have none{f' ({some})' if some else ''}; set a larger spec.meshCIDR, or take nodes out"
    )
    return Verdict(ADDRESSES_READY, "False", "RangeExhausted", message)


def ready_verdict(parts: list[Verdict]) -> Verdict:
    """Return Ready: addresses are there, the relay if one is wanted, and not most of the agents silent."""
    for part in parts:
        no_relay = part.type == RELAY_READY and part.reason in _NO_RELAY_WANTED
        no_agent = part.type == AGENTS_REPORTING and part.status == "Unknown"
        if part.status != "True" and not no_relay and not no_agent:
            return Verdict(READY, "False", part.reason, part.message)
    return Verdict(READY, "True", "Ready", "addresses, relay and agents are in order")


def undecided(reason: str, message: str, ready: Verdict | None = None) -> list[Verdict]:
    """Return all conditions of a Mesh while nothing can be said about its parts; Ready is Unknown, too, if not given."""
    types = (ADDRESSES_READY, RELAY_READY, AGENTS_REPORTING, READY)
    verdicts = [Verdict(each, "Unknown", reason, message) for each in types]
    return verdicts if ready is None else [*verdicts[:-1], ready]


def _places(node: Object | None) -> object:
    if node is None:
        return None
    spec = spec_of(node)
    ranges = spec.get("podCIDRs"), spec.get("podCIDR")
    return status_of(node).get("addresses"), *ranges, node_address(node), wants_mesh(node)


def peer_to_mesh(event: Event) -> tuple[Key, ...]:
    """Map a Peer to the Mesh when it counts otherwise than before."""
    return (MESH_KEY,) if _standing(event.old) != _standing(event.new) else ()
