# SPDX-License-Identifier: Apache-2.0
"""What the agent says about its node: the Peer's status for everybody, and each pair for who asks this node. Pure.

Status carries transitions and rounded facts only: N agents watch N Peers. RTTs and counters go to metrics and to the
local API.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..api.v1alpha1 import NatStatus
from ..runtime.conditions import find_condition, set_condition
from .facts import MeshFacts, OwnFacts, PeerFacts
from .keys import NodeKey
from .localapi import NodeReport, PairReport
from .nat.report import NatReport, Udp
from .paths.candidates import Candidate, Kind
from .paths.model import Mode, PathView, State
from .plan import virtual_endpoint
from .wireguard.device import PeerStats

Conditions = list[dict[str, Any]]

MAX_NOT_DIRECT = 16
DATA_PLANE_READY = "DataPlaneReady"
ENDPOINT_DISCOVERED = "EndpointDiscovered"
RELAY_CONNECTED = "RelayConnected"
KEY_PERSISTED = "KeyPersisted"
PEERS_REACHABLE = "PeersReachable"
NODE_NETWORKS_ROUTED = "NodeNetworksRouted"
_WORST_FIRST = (State.UNREACHABLE, State.CONNECTING, State.RELAYED)
_HOW = {
    Kind.MANUAL: ("Annotation", "the Node's annotation says so"),
    Kind.SERVER_REFLEXIVE: ("STUN", "STUN servers see it there"),
    Kind.HOST: ("HostAddress", "it is an address of the host"),
}


@dataclass(frozen=True)
class RelayView:
    """The relay session: the relay's name while it stands, else why there is none."""

    name: str | None = None
    reason: str = "the relay session is not up yet"
    trusted_at_first_sight: bool = False


@dataclass(frozen=True)
class NodeView:
    """All that is known about this node at one moment.

    Attributes:
        node: the Node's name.
        phase: in a word, for people: Starting, Waiting, Idle, Cached, Running, Offline, Failing (see `core`).
        key: ours, once there is one.
        mesh: None while there is no Mesh.
        own: our Peer, None while there is none.
        interface: its name while it exists.
        backend: `kernel` or `userspace`.
        ipv4_only: the host has no IPv6, so neither has the node in the mesh.
        server: URL of the API server.
        nat: as measured.
        candidates: as published, best first.
        relay: the session.
        peers: other nodes.
        paths: what the machine shows of each.
        ports: virtual port of each key.
        stats: WireGuard's counters of each key.
        problem: (reason, message) why the data plane is not ready.
        refused: what the host refused while the rest works.
        left_out: networks of other Nodes that this host cannot have, with the reason.
    """

    node: str
    phase: str
    key: NodeKey | None = None
    mesh: MeshFacts | None = None
    own: OwnFacts | None = None
    interface: str | None = None
    backend: str | None = None
    ipv4_only: bool = False
    server: str | None = None
    nat: NatReport = field(default_factory=NatReport)
    candidates: tuple[Candidate, ...] = ()
    relay: RelayView = field(default_factory=RelayView)
    peers: tuple[PeerFacts, ...] = ()
    paths: Mapping[str, PathView] = field(default_factory=dict)
    ports: Mapping[bytes, int] = field(default_factory=dict)
    stats: Mapping[bytes, PeerStats] = field(default_factory=dict)
    problem: tuple[str, str] | None = ("Starting", "the agent has just started")
    refused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def counts(paths: Mapping[str, PathView]) -> dict[str, int]:
    """Count pairs by how they are reached; one that is still connecting is not reached yet."""
    states = [view.state for view in paths.values()]
    return {
        "direct": states.count(State.DIRECT),
        "relayed": states.count(State.RELAYED),
        "unreachable": len(states) - states.count(State.DIRECT) - states.count(State.RELAYED),
    }


def status(view: NodeView, old: Iterable[dict[str, Any]], generation: int, now_iso: str) -> dict[str, Any]:
    """Return the status that our field manager applies: the full set of what it owns.

    Args:
        view: this node.
        old: conditions of our Peer now, whose times of transition stay where the status does.
        generation: of our Peer.
        now_iso: RFC 3339.
    """
    fields: dict[str, Any] = {
        "publicKey": base64.b64encode(view.key.public).decode() if view.key else None,
        "listenPort": view.mesh.listen_port if view.mesh else None,
        "endpoint": str(view.candidates[0].endpoint) if view.candidates else None,
        "candidates": [{"endpoint": str(each.endpoint), "type": each.kind.value} for each in view.candidates],
        "nat": nat_status(view.nat),
        "relay": view.relay.name,
        "peers": counts(view.paths),
        "notDirect": not_direct(view.paths),
        "conditions": conditions(view, list(old), generation, now_iso),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def nat_status(nat: NatReport) -> dict[str, Any]:
    """Return the NAT as the API has it."""
    model = NatStatus(
        mapping=nat.mapping.value, filtering=nat.filtering.value, udp=nat.udp.value, summary=nat.summary()
    )
    return model.model_dump(by_alias=True)


def not_direct(paths: Mapping[str, PathView]) -> list[dict[str, str]]:
    """Return the pairs that are not direct, the worst first, at most 16."""
    bad = [(name, view) for name, view in paths.items() if view.state is not State.DIRECT]
    bad.sort(key=lambda item: (_WORST_FIRST.index(item[1].state), item[0]))
    return [
        {"name": name, "path": view.state.value, "reason": view.reason, "message": view.message[:1024]}
        for name, view in bad[:MAX_NOT_DIRECT]
    ]


def conditions(view: NodeView, old: Conditions, generation: int, now_iso: str) -> Conditions:
    """Return all conditions of the agent."""
    result: Conditions = []
    for kind, state, reason, message in (
        (DATA_PLANE_READY, *_data_plane(view)),
        (ENDPOINT_DISCOVERED, *_endpoint(view)),
        (RELAY_CONNECTED, *_relay(view)),
        (PEERS_REACHABLE, *_reachable(view)),
        (KEY_PERSISTED, *_key(view)),
        *((NODE_NETWORKS_ROUTED, *each) for each in _node_networks(view)),
    ):
        known = find_condition(old, kind)
        result += set_condition([known] if known else [], kind, state, reason, message, generation, now_iso)
    return result


Verdict = tuple[str, str, str]


def _data_plane(view: NodeView) -> Verdict:
    if view.problem is not None:
        return ("Unknown" if view.problem[0] == "Starting" else "False", *view.problem)
    if view.refused:
        return "True", "PartlyRefused", "; ".join(view.refused)[:1024]
    port = view.mesh.listen_port if view.mesh else 0
    said = f"{view.interface} is up ({view.backend} WireGuard), UDP port {port}"
    if view.ipv4_only:
        return "True", "UpWithoutIPv6", f"{said}; IPv4 only, for IPv6 is switched off here (sysctl disable_ipv6)"
    return "True", "Up", said


def _endpoint(view: NodeView) -> Verdict:
    if view.candidates and view.candidates[0].kind is Kind.MANUAL:
        return "True", "Annotation", _at(view)
    if view.nat.udp is Udp.BLOCKED:
        return "False", "UDPBlocked", "no STUN server answers: this network blocks UDP; the node is reached by relay"
    if view.nat.symmetric:
        message = "the NAT gives each destination another port; a peer behind an open or public address, or a relay, reaches this node"
        return "False", "SymmetricNAT", message
    if view.candidates:
        return "True", _HOW[view.candidates[0].kind][0], _at(view)
    return "Unknown", "NotMeasured", "no address is known yet"


def _at(view: NodeView) -> str:
    best = view.candidates[0]
    return f"others reach this node at {best.endpoint}: {_HOW[best.kind][1]}; NAT: {view.nat.summary()}"


def _relay(view: NodeView) -> Verdict:
    if view.mesh is not None and view.mesh.policy.mode is Mode.NEVER:
        return "False", "RelayModeNever", "the Mesh's relay.mode is never"
    if view.mesh is not None and not view.mesh.relays:
        return "False", "NotConfigured", "the Mesh names no relay"
    if view.relay.name is None:
        return "False", "NotConnected", view.relay.reason
    if view.relay.trusted_at_first_sight:
        message = f"connected to {view.relay.name}, whose key was taken at first sight: set relay.external.publicKey"
        return "True", "KeyTrustedAtFirstSight", message
    return "True", "Connected", f"connected to {view.relay.name}"


def _reachable(view: NodeView) -> Verdict:
    states = {name: pair.state for name, pair in view.paths.items()}
    if not states:
        return "Unknown", "NoPeers", "there is no other node with a key yet"
    lost = sorted(name for name, state in states.items() if state is State.UNREACHABLE)
    if lost:
        return "False", "SomeUnreachable", f"not reached: {', '.join(lost[:8])}{' and others' if len(lost) > 8 else ''}"
    if State.CONNECTING in states.values():
        return "Unknown", "Connecting", "some pairs are still looking for a path"
    return "True", "AllReached", "every other node is reached, directly or by relay"


def _node_networks(view: NodeView) -> tuple[Verdict, ...]:
    """Return nothing where the Mesh asks for none."""
    if view.left_out:
        lines = "; ".join(view.left_out)
        return (("False", "NeededByThisHost", f"not through the mesh on this host: {lines}"[:1024]),)
    if any(peer.preferred for peer in view.peers):
        return (("True", "Routed", "other Nodes' addresses or pods are reached through the mesh"),)
    return ()


def _key(view: NodeView) -> Verdict:
    if view.key is None:
        return "Unknown", "NoKey", "there is no key yet"
    if view.key.problem is not None:
        return (
            "False",
            "NotWritable",
            f"the private key could not be saved and is lost at a restart: {view.key.problem}",
        )
    return "True", "Saved", "the private key is on this node's disk"


def node_report(view: NodeView, now: float, wall: float) -> NodeReport:
    """Return this node and all its pairs for the local API.

    Args:
        view: this node.
        now: the path machine's clock.
        wall: Unix time, for handshake ages.
    """
    return NodeReport(
        node=view.node,
        phase=view.phase,
        publicKey=base64.b64encode(view.key.public).decode() if view.key else None,
        addresses=view.own.addresses if view.own else (),
        interface=view.interface,
        backend=view.backend,
        listenPort=view.mesh.listen_port if view.mesh else None,
        nat=view.nat.summary(),
        relay=view.relay.name,
        apiServer=view.server,
        peers=tuple(pair_report(view, peer, now, wall) for peer in view.peers if peer.name in view.paths),
    )


def pair_report(view: NodeView, peer: PeerFacts, now: float, wall: float) -> PairReport:
    """Return one pair."""
    path, stats = view.paths[peer.name], view.stats.get(peer.key)
    port = view.ports.get(peer.key)
    shake = stats.last_handshake if stats else 0.0
    return PairReport(
        name=peer.name,
        publicKey=base64.b64encode(peer.key).decode(),
        addresses=peer.addresses,
        allowedIPs=tuple(sorted(map(str, peer.networks))),
        state=path.state.value,
        leg="direct" if path.direct else "relay",
        endpoint=str(path.direct) if path.direct else view.relay.name,
        virtualEndpoint=str(virtual_endpoint(port)) if port else None,
        accepted=tuple(sorted(map(str, path.accept))),
        rttMs=round(path.rtt * 1000, 2) if path.rtt is not None else None,
        reason=path.reason,
        message=path.message,
        sinceSeconds=round(now - path.since, 1),
        lastHandshakeSecondsAgo=round(max(0.0, wall - shake), 1) if shake else None,
        rxBytes=stats.rx_bytes if stats else 0,
        txBytes=stats.tx_bytes if stats else 0,
    )


def now_iso() -> str:
    """Return the time as the API has it: whole seconds, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
