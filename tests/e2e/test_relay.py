# SPDX-License-Identifier: Apache-2.0
"""The managed relay where kubelets run it: killed, rolled out, scaled, behind a load balancer, switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from wirekube.api.constants import LABEL_RELAY
from wirekube.lab.cluster import address_of, condition

NAMESPACE = "wirekube-system"
RELAY = "deployment/wirekube-relay"
LONGEST_GAP = 3.0  # seconds
KINDS = "deployment,service,secret,configmap,serviceaccount,rolebinding,networkpolicy,poddisruptionbudget"


def _set(mesh: Any, **managed: Any) -> None:
    mesh.set(relay={"managed": managed})


def _pods(mesh: Any) -> list[Any]:
    found = mesh.cluster.items("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=wirekube-relay")
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def _ready(mesh: Any, count: int) -> None:
    mesh.cluster.until(f"{count} relays are ready", lambda: mesh.relays().get("readyReplicas") == count, 120)


def _rolled_out(mesh: Any) -> None:
    mesh.cluster.run("rollout", "status", "-n", NAMESPACE, RELAY, "--timeout=120s")


def _longest(gaps: dict[Any, float | None]) -> float:
    assert None not in gaps.values(), gaps
    return max(gap for gap in gaps.values() if gap is not None)


@pytest.fixture
def relayed(mesh: Any) -> Iterator[Any]:
    """The mesh with every pair relayed, over two relays."""
    mesh.set(relay={"mode": "always", "managed": {"replicas": 2}})
    try:
        _ready(mesh, 2)
        mesh.cluster.until("every pair is relayed", lambda: set(mesh.paths().values()) == {"Relayed"}, 120)
        assert mesh.unanswered() == []
        yield mesh
    finally:
        mesh.set(relay={"mode": "auto", "managed": {"replicas": 1}})
    _ready(mesh, 1)
    mesh.settle()


def test_a_relay_that_is_killed_is_not_missed(relayed: Any, timeline: Any, probes: Any) -> None:
    key, victim = relayed.relays()["publicKey"], _pods(relayed)[0]["metadata"]["name"]
    gap = _longest(
        relayed.gaps(
            20,
            lambda: relayed.cluster.run(
                "delete", "pod", "-n", NAMESPACE, victim, "--grace-period=0", "--force", "--wait=false"
            ),
        )
    )
    timeline.note(f"one of two relays deleted: longest gap of all pairs {gap:.2f} s")
    assert gap <= LONGEST_GAP
    _ready(relayed, 2)
    assert relayed.relays()["publicKey"] == key
    node = _pods(relayed)[0]["spec"]["nodeName"]
    kill = ("signal", "SIGKILL", "wirekube-relay --listen")
    gap = _longest(relayed.gaps(20, lambda: probes.begin({node: list(kill)}, pids=True)))
    timeline.note(f"all relays of a node killed: longest gap of all pairs {gap:.2f} s")
    _ready(relayed, 2)
    assert relayed.relays()["publicKey"] == key


def test_a_rollout_of_the_relays_is_not_missed(relayed: Any, timeline: Any) -> None:
    key, before = relayed.relays()["publicKey"], {pod["metadata"]["uid"] for pod in _pods(relayed)}

    def act() -> None:
        relayed.cluster.run("rollout", "restart", "-n", NAMESPACE, RELAY)
        _rolled_out(relayed)

    gap = _longest(relayed.gaps(40, act))
    timeline.note(f"both relays rolled out: longest gap of all pairs {gap:.2f} s")
    assert gap <= LONGEST_GAP
    assert not before & {pod["metadata"]["uid"] for pod in _pods(relayed)}
    _ready(relayed, 2)
    assert relayed.relays()["publicKey"] == key


@contextlib.contextmanager
def _load_balancer(mesh: Any, probes: Any, node: str, port: int, mode: str) -> Iterator[str]:
    """Stand in for a cloud: take connections on a port of the node, and say so in the Service's status."""
    cluster = mesh.cluster
    address = address_of(cluster.get("node", node))
    service = cluster.get("service", "wirekube-relay", "-n", NAMESPACE)
    name = probes.leave(node, "forward", str(port), address, str(service["spec"]["ports"][0]["nodePort"]))
    try:
        ingress = [{"ip": address, "ipMode": mode}]
        patch = {"status": {"loadBalancer": {"ingress": ingress}}}
        cluster.patch("service", "wirekube-relay", patch, "-n", NAMESPACE, "--subresource=status")
        yield f"{address}:{port}"
    finally:
        probes.end(name)


@pytest.mark.parametrize("mode", ["Proxy", "VIP"])
def test_a_load_balancer(mesh: Any, probes: Any, public: str, mode: str) -> None:
    """Its address is published once it is there, and carries what is relayed.

    VIP, which most clouds say: kube-proxy on each node takes a short cut to the pods, which not every node reaches.
    """
    port = 13478
    mesh.cluster.run("label", "node", public, f"{LABEL_RELAY}=true")  # where the load balancer finds it
    mesh.set(relay={"mode": "always", "managed": {"serviceType": "LoadBalancer", "port": port}})
    try:
        mesh.cluster.until(
            "the Service is of the type LoadBalancer",
            lambda: mesh.cluster.get("service", "wirekube-relay", "-n", NAMESPACE)["spec"]["type"] == "LoadBalancer",
            30,
        )
        with _load_balancer(mesh, probes, public, port, mode) as endpoint:
            mesh.cluster.until("its address is published", lambda: mesh.relays().get("endpoints") == [endpoint], 60)
            mesh.cluster.until("every pair is relayed", lambda: set(mesh.paths().values()) == {"Relayed"}, 120)
            mesh.cluster.until("pairs answer", lambda: mesh.unanswered() == [], 60)
    finally:
        mesh.set(relay={"mode": "auto", "managed": {"serviceType": "NodePort", "port": 3478}})
        mesh.cluster.run("label", "node", public, f"{LABEL_RELAY}-")
    _ready(mesh, 1)
    mesh.settle()


@pytest.mark.parametrize("relay", [{"mode": "never"}, {"provider": "external"}], ids=["never", "external"])
def test_a_relay_that_is_not_wanted_is_taken_away(mesh: Any, relay: dict[str, Any]) -> None:
    cluster = mesh.cluster
    elsewhere = {"external": {"endpoint": "203.0.113.77:3478"}} if "provider" in relay else {}
    mesh.set(relay=relay | elsewhere)

    def left() -> list[str]:
        found = cluster.run(
            "get", KINDS, "-n", NAMESPACE, "-o", "name", "--field-selector=metadata.name=wirekube-relay"
        )
        return [
            *found.split(),
            *cluster.run("get", "clusterrolebinding", "wirekube-relay", "--ignore-not-found").split(),
        ]

    try:
        cluster.until("nothing of the relay is left", lambda: left() == [], 60)
        cluster.until("its pods are gone", lambda: _pods(mesh) == [], 60)
    finally:
        mesh.set(relay={"mode": "auto", "provider": "managed", "external": None})
    cluster.until(
        "there is a relay again",
        lambda: condition(cluster.get("wirekubemesh", "default"), "RelayReady").get("status") == "True",
        120,
    )
    mesh.settle()
    assert mesh.unanswered() == []
