# SPDX-License-Identifier: Apache-2.0
"""Where agents reach the relays of the cluster, from what the cluster says. Pure.

In this order, and the first that gives anything wins: the Service's externalIPs; what a load balancer has put into its
status; the nodes that a ready relay runs on, at the Service's node port. Never a ClusterIP or a name of cluster DNS: nodes
behind NAT would need the mesh to reach the relay that the mesh needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ...runtime.objects import Object
from ...wire.endpoint import Endpoint
from ..kinds import spec_of, status_of
from ..nodes import EndpointError, annotated_endpoint
from .placement import addresses_of, is_control_plane, is_labelled

MOST = 16


@dataclass(frozen=True)
class Reach:
    """How relays are reached.

    Attributes:
        endpoints: IP:PORT.
        names: HOST:PORT of load balancers that go by a name, to be resolved.
        ready: how many relays are ready behind these addresses.
        hidden: nodes of ready relays that have no address for others.
    """

    endpoints: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ready: int = 0
    hidden: tuple[str, ...] = ()


def reach(service: Object, slices: Iterable[Object], node: Callable[[str], Object | None]) -> Reach:
    """Return how the relays behind a Service are reached.

    Args:
        service: the relay's.
        slices: its EndpointSlices.
        node: returns the Node of a name.
    """
    ready = ready_pods(slices)
    port = _port(service, "port")
    external = endpoints(spec_of(service).get("externalIPs") or [], port)
    if external:
        return Reach(external, (), len(ready))
    ingress = _ingress(service)
    given = endpoints([each.get("ip") for each in ingress], port)
    names = tuple(f"{each['hostname']}:{port}" for each in ingress if not each.get("ip") and each.get("hostname"))
    if given or names:
        return Reach(given, names[:MOST], len(ready))
    return _node_ports(_port(service, "nodePort"), ready, node)


def _node_ports(port: int, ready: dict[str, str], node: Callable[[str], Object | None]) -> Reach:
    places = {name: node_address(found) if (found := node(name)) else None for name in sorted(set(ready.values()))}
    if not port:
        return Reach(ready=len(ready))
    reached = {name: address for name, address in places.items() if address is not None}
    hidden = tuple(name for name, address in places.items() if address is None)
    count = sum(name in reached for name in ready.values())
    # Without one that is reached it says how many there are, for people.
    return Reach(endpoints(reached.values(), port), (), count or len(ready), hidden)


def ready_pods(slices: Iterable[Object]) -> dict[str, str]:
    """Return the node of each ready pod; one that has addresses of both families stands in two slices."""
    found: dict[str, str] = {}
    for each in slices:
        for endpoint in each.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            if conditions.get("ready") is not False:  # absent: ready, says the API
                pod = (endpoint.get("targetRef") or {}).get("name") or (endpoint.get("addresses") or [""])[0]
                found[pod] = endpoint.get("nodeName") or ""
    return found


def node_address(node: Object) -> str | None:
    """Return the address at which others reach a node's ports.

    A private address counts only where a person or the cluster's installer said that others come there.
    """
    try:
        annotated = Endpoint.parse(annotated_endpoint(node) or "")
    except (EndpointError, ValueError):
        annotated = None
    if annotated is not None:
        return str(annotated.ip)
    found = addresses_of(node, "ExternalIP")
    if not found and (is_labelled(node) or is_control_plane(node)):
        found = addresses_of(node, "InternalIP")
    return found[0] if found else None


def endpoints(hosts: Iterable[Any], port: int) -> tuple[str, ...]:
    """Return IP:PORT of those hosts that are IP addresses, each once, at most 16."""
    found: dict[str, None] = {}
    for host in hosts:
        try:
            found[str(Endpoint.of(str(host), port))] = None
        except ValueError:
            continue
    return tuple(found)[:MOST]


def _ingress(service: Object) -> list[dict[str, Any]]:
    balancer = status_of(service).get("loadBalancer") or {}
    return [each for each in balancer.get("ingress") or [] if isinstance(each, dict)]


def _port(service: Object, field: str) -> int:
    listed = spec_of(service).get("ports") or []
    return next((int(each.get(field) or 0) for each in listed if each.get("name") == "relay"), 0)
