# SPDX-License-Identifier: Apache-2.0
"""What the operator reads out of Nodes: membership, the manual endpoint, networks that are taken. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from ..api.constants import ANNOTATION_ENDPOINT, LABEL_VPN_ENABLED
from ..api.v1alpha1.base import HOST_PORT
from ..runtime.objects import Object
from ..wire.endpoint import Endpoint
from .kinds import spec_of, status_of

Network = IPv4Network | IPv6Network

_HOST_PORT = re.compile(HOST_PORT)
_ONLY_NUMBERS = re.compile(r"[0-9.]+")
_LONGEST = 260


class EndpointError(ValueError):
    """The annotation names no usable endpoint; the message is for people."""


def wants_mesh(node: Object | None) -> bool:
    """Whether the Node exists, is not going away and carries the label."""
    if node is None or node["metadata"].get("deletionTimestamp"):
        return False
    return (node["metadata"].get("labels") or {}).get(LABEL_VPN_ENABLED) == "true"


def annotated_endpoint(node: Object) -> str | None:
    """Return the endpoint of the annotation, IP:PORT or HOST:PORT; None when there is no annotation.

    Raises:
        EndpointError: it is malformed, or an address that nobody else can reach.
    """
    text = (node["metadata"].get("annotations") or {}).get(ANNOTATION_ENDPOINT)
    if text is None:
        return None
    if len(text) > _LONGEST or not _HOST_PORT.fullmatch(text):
        raise EndpointError(f"{text[:80]!r} is not IP:PORT (an IPv6 address stands in brackets), port 1 to 65535")
    host = text.rpartition(":")[0]
    if host.startswith("[") or _ONLY_NUMBERS.fullmatch(host):
        return str(_reachable(text))
    return str(text)


def _reachable(text: str) -> Endpoint:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError as error:
        raise EndpointError(str(error)) from error
    ip = endpoint.ip
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise EndpointError(f"{ip} is no address that other nodes can reach")
    return endpoint


def node_networks(nodes: Iterable[Object]) -> Iterator[Network]:
    """Yield the addresses and pod ranges of Nodes; what cannot be read is skipped."""
    nodes = list(nodes)
    yield from networks([*node_addresses(nodes), *pod_ranges(nodes)])


def node_addresses(nodes: Iterable[Object]) -> Iterator[str]:
    """Yield the addresses of Nodes, host names among them."""
    for node in nodes:
        yield from (entry.get("address") or "" for entry in status_of(node).get("addresses") or [])


def pod_ranges(nodes: Iterable[Object]) -> Iterator[str]:
    """Yield the pod ranges of Nodes."""
    for node in nodes:
        spec = spec_of(node)
        yield from spec.get("podCIDRs") or [spec.get("podCIDR") or ""]


def service_networks(cidrs: Iterable[Object], service: Object | None) -> Iterator[Network]:
    """Yield the Service ranges, and the addresses of the Service `kubernetes`, which lies in one."""
    for cidr in cidrs:
        yield from networks(spec_of(cidr).get("cidrs") or [])
    if service is not None:
        yield from networks(spec_of(service).get("clusterIPs") or [])


def networks(texts: Iterable[Any]) -> Iterator[Network]:
    """Yield the texts that are networks or addresses; host names, which Nodes have among their addresses, are not."""
    for text in texts:
        try:
            yield ip_network(text, strict=False)
        except ValueError:
            continue
