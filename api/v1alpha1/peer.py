# SPDX-License-Identifier: Apache-2.0
"""WireKubePeer: one node of the mesh. The operator makes it, the user adds to it, the node's agent reports in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Cidr, Conditions, HostPort, HostPrefix, IpPort, Metadata, Model, PublicKey, by_name

NatBehaviour = Literal["EndpointIndependent", "AddressDependent", "AddressAndPortDependent", "Unknown"]
CandidateType = Literal["manual", "host", "ipv6", "serverReflexive", "peerReflexive", "portMapped"]
MOST_NODE_ADDRESSES = 16
MOST_POD_CIDRS = 8
Count = Annotated[int, Field(ge=0)]


class PeerSpec(Model):
    """What the node's part in the mesh should be."""

    addresses: Annotated[tuple[HostPrefix, ...], Field(max_length=2)] = ()
    """Mesh addresses of the node, IPV4/32 and IPV6/128. Set by the operator."""
    endpoint: HostPort | None = None
    """Where others reach the node, before all that is discovered. Set by the operator from the Node's annotation wirekube.io/endpoint."""
    allowed_ips: Annotated[tuple[Cidr, ...], Field(alias="allowedIPs", max_length=64)] = ()
    """Further networks behind this node. One that overlaps the mesh, an address of another node of the mesh or of the API server, what a Node has, or what an older Peer has, is left out; the condition AllowedIPsAccepted says so."""
    node_addresses: Annotated[tuple[HostPrefix, ...], Field(max_length=MOST_NODE_ADDRESSES)] = ()
    """Private InternalIPs of the Node, when the Mesh's routing.nodeAddresses is internal. Set by the operator. What cannot go through the mesh is left out; the condition NodeAddressesAccepted says why."""
    pod_cidrs: Annotated[tuple[Cidr, ...], Field(alias="podCIDRs", max_length=MOST_POD_CIDRS)] = ()
    """Pod ranges of the Node, when the Mesh's routing.podCIDRs is true. Set by the operator. One that overlaps another Peer's, the mesh or an API server is left out; the condition PodCIDRsAccepted says so."""
    persistent_keepalive: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Seconds between keepalives that others send to this node, 0 for none. Absent: as NAT needs it."""


class Candidate(Model):
    """One address under which the node may be reached."""

    endpoint: IpPort
    """IP:PORT."""
    type: CandidateType
    """How the node learnt of it."""


class NatStatus(Model):
    """The NAT between the node and the internet, in the terms of RFC 4787."""

    mapping: NatBehaviour = "Unknown"
    """What decides the outside port of a packet."""
    filtering: NatBehaviour = "Unknown"
    """From where packets are let in."""
    udp: Literal["Open", "Blocked", "Unknown"] = "Unknown"
    """Whether UDP gets out and back at all."""
    summary: Annotated[str, Field(max_length=64)] = ""
    """The same in a few words."""


class PathCounts(Model):
    """How many other peers this node reaches, and how."""

    direct: Count = 0
    """Reached directly."""
    relayed: Count = 0
    """Reached through a relay."""
    unreachable: Count = 0
    """Not reached."""


class NotDirect(Model):
    """A peer that this node does not reach directly."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the other Peer."""
    path: Literal["Connecting", "Relayed", "Unreachable"]
    """How it is reached instead."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Why, as one CamelCase word."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, for people."""


class PeerStatus(Model):
    """What the node's agent reports, and the operator's verdict on it."""

    public_key: PublicKey | None = None
    """WireGuard public key of the node, in base64."""
    listen_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """UDP port that WireGuard listens on."""
    endpoint: IpPort | None = None
    """The best address under which the node may be reached, IP:PORT."""
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=8)] = ()
    """All addresses under which the node may be reached, best first."""
    nat: NatStatus | None = None
    """The NAT in front of the node."""
    relay: Annotated[str, Field(max_length=260)] | None = None
    """Name of the relay that the node is connected to."""
    peers: PathCounts | None = None
    """How many other peers the node reaches, and how."""
    not_direct: Annotated[tuple[NotDirect, ...], Field(max_length=16, json_schema_extra=by_name())] = ()
    """Peers that are not reached directly, at most 16 of them, with the reason."""
    conditions: Conditions = ()
    """Ready and those that end in Accepted are the operator's, the others the agent's."""


class WireKubePeer(Model):
    """A node of the mesh. The operator makes one for each Node with the label wirekube.io/vpn-enabled=true."""

    metadata: Metadata
    spec: PeerSpec = PeerSpec()
    status: PeerStatus = PeerStatus()
