# SPDX-License-Identifier: Apache-2.0
"""Where the relays of the cluster are reached."""

from __future__ import annotations

from typing import Any

import pytest

from wirekube.controllers.relay.addresses import Reach, node_address, reach, ready_pods


def service(kind: str = "LoadBalancer", *, external: Any = (), ingress: Any = (), node_port: int = 30478) -> Any:
    port = {"name": "relay", "port": 3478, "nodePort": node_port, "protocol": "TCP"}
    spec = {"type": kind, "ports": [port], "externalIPs": list(external), "clusterIP": "10.96.0.7"}
    return {"metadata": {"name": "wirekube-relay"}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}


def node(name: str, *addresses: str, labels: Any = (), endpoint: str | None = None) -> Any:
    """A Node; an address is `e:IP` for an ExternalIP, else it is an InternalIP."""
    metadata: Any = {"name": name, "labels": dict.fromkeys(labels, "true")}
    if endpoint is not None:
        metadata["annotations"] = {"wirekube.io/endpoint": endpoint}
    listed = [
        {"type": "ExternalIP", "address": text[2:]}
        if text.startswith("e:")
        else {"type": "InternalIP", "address": text}
        for text in addresses
    ]
    return {"metadata": metadata, "status": {"addresses": [{"type": "Hostname", "address": name}, *listed]}}


def slices(*pods: tuple[str, str, bool | None]) -> Any:
    endpoints = [
        {"addresses": ["10.244.0.9"], "nodeName": place, "targetRef": {"name": pod}, "conditions": {"ready": ready}}
        for pod, place, ready in pods
    ]
    return [{"metadata": {"name": "wirekube-relay-x"}, "endpoints": endpoints}]


RELAY, CONTROL_PLANE = "wirekube.io/relay", "node-role.kubernetes.io/control-plane"
NODES = {
    each["metadata"]["name"]: each
    for each in (
        node("public", "10.0.0.1", "e:203.0.113.1"),
        node("six", "e:2001:db8::1", "e:203.0.113.6"),
        node("annotated", "10.0.0.2", "e:203.0.113.2", endpoint="198.51.100.2:51820"),
        node("named", "10.0.0.3", "e:203.0.113.3", endpoint="node.example.com:51820"),
        node("private", "10.0.0.4"),
        node("labelled", "10.0.0.5", labels=[RELAY]),
        node("control", "10.0.0.6", labels=[CONTROL_PLANE]),
        node("wrong", "10.0.0.7", "e:203.0.113.7", endpoint="here"),
        node("bare"),
    )
}


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("public", "203.0.113.1"),
        ("six", "203.0.113.6"),
        ("annotated", "198.51.100.2"),
        ("named", "203.0.113.3"),
        ("private", None),
        ("labelled", "10.0.0.5"),
        ("control", "10.0.0.6"),
        ("wrong", "203.0.113.7"),
        ("bare", None),
    ],
)
def test_the_address_of_a_node(name: str, address: str | None) -> None:
    assert node_address(NODES[name]) == address


ONE = slices(("a", "public", True))
IP, NAME = {"ip": "192.0.2.9"}, {"hostname": "lb.example.com"}


@pytest.mark.parametrize(
    ("relay", "pods", "found"),
    [
        # externalIPs before the load balancer before node ports
        (service(external=["192.0.2.1"], ingress=[IP]), ONE, Reach(("192.0.2.1:3478",), (), 1)),
        (service(ingress=[IP]), ONE, Reach(("192.0.2.9:3478",), (), 1)),
        (service(ingress=[NAME]), ONE, Reach((), ("lb.example.com:3478",), 1)),
        (service(ingress=[IP, NAME]), ONE, Reach(("192.0.2.9:3478",), ("lb.example.com:3478",), 1)),
        (service(ingress=[{"ip": "2001:db8::9"}]), ONE, Reach(("[2001:db8::9]:3478",), (), 1)),
        (service(), ONE, Reach(("203.0.113.1:30478",), (), 1)),
        (service("NodePort"), ONE, Reach(("203.0.113.1:30478",), (), 1)),
        # a load balancer keeps its address without any relay, a node does not
        (service(ingress=[IP]), [], Reach(("192.0.2.9:3478",), (), 0)),
        (service("NodePort"), [], Reach()),
        (service("NodePort"), slices(("a", "public", False)), Reach()),
        # only nodes that are reached, and only the relays on them
        (
            service("NodePort"),
            slices(("a", "public", True), ("b", "private", True), ("c", "labelled", None)),
            Reach(("10.0.0.5:30478", "203.0.113.1:30478"), (), 2, ("private",)),
        ),
        (service("NodePort"), slices(("a", "private", True)), Reach((), (), 1, ("private",))),
        (service("NodePort"), slices(("a", "gone", True)), Reach((), (), 1, ("gone",))),
        # two relays on one node
        (
            service("NodePort"),
            slices(("a", "public", True), ("b", "public", True)),
            Reach(("203.0.113.1:30478",), (), 2),
        ),
        # never the ClusterIP
        (service("ClusterIP", node_port=0), ONE, Reach(ready=1)),
        (service("ClusterIP", external=["192.0.2.1", "junk"], node_port=0), ONE, Reach(("192.0.2.1:3478",), (), 1)),
    ],
)
def test_how_relays_are_reached(relay: Any, pods: Any, found: Reach) -> None:
    assert reach(relay, pods, NODES.get) == found


def test_a_pod_with_addresses_of_both_families_is_one() -> None:
    assert ready_pods(slices(("a", "public", True)) * 2) == {"a": "public"}
