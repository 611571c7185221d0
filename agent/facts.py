# SPDX-License-Identifier: Apache-2.0
"""What the agent acts on, read out of the API's objects: plain values, no optional layers.

One malformed object harms itself alone: it is left out and named with its problem.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from pydantic import ValidationError

from ..api.constants import DEFAULT_KEEPALIVE
from ..api.effective import EffectivePeer, EffectivePeers
from ..api.reading import Address, Object, Problem, Reading, explain, parse_peer
from ..api.v1alpha1 import RelayStatus, WireKubeMesh
from ..wire.endpoint import Endpoint, IPAddress
from .paths.model import Mode, NatFacts, Policy

Network = IPv4Network | IPv6Network
MOST_REPLICAS = 16  # sessions of an agent with one relay, whatever the Mesh says


@dataclass(frozen=True)
class RelayFacts:
    """One relay.

    Attributes:
        name: `host:port`, or the name of a managed relay that has plain addresses.
        endpoints: that the operator resolved.
        public_key: its static key if the Mesh names one.
        replicas: relay processes behind these endpoints, 1 to MOST_REPLICAS.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    public_key: bytes | None
    replicas: int = 1


@dataclass(frozen=True)
class MeshFacts:
    """The Mesh as an agent needs it.

    Attributes:
        listen_port: WireGuard's port.
        interface: name of the WireGuard interface.
        mtu: of the interface.
        stun_servers: HOST:PORT, as configured.
        policy: when packets are relayed.
        relays: which relays may be used; empty when the mode is `never` or there is none.
        ranges: of mesh addresses, Services and pods; no underlay address lies in them.
    """

    listen_port: int
    interface: str
    mtu: int
    stun_servers: tuple[str, ...]
    policy: Policy
    relays: tuple[RelayFacts, ...]
    ranges: tuple[Network, ...]


@dataclass(frozen=True)
class OwnFacts:
    """Our own Peer.

    Attributes:
        name: of the Node and the Peer.
        uid: of the Peer object: one that was made anew has another.
        addresses: mesh addresses, IPV4/32 and IPV6/128.
        endpoint: what the Node's annotation says, HOST:PORT.
        networks: all that others reach through this node, its addresses included; none while nobody knows its key.
    """

    name: str
    uid: str
    addresses: tuple[str, ...]
    endpoint: str | None
    networks: frozenset[Network] = frozenset()


@dataclass(frozen=True)
class PeerFacts:
    """Another node.

    Attributes:
        name: of the Node and the Peer.
        key: WireGuard public key, 32 bytes.
        addresses: its mesh addresses.
        networks: everything that is reached through it, its own addresses included.
        endpoint: what its Node's annotation says, when that is an address; tried before the candidates. A name is
            resolved by the node itself, which publishes what it finds.
        candidates: where it says that it may be reached, best first.
        hosts: those of them that are addresses of its host.
        nat: what stands before it.
        keepalive: seconds; None leaves it to the agent.
        preferred: those of the networks that go through the mesh whatever other way the host knows.
    """

    name: str
    key: bytes
    addresses: tuple[str, ...]
    networks: frozenset[Network]
    endpoint: Endpoint | None
    candidates: tuple[Endpoint, ...]
    hosts: tuple[IPAddress, ...]
    nat: NatFacts
    keepalive: int | None = None
    preferred: frozenset[Network] = frozenset()


def parse_mesh(mesh: Object) -> MeshFacts | Problem:
    """Read the Mesh; a malformed one becomes a problem that says where."""
    try:
        parsed = WireKubeMesh.model_validate(mesh)
    except ValidationError as error:
        return Problem("", "Malformed", explain(error))
    spec = parsed.spec
    policy = Policy(
        Mode(spec.relay.mode),
        float(spec.relay.handshake_timeout_seconds),
        float(spec.relay.direct_retry_interval_seconds),
    )
    return MeshFacts(
        listen_port=spec.listen_port,
        interface=spec.interface_name,
        mtu=spec.mtu,
        stun_servers=spec.stun_servers,
        policy=policy,
        relays=() if policy.mode is Mode.NEVER else tuple(map(_relay, parsed.status.relays)),
        ranges=tuple(ip_network(text) for text in (*parsed.status.mesh_cidrs, *parsed.status.cluster_cidrs)),
    )


def parse_own(peer: Object) -> OwnFacts | Problem:
    """Read our own Peer."""
    parsed = parse_peer(peer)
    if isinstance(parsed, Problem):
        return parsed
    return OwnFacts(parsed.metadata.name, parsed.metadata.uid, parsed.spec.addresses, parsed.spec.endpoint)


class PeerFactsReader:
    """Reads all other Peers by the rule that the operator and every agent share; what has not changed is not read again.

    Args:
        own: name of our own.

    Attributes:
        networks: our own Peer's, as the others have them.
    """

    def __init__(self, own: str) -> None:
        self.networks: frozenset[Network] = frozenset()
        self._own, self._effective = own, EffectivePeers(unjudged=True)
        self._known: dict[str, tuple[EffectivePeer, PeerFacts]] = {}

    def read(
        self, mesh: Object | None, peers: Iterable[Object], servers: Iterable[Address] = ()
    ) -> tuple[tuple[PeerFacts, ...], tuple[Problem, ...]]:
        """Return the facts, the very same as before for a Peer that stayed as it was, and what was left out.

        Args:
            mesh: the Mesh.
            peers: all Peers, our own among them: what it claims nobody else may have. They must not be changed afterwards.
            servers: addresses of the API servers that we are connected to.
        """
        effective = self._effective.decide(mesh, peers, servers)
        before, self._known, self.networks = self._known, {}, frozenset()
        for each in effective.peers:
            if each.name == self._own:
                self.networks = each.networks
            else:
                known = before.get(each.name)
                self._known[each.name] = known if known is not None and _same(known[0], each) else (each, _peer(each))
        return tuple(facts for _, facts in self._known.values()), effective.problems


def _same(one: EffectivePeer, other: EffectivePeer) -> bool:
    same = (one.addresses, one.networks, one.preferred) == (other.addresses, other.networks, other.preferred)
    return one.reading is other.reading and same


def nat_facts(reading: Reading) -> NatFacts:
    """Return what a peer's published NAT and candidates say about meeting it."""
    nat = reading.nat
    if nat is None:
        return NatFacts()
    reflexive = (endpoint for kind, endpoint in reading.candidates if kind == "serverReflexive")
    return NatFacts(
        udp_blocked=nat.udp == "Blocked",
        symmetric=nat.mapping in ("AddressDependent", "AddressAndPortDependent"),
        port_restricted=nat.filtering == "AddressAndPortDependent",
        public=nat.summary == "None",
        addresses=frozenset(str(each.ip) for text in reflexive if (each := _literal(text)) is not None),
    )


def keepalive_of(peer: PeerFacts) -> int:
    """Return the seconds between keepalives on a direct path to the peer."""
    return DEFAULT_KEEPALIVE if peer.keepalive is None else peer.keepalive


def _relay(relay: RelayStatus) -> RelayFacts:
    endpoints = tuple(each for text in relay.endpoints if (each := _literal(text)) is not None)
    key = base64.b64decode(relay.public_key) if relay.public_key else None
    return RelayFacts(relay.name, endpoints, key, min(MOST_REPLICAS, max(1, relay.ready_replicas or 1)))


def _peer(effective: EffectivePeer) -> PeerFacts:
    reading = effective.reading
    parsed = ((kind, _literal(endpoint)) for kind, endpoint in reading.candidates)
    listed = [(kind, endpoint) for kind, endpoint in parsed if endpoint is not None]
    return PeerFacts(
        name=effective.name,
        key=effective.public_key,
        addresses=tuple(map(str, effective.addresses)),
        networks=effective.networks,
        endpoint=_literal(reading.endpoint),
        candidates=tuple(endpoint for _, endpoint in listed),
        hosts=tuple(endpoint.ip for kind, endpoint in listed if kind == "host"),
        nat=nat_facts(reading),
        keepalive=reading.keepalive,
        preferred=effective.preferred,
    )


def _literal(text: str | None) -> Endpoint | None:
    """Read an address; None for a name, and for what passes the CRD's pattern and is no IPv6 address all the same."""
    try:
        return Endpoint.parse(text) if text else None
    except ValueError:
        return None
