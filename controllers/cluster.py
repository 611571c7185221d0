# SPDX-License-Identifier: Apache-2.0
"""The cluster's own networks: pod ranges, Service ranges, where its API servers are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from ..api.addresses import Network, summarise
from ..api.v1alpha1.mesh import MOST_API_SERVERS, MOST_CLUSTER_CIDRS
from ..runtime.errors import NotFound
from ..runtime.objects import Kind, Object
from ..runtime.store import Store
from .kinds import ENDPOINT_SLICE, SERVICE, SERVICE_CIDR, spec_of
from .nodes import networks, node_addresses, pod_ranges, service_networks

Address = IPv4Address | IPv6Address

REFRESH = 300.0  # seconds; the addresses of API servers and Service ranges change when somebody rebuilds the cluster
_MOST_RANGES = 8  # of Services, and of pods, in each family


class Reader(Protocol):
    """The part of a client that is used here."""

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """See `Verbs.get`."""

    async def list(self, kind: Kind) -> tuple[list[Object], str]:
        """See `Verbs.list`."""


@dataclass(frozen=True)
class Services:
    """What is read now and then.

    Attributes:
        ranges: Service ranges; on a server without ServiceCIDR objects the address of the Service `kubernetes`.
        api_servers: addresses behind that Service, sorted.
        api_ports: TCP ports of the API server, of the Service and behind it, sorted.
    """

    ranges: tuple[Network, ...]
    api_servers: tuple[str, ...]
    api_ports: tuple[int, ...] = ()


class ClusterNetworks:
    """Reads the cluster's networks, and keeps what it has read for a while.

    Args:
        client: reads ServiceCIDRs, and Service and EndpointSlice `kubernetes`.
        clock: monotonic seconds.
    """

    def __init__(self, client: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._services: Services | None = None
        self._due = float("-inf")
        self._pods: tuple[Network, ...] | None = None

    async def services(self) -> Services:
        """Return Service ranges and API servers, at most 5 minutes old.

        Raises:
            ApiError: they cannot be read.
        """
        if self._services is None or self._due <= self._clock():
            cidrs = await self._cidrs()
            service = await self._kubernetes(SERVICE)
            slices = await self._kubernetes(ENDPOINT_SLICE)
            self._services = Services(
                tuple(service_networks(cidrs, service)), endpoint_addresses(slices), tcp_ports(service, slices)
            )
            self._due = self._clock() + REFRESH
        return self._services

    def nodes_changed(self) -> None:
        """Sum up the Nodes' networks anew when they are asked for."""
        self._pods = None

    def cidrs(self, nodes: Store, services: Services) -> list[str]:
        """Return Service and pod ranges as status.clusterCIDRs has them; Nodes are summed up only after `nodes_changed`."""
        if self._pods is None:
            found = list(nodes.items().values())
            avoid = [network.network_address for network in networks(node_addresses(found))]
            self._pods = summarise(networks(pod_ranges(found)), avoid, _MOST_RANGES)
        ranges = dict.fromkeys([*summarise(services.ranges, (), _MOST_RANGES), *self._pods])
        return [str(network) for network in ranges][:MOST_CLUSTER_CIDRS]

    async def _cidrs(self) -> list[Object]:
        try:
            return (await self._client.list(SERVICE_CIDR))[0]
        except NotFound:
            return []

    async def _kubernetes(self, kind: Kind) -> Object | None:
        try:
            return await self._client.get(kind, "kubernetes", "default")
        except NotFound:
            return None


def endpoint_addresses(found: Object | None) -> tuple[str, ...]:
    """Return the addresses in an EndpointSlice, sorted; what cannot be read is skipped."""
    entries = found.get("endpoints") if found is not None else None
    listed = [each.get("addresses") for each in entries or [] if isinstance(each, dict)]
    parsed = {ip for texts in listed if isinstance(texts, list) for text in texts if (ip := _address(text)) is not None}
    return tuple(str(ip) for ip in sorted(parsed, key=lambda ip: (ip.version, int(ip)))[:MOST_API_SERVERS])


def tcp_ports(service: Object | None, slices: Object | None) -> tuple[int, ...]:
    """Return the TCP ports of a Service and of the EndpointSlice behind it; 443 without a Service."""
    listed = (spec_of(service or {}).get("ports"), (slices or {}).get("ports"))
    entries = [each for part in listed if isinstance(part, list) for each in part if isinstance(each, dict)]
    found = {each.get("port") for each in entries if each.get("protocol", "TCP") == "TCP"}
    return tuple(sorted({port for port in found if isinstance(port, int)} | (set() if service else {443})))


def _address(text: object) -> Address | None:
    try:
        return ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None
