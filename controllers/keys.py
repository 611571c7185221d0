# SPDX-License-Identifier: Apache-2.0
"""The operator's verdict on each Peer: whose key it is, which of the user's networks count, whether it is Ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from ..api.constants import ANNOTATION_ENDPOINT, FIELD_MANAGER_OPERATOR, LABEL_VPN_ENABLED, NAMESPACE
from ..api.effective import EffectivePeers, reservations
from ..api.reading import KEY_ACCEPTED, Problem, parse_peer
from ..runtime.conditions import find_condition
from ..runtime.controller import Result
from ..runtime.errors import NotFound
from ..runtime.events import EventRecorder
from ..runtime.objects import Key, Kind, Object
from ..runtime.reflector import Event
from ..runtime.store import Store
from . import networks
from .kinds import MESH_KEY, PEER, conditions_of, now_iso, seniority, status_of, uid_of
from .networks import routing_of
from .nodes import EndpointError, annotated_endpoint, wants_mesh
from .peers import ours
from .readiness import READY, REPORT_SECONDS, Silence, judge_ready, shows_silence, time_to_report
from .verdicts import NOT_REQUESTED, Verdict, conditions, transitions, unchanged

ENDPOINT_ACCEPTED = "EndpointAccepted"
OWNED = (KEY_ACCEPTED, ENDPOINT_ACCEPTED, *networks.CONDITIONS, READY)

# Most agents report at once: of a thousand nodes that join, a thousand writes less that say that nothing is known yet.
PATIENCE = 10.0

BY_KEY = "publicKey"
_LONGEST_MESSAGE = 1000


class StatusWriter(Protocol):
    """The part of a client that is used here."""

    async def apply_status(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """See `Verbs.apply_status`."""


class Owners:
    """Who owns each public key, over what the store shows: it may not show our own last writes yet."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, str]] = {}

    def of(self, key: str, claimants: Iterable[Object]) -> Object | None:
        """Return the owner among the Peers that publish the key now.

        The owner that we chose keeps it, then one whose condition says so (chosen before we started), then the oldest.
        """
        ordered = sorted(claimants, key=lambda peer: (accepted(peer) != key, seniority(peer)))
        known = self._owners.get(key)
        owner = next((peer for peer in ordered if _identity(peer) == known), ordered[0] if ordered else None)
        if owner is None:
            self._owners.pop(key, None)
        else:
            self._owners[key] = _identity(owner)
        return owner


class PeerStatusReconciler:
    """Writes the operator's conditions of one Peer. It awaits nothing before it has judged, so workers may be several.

    Args:
        client: writes statuses.
        nodes: for the annotation and the addresses.
        meshes: the Mesh, for its ranges and routing.
        peers: all Peers, with the indexes of `add_indexes`.
        events: for Events on Peers.
        agents: knows which have fallen silent.
        namespace: where the agents' pods are, for people.
        clock: Unix seconds.
    """

    def __init__(
        self,
        client: StatusWriter,
        nodes: Store,
        meshes: Store,
        peers: Store,
        events: EventRecorder,
        agents: Silence,
        *,
        namespace: str = NAMESPACE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._agents, self._namespace = agents, namespace
        self._nodes = nodes
        self._meshes = meshes
        self._peers = peers
        self._events = events
        self._clock = clock
        self._owners = Owners()
        self._effective = EffectivePeers()

    async def reconcile(self, key: Key) -> Result:
        """Judge one Peer and write what has changed."""
        peer = self._peers.get(key)
        if peer is None or peer["metadata"].get("deletionTimestamp"):
            return Result()
        left = time_to_report(peer, self._clock())
        if not conditions_of(peer) and left > REPORT_SECONDS - PATIENCE:
            return Result(left - (REPORT_SECONDS - PATIENCE))
        verdicts = self._judge(key, peer, overdue=left <= 0)
        again = Result(left if left > 0 else None)
        wanted = conditions(peer, verdicts, now_iso())
        if unchanged(peer, wanted, OWNED):
            return again
        body = {"metadata": {"name": key[1]}, "status": {"conditions": wanted}}
        try:
            await self._client.apply_status(PEER, body, field_manager=FIELD_MANAGER_OPERATOR)
        except NotFound:
            return Result()
        for news in tellable(transitions(peer, verdicts)):
            self._tell(peer, news)
        return again

    def _tell(self, peer: Object, news: Verdict) -> None:
        fine = news.status == "True" or news.reason in networks.EXPECTED
        kind: Literal["Normal", "Warning"] = "Normal" if fine else "Warning"
        self._events.event(peer, kind, news.reason, f"Judge{news.type}", news.message or news.type)

    def _judge(self, key: Key, peer: Object, *, overdue: bool) -> list[Verdict]:
        parsed = parse_peer(peer)
        if isinstance(parsed, Problem):
            return judge_malformed(parsed)
        accepts = self._judge_membership(peer) or self._judge_key(peer)
        silent = self._agents.silent(key[1], shown=shows_silence(peer))
        ready = judge_ready(
            key[1], accepts, conditions_of(peer), overdue=overdue, silent=silent, namespace=self._namespace
        )
        return [accepts, judge_endpoint(self._nodes.get(key)), *self._judge_networks(peer), ready]

    def _judge_membership(self, peer: Object) -> Verdict | None:
        return judge_membership(peer, self._nodes.get(("", peer["metadata"]["name"])))

    def _judge_key(self, peer: Object) -> Verdict:
        key = status_of(peer).get("publicKey")
        if not key:
            return Verdict(KEY_ACCEPTED, "Unknown", "NoKey", "the node's agent has not published a key yet")
        claimants = self._peers.by_index(BY_KEY, key)
        owner = self._owners.of(key, [each for each in claimants if self._judge_membership(each) is None])
        return judge_key(peer, key, owner)

    def _judge_networks(self, peer: Object) -> list[Verdict]:
        mesh, name = self._meshes.get(MESH_KEY), peer["metadata"]["name"]
        problems = networks.outside_problems(self._nodes.get(("", name)), self._nodes, routing_of(mesh))
        if networks.has_any(peer):
            effective = self._effective.decide(mesh, self._peers.items().values())
            problems += [problem for problem in effective.problems if problem.peer == name]
        return networks.judge_networks(peer, problems)


def tellable(news: list[Verdict]) -> list[Verdict]:
    """Return what gets an Event: Ready says that all is well by itself, and a thousand nodes may join at once."""
    ready = any(each.type == READY and each.status == "True" for each in news)
    return [each for each in news if not ready or each.type == READY or each.status != "True"]


def judge_malformed(problem: Problem) -> list[Verdict]:
    """Return all conditions of a Peer that cannot be read: its key is not accepted, so everybody leaves it out."""
    message = problem.message[:_LONGEST_MESSAGE]
    unknown = [Verdict(each, "Unknown", problem.reason, message) for each in OWNED if each != READY]
    return [*unknown, Verdict(READY, "False", problem.reason, message)]


def judge_membership(peer: Object, node: Object | None) -> Verdict | None:
    """Return KeyAccepted=False for a Peer without a Node in the mesh; None when there is nothing to say.

    One that a Node owns goes with it, and needs no verdict. Others came by hand, say with another cluster's manifests.
    """
    if wants_mesh(node) or ours(peer):
        return None
    name = peer["metadata"]["name"]
    if node is None:
        message = (
            f"this cluster has no Node {name}; if the Peer came from another cluster: kubectl delete wkpeer {name}"
        )
        return Verdict(KEY_ACCEPTED, "False", "NoNode", message)
    message = f"the Node {name} is not in the mesh: kubectl label node {name} {LABEL_VPN_ENABLED}=true"
    return Verdict(KEY_ACCEPTED, "False", "NodeNotInMesh", message)


def judge_key(peer: Object, key: str, owner: Object | None) -> Verdict:
    """Return KeyAccepted: True with exactly the key as its message, or False with the owner's name."""
    if owner is None or _identity(owner) == _identity(peer):
        return Verdict(KEY_ACCEPTED, "True", "Accepted", key)
    message = f"the Peer {owner['metadata']['name']} had this public key first; this node needs a key of its own"
    return Verdict(KEY_ACCEPTED, "False", "DuplicateKey", message)


def judge_endpoint(node: Object | None) -> Verdict:
    """Return EndpointAccepted."""
    try:
        endpoint = annotated_endpoint(node) if node is not None else None
    except EndpointError as error:
        message = f"the annotation {ANNOTATION_ENDPOINT} is ignored: {error}"
        return Verdict(ENDPOINT_ACCEPTED, "False", "InvalidEndpoint", message)
    if endpoint is None:
        message = f"the Node has no annotation {ANNOTATION_ENDPOINT}"
        return Verdict(ENDPOINT_ACCEPTED, "True", NOT_REQUESTED, message)
    return Verdict(ENDPOINT_ACCEPTED, "True", "Accepted", f"others reach the node at {endpoint}")


def accepted(peer: Object) -> str | None:
    """Return the key that KeyAccepted=True names."""
    found = find_condition(conditions_of(peer), KEY_ACCEPTED)
    return found.get("message") if found is not None and found.get("status") == "True" else None


def add_indexes(peers: Store) -> None:
    """Make the store of Peers ready for the reconciler and its mappers, beside `networks.add_indexes`."""
    peers.add_index(BY_KEY, _keys_of)


def peer_to_peers(peers: Store) -> Callable[[Event], set[Key]]:
    """Return a mapper: a Peer concerns itself, all that claim its key, and, by what it takes, all with networks."""

    def mapper(event: Event) -> set[Key]:
        objects = [obj for obj in (event.old, event.new) if obj is not None]
        related = [other for obj in objects for key in _keys_of(obj) for other in peers.by_index(BY_KEY, key)]
        related += networks.related_peers(peers, event)
        return {event.key} | {("", other["metadata"]["name"]) for other in related}

    return mapper


def mesh_to_peers(peers: Store) -> Callable[[Event], list[Key]]:
    """Return a mapper: ranges and API servers that are new concern the Peers with networks, other routing concerns all."""

    def mapper(event: Event) -> list[Key]:
        if event.key != MESH_KEY:
            return []
        if routing_of(event.old) != routing_of(event.new):
            return list(peers.items())
        if reservations(event.old) == reservations(event.new):
            return []
        return [("", peer["metadata"]["name"]) for peer in peers.by_index(networks.WITH_NETWORKS, "yes")]

    return mapper


def _keys_of(peer: Object) -> list[str]:
    key = status_of(peer).get("publicKey")
    return [key] if key and isinstance(key, str) else []


def _identity(peer: Object) -> tuple[str, str]:
    return peer["metadata"]["name"], uid_of(peer)
