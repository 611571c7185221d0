# SPDX-License-Identifier: Apache-2.0
"""The operator's verdict on each Peer: whose key it is, which of the user's networks count, whether it is Ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from ..api.constants import ANNOTATION_ENDPOINT, FIELD_MANAGER_OPERATOR
from ..api.effective import EffectivePeers, reservations
from ..api.reading import KEY_ACCEPTED, Problem, parse_peer
from ..runtime.conditions import find_condition, is_true
from ..runtime.controller import Result
from ..runtime.errors import NotFound
from ..runtime.events import EventRecorder
from ..runtime.objects import Key, Kind, Object
from ..runtime.reflector import Event
from ..runtime.store import Store
from .kinds import MESH_KEY, PEER, conditions_of, now_iso, seniority, spec_of, status_of, uid_of
from .nodes import EndpointError, annotated_endpoint
from .verdicts import Verdict, conditions, transitions, unchanged

READY = "Ready"
DATA_PLANE_READY = "DataPlaneReady"  # the agent's
ENDPOINT_ACCEPTED = "EndpointAccepted"
ALLOWED_IPS_ACCEPTED = "AllowedIPsAccepted"
OWNED = (KEY_ACCEPTED, ENDPOINT_ACCEPTED, ALLOWED_IPS_ACCEPTED, READY)

# There are no Leases of agents yet: nobody notices that one has gone silent.
READY_MESSAGE = (
    "the node's agent reported that it takes part in the mesh; a node that is switched off is not noticed yet"
)

BY_KEY = "publicKey"
WITH_ALLOWED_IPS = "allowedIPs"
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
    """Writes the operator's conditions of one Peer. Run it with one worker: a key is judged in one place.

    Args:
        client: writes statuses.
        nodes: for the annotation.
        meshes: the Mesh, for its ranges.
        peers: all Peers, with the indexes of `add_indexes`.
        events: for Events on Peers.
    """

    def __init__(self, client: StatusWriter, nodes: Store, meshes: Store, peers: Store, events: EventRecorder) -> None:
        self._client = client
        self._nodes = nodes
        self._meshes = meshes
        self._peers = peers
        self._events = events
        self._owners = Owners()
        self._effective = EffectivePeers()

    async def reconcile(self, key: Key) -> Result:
        """Judge one Peer and write what has changed."""
        peer = self._peers.get(key)
        if peer is None or peer["metadata"].get("deletionTimestamp"):
            return Result()
        verdicts = self._judge(key, peer)
        wanted = conditions(peer, verdicts, now_iso())
        if unchanged(peer, wanted, OWNED):
            return Result()
        body = {"metadata": {"name": key[1]}, "status": {"conditions": wanted}}
        try:
            await self._client.apply_status(PEER, body, field_manager=FIELD_MANAGER_OPERATOR)
        except NotFound:
            return Result()
        for news in transitions(peer, verdicts):
            self._tell(peer, news)
        return Result()

    def _tell(self, peer: Object, news: Verdict) -> None:
        kind: Literal["Normal", "Warning"] = "Normal" if news.status == "True" else "Warning"
        self._events.event(peer, kind, news.reason, f"Judge{news.type}", news.message or news.type)

    def _judge(self, key: Key, peer: Object) -> list[Verdict]:
        parsed = parse_peer(peer)
        if isinstance(parsed, Problem):
            # Without KeyAccepted everybody leaves the Peer out.
            return [Verdict(READY, "False", parsed.reason, parsed.message[:_LONGEST_MESSAGE])]
        accepts = self._judge_key(peer)
        endpoint = judge_endpoint(self._nodes.get(key))
        networks = self._judge_networks(peer)
        ready = judge_ready(accepts, conditions_of(peer))
        return [verdict for verdict in (accepts, endpoint, networks, ready) if verdict is not None]

    def _judge_key(self, peer: Object) -> Verdict:
        key = status_of(peer).get("publicKey")
        if not key:
            return Verdict(KEY_ACCEPTED, "Unknown", "NoKey", "the node's agent has not published a key yet")
        owner = self._owners.of(key, self._peers.by_index(BY_KEY, key))
        return judge_key(peer, key, owner)

    def _judge_networks(self, peer: Object) -> Verdict | None:
        if not spec_of(peer).get("allowedIPs"):
            return None
        name = peer["metadata"]["name"]
        effective = self._effective.decide(self._meshes.get(MESH_KEY), self._peers.items().values())
        return judge_networks([p for p in effective.problems if p.peer == name and p.reason.startswith("AllowedIP")])


def judge_key(peer: Object, key: str, owner: Object | None) -> Verdict:
    """Return KeyAccepted: True with exactly the key as its message, or False with the owner's name."""
    if owner is None or _identity(owner) == _identity(peer):
        return Verdict(KEY_ACCEPTED, "True", "Accepted", key)
    message = f"the Peer {owner['metadata']['name']} had this public key first; this node needs a key of its own"
    return Verdict(KEY_ACCEPTED, "False", "DuplicateKey", message)


def judge_endpoint(node: Object | None) -> Verdict | None:
    """Return EndpointAccepted, or None when the Node has no annotation."""
    try:
        endpoint = annotated_endpoint(node) if node is not None else None
    except EndpointError as error:
        message = f"the annotation {ANNOTATION_ENDPOINT} is ignored: {error}"
        return Verdict(ENDPOINT_ACCEPTED, "False", "InvalidEndpoint", message)
    if endpoint is None:
        return None
    return Verdict(ENDPOINT_ACCEPTED, "True", "Accepted", f"others reach the node at {endpoint}")


def judge_networks(problems: list[Problem]) -> Verdict:
    """Return AllowedIPsAccepted for a Peer with allowedIPs."""
    if not problems:
        return Verdict(ALLOWED_IPS_ACCEPTED, "True", "Accepted", "all allowedIPs are in use")
    message = "left out: " + "; ".join(problem.message for problem in problems)
    return Verdict(ALLOWED_IPS_ACCEPTED, "False", problems[0].reason, message[:_LONGEST_MESSAGE])


def judge_ready(key: Verdict, present: list[dict[str, str]]) -> Verdict:
    """Return Ready: the key is accepted and the agent says that its data plane is."""
    if key.status != "True":
        return Verdict(READY, key.status, key.reason, key.message)
    if is_true(present, DATA_PLANE_READY):
        return Verdict(READY, "True", "Ready", READY_MESSAGE)
    found = find_condition(present, DATA_PLANE_READY)
    if found is None:
        return Verdict(READY, "Unknown", "AgentNotReporting", "the node's agent has not reported its data plane yet")
    status: Literal["False", "Unknown"] = "Unknown" if found.get("status") == "Unknown" else "False"
    return Verdict(READY, status, found.get("reason") or "DataPlaneNotReady", found.get("message") or "")


def accepted(peer: Object) -> str | None:
    """Return the key that KeyAccepted=True names."""
    found = find_condition(conditions_of(peer), KEY_ACCEPTED)
    return found.get("message") if found is not None and found.get("status") == "True" else None


def add_indexes(peers: Store) -> None:
    """Make the store of Peers ready for the reconciler and its mappers."""
    peers.add_index(BY_KEY, _keys_of)
    peers.add_index(WITH_ALLOWED_IPS, lambda peer: ["yes"] if spec_of(peer).get("allowedIPs") else [])


def peer_to_peers(peers: Store) -> Callable[[Event], set[Key]]:
    """Return a mapper: a Peer concerns itself, all that claim its key, and, by what it takes, all with allowedIPs."""

    def mapper(event: Event) -> set[Key]:
        objects = [obj for obj in (event.old, event.new) if obj is not None]
        related = [other for obj in objects for key in _keys_of(obj) for other in peers.by_index(BY_KEY, key)]
        if event.old is None or event.new is None or _networks(event.old) != _networks(event.new):
            related += peers.by_index(WITH_ALLOWED_IPS, "yes")
        return {event.key} | {("", other["metadata"]["name"]) for other in related}

    return mapper


def mesh_to_peers(peers: Store) -> Callable[[Event], list[Key]]:
    """Return a mapper: ranges and API servers that are new concern the Peers with allowedIPs."""

    def mapper(event: Event) -> list[Key]:
        if event.key != MESH_KEY or reservations(event.old) == reservations(event.new):
            return []
        return [("", peer["metadata"]["name"]) for peer in peers.by_index(WITH_ALLOWED_IPS, "yes")]

    return mapper


def _keys_of(peer: Object) -> list[str]:
    key = status_of(peer).get("publicKey")
    return [key] if key and isinstance(key, str) else []


def _networks(peer: Object) -> tuple[object, ...]:
    """Return what others may not announce because of this Peer."""
    spec = spec_of(peer)
    return spec.get("addresses"), spec.get("allowedIPs"), spec.get("endpoint"), status_of(peer).get("candidates")


def _identity(peer: Object) -> tuple[str, str]:
    return peer["metadata"]["name"], uid_of(peer)
