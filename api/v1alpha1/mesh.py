# SPDX-License-Identifier: Apache-2.0
"""WireKubeMesh: the settings of the one mesh of a cluster, and what the operator made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ..constants import DEFAULT_INTERFACE, DEFAULT_LISTEN_PORT, DEFAULT_MTU
from .base import (
    Cidr,
    Conditions,
    HostPort,
    IpAddress,
    IpPort,
    Metadata,
    Model,
    NetworkCidr,
    Port,
    PublicKey,
    Quantity,
    by_name,
    rule,
    rules,
)

MOST_CLUSTER_CIDRS = 32
MOST_API_SERVERS = 16
INTERFACE = "^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$"
_STUN_RULES = rules(
    ("size(self) != 1", "give at least two STUN servers or none: one alone cannot tell a symmetric NAT from others"),
    ("self.all(a, self.exists_one(b, a == b))", "each STUN server may stand in the list once"),
)
_RELAY_RULES = rules(
    (
        "!has(self.provider) || self.provider != 'external' || has(self.external)",
        "provider is external, so relay.external.endpoint must say where the relay is",
    ),
    (
        "!has(self.mode) || self.mode != 'always' || has(self.provider)",
        "mode is always, so relay.provider must say which relay: external or managed",
    ),
)


class ExternalRelay(Model):
    """A relay that somebody runs outside the cluster."""

    endpoint: HostPort
    """Where agents reach the relay, HOST:PORT. The operator resolves the name and publishes the addresses."""
    transport: Literal["tcp"] = "tcp"
    """How agents talk to the relay."""
    public_key: PublicKey | None = None
    """The relay's public key in base64, which wirekube-relay prints when it starts. Without it agents take the key that the relay shows."""


class ResourceAmounts(Model):
    """Amounts of CPU and memory; what is absent is not said to Kubernetes."""

    cpu: Quantity | None = None
    """CPUs, for example 50m or 2."""
    memory: Quantity | None = None
    """Bytes, for example 64Mi."""


class Resources(Model):
    """What a container asks for and may use, as in Kubernetes."""

    requests: ResourceAmounts | None = None
    """What the scheduler sets aside."""
    limits: ResourceAmounts | None = None
    """The most that the container may use."""


class ManagedRelay(Model):
    """A relay that the operator runs in the cluster behind a Service."""

    replicas: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of relay pods."""
    service_type: Literal["LoadBalancer", "NodePort", "ClusterIP"] = "LoadBalancer"
    """Type of the relay's Service. ClusterIP needs externalIPs on the Service."""
    port: Port = 3478
    """Port of the relay's Service."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the relay's pods. Absent: that of the operator, so that they are upgraded together."""
    resources: Resources | None = None
    """Resources of a relay's container. Absent: requests of 50m CPU and 64Mi, a limit of 512Mi."""


class RelaySpec(Model):
    """When and through what packets are relayed."""

    model_config = ConfigDict(json_schema_extra=_RELAY_RULES)

    mode: Literal["auto", "always", "never"] = "auto"
    """auto: direct where possible, relayed where not. always: only relayed. never: only direct."""
    provider: Literal["external", "managed"] | None = None
    """external: the relay at external.endpoint. managed: relays that the operator runs in the cluster. Absent: no relay."""
    handshake_timeout_seconds: Annotated[int, Field(ge=5, le=300)] = 30
    """Seconds without a direct connection until a peer is relayed."""
    direct_retry_interval_seconds: Annotated[int, Field(ge=5, le=3600)] = 120
    """Longest pause, in seconds, between attempts to reach a relayed peer directly."""
    external: ExternalRelay | None = None
    """The relay of the provider external."""
    managed: ManagedRelay | None = None
    """Settings of the provider managed."""


class RoutingSpec(Model):
    """What goes through the mesh besides the mesh addresses and the allowedIPs of Peers."""

    node_addresses: Literal["mesh", "internal"] = "mesh"
    """mesh: nodes reach each other at mesh addresses. internal: also at the private InternalIPs of their Nodes, so that kubectl logs and exec and an unchanged CNI work across NATs."""
    pod_cidrs: Annotated[bool, Field(alias="podCIDRs")] = False
    """Whether the pod ranges of the Nodes go through the mesh, for CNIs that route pods plainly through the Nodes' addresses. An overlay CNI needs nodeAddresses alone."""
    exclude_cidrs: Annotated[tuple[Cidr, ...], Field(alias="excludeCIDRs", max_length=64)] = ()
    """Networks that never go through the mesh: an allowedIP, a Node's address or a pod range that overlaps one is left out as a whole, and a condition of its Peer says so."""


class MeshSpec(Model):
    """What the mesh should be."""

    listen_port: Port = DEFAULT_LISTEN_PORT
    """UDP port of WireGuard on every node."""
    interface_name: Annotated[
        str,
        Field(
            pattern=INTERFACE,
            max_length=15,
            json_schema_extra=rule(
                f"self.matches('{INTERFACE}')", "a letter, then letters, digits, '_', '.' or '-', at most 15 in all"
            ),
        ),
    ] = DEFAULT_INTERFACE
    """Name of the WireGuard interface, at most 15 characters (the kernel's limit)."""
    mtu: Annotated[int, Field(ge=1280, le=9000)] = DEFAULT_MTU
    """MTU of the interface. 1420 leaves room for WireGuard in packets of 1500 bytes."""
    stun_servers: Annotated[tuple[HostPort, ...], Field(max_length=8, json_schema_extra=_STUN_RULES)] = ()
    """STUN servers, HOST:PORT: none, or two to eight. Two are needed to recognise a symmetric NAT."""
    relay: RelaySpec = RelaySpec()
    """When and through what packets are relayed."""
    routing: RoutingSpec = RoutingSpec()
    """What goes through the mesh besides the mesh addresses and the allowedIPs of Peers."""
    mesh_cidr: Annotated[NetworkCidr | None, Field(alias="meshCIDR")] = None
    """IPv4 range of the mesh addresses. Absent: the operator picks one that overlaps nothing it sees, once."""
    mesh_cidr6: Annotated[NetworkCidr | None, Field(alias="meshCIDR6")] = None
    """IPv6 range of the mesh addresses. Absent: a unique local /48 made from the UID of this object."""


class RelayStatus(Model):
    """A relay as agents reach it."""

    name: Annotated[str, Field(max_length=260)]
    """HOST:PORT as configured, or of the load balancer; a managed relay whose Service has plain addresses is called wirekube-relay."""
    endpoints: Annotated[tuple[IpPort, ...], Field(max_length=16)] = ()
    """IP:PORT of the relay, resolved by the operator."""
    public_key: PublicKey | None = None
    """The relay's public key in base64, when the Mesh names one or the relay is managed."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Relay pods that are ready; absent for an external relay."""


class MeshStatus(Model):
    """What the operator made of the Mesh."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    peers: int = 0
    """Number of Peers."""
    ready_peers: int = 0
    """Number of Peers whose condition Ready is True."""
    mesh_cidrs: Annotated[tuple[NetworkCidr, ...], Field(alias="meshCIDRs", max_length=2)] = ()
    """The ranges of mesh addresses in force."""
    cluster_cidrs: Annotated[tuple[NetworkCidr, ...], Field(alias="clusterCIDRs", max_length=MOST_CLUSTER_CIDRS)] = ()
    """Service ranges and, summed up, the Nodes' pod ranges: no node is reached at an address there."""
    api_servers: Annotated[tuple[IpAddress, ...], Field(max_length=MOST_API_SERVERS)] = ()
    """Addresses behind the Service kubernetes. No Peer's allowedIPs may cover them: kubelets reach the API server without the mesh."""
    relays: Annotated[tuple[RelayStatus, ...], Field(max_length=16, json_schema_extra=by_name())] = ()
    """The relays that agents may use."""
    conditions: Conditions = ()
    """AddressesReady, RelayReady, AgentsReporting, Ready."""


class WireKubeMesh(Model):
    """The settings of the WireGuard mesh. A cluster has one, named `default`."""

    metadata: Metadata
    spec: MeshSpec = MeshSpec()
    status: MeshStatus = MeshStatus()
