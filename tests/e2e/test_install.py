# SPDX-License-Identifier: Apache-2.0
"""From `kubectl apply -k` to a mesh in which everybody reaches everybody."""

from __future__ import annotations

from typing import Any

from wirekube.api.constants import ANNOTATION_ENDPOINT, LABEL_VPN_ENABLED
from wirekube.lab.cluster import address_of, condition, is_ready


def test_every_labelled_node_has_a_peer_that_kubectl_waits_for(mesh: Any, nodes: Any) -> None:
    said = mesh.cluster.run(
        "wait", "--for=condition=Ready", "--timeout=30s", *(f"wirekubepeer/{name}" for name in nodes)
    )
    assert sorted(said.splitlines()) == sorted(f"wirekubepeer.wirekube.io/{name} condition met" for name in nodes)


def test_hosts_ping_each_other_by_mesh_address(mesh: Any, nodes: Any) -> None:
    answers = mesh.ping(30)
    assert len(answers) == len(nodes) * (len(nodes) - 1)
    assert all(len(found) >= 1 and None not in found for found in answers.values()), answers


def test_each_pair_has_the_path_that_its_nats_allow(mesh: Any) -> None:
    mesh.cluster.until("every path is as its NATs allow", lambda: not mesh.wrong_paths(), 60)
    for (one, other), path in sorted(mesh.paths().items()):
        print(f"{one} -> {other}: {path}")


def test_nat_is_recognised(mesh: Any, nodes: Any) -> None:
    """What stands before a node is what its Peer says, where the cluster has STUN servers."""
    if not mesh.cluster.get("wirekubemesh", "default")["spec"].get("stunServers"):
        assert all(mesh.peer(name)["status"].get("nat", {}).get("mapping") in (None, "Unknown") for name in nodes)
        return
    expected = {
        "none": ("EndpointIndependent", "Open"),
        "eim-apdf": ("EndpointIndependent", "Open"),
        "symmetric": ("AddressAndPortDependent", "Open"),
        "udp-blocked": ("Unknown", "Blocked"),
    }
    for name, nat in nodes.items():
        found = mesh.peer(name)["status"]["nat"]
        assert (found["mapping"], found["udp"]) == expected[nat.value], (name, found)


def test_the_annotated_endpoint_wins(mesh: Any, public: str) -> None:
    """kubectl annotate node: the others take that address before all that was discovered."""
    cluster = mesh.cluster
    wanted = f"{address_of(cluster.get('node', public))}:51820"
    discovered = mesh.peer(public)["status"].get("endpoint")
    cluster.run("annotate", "node", public, f"{ANNOTATION_ENDPOINT}={wanted}")
    try:
        cluster.until(
            "the annotation is the Peer's first candidate",
            lambda: mesh.peer(public)["status"]["candidates"][0] == {"endpoint": wanted, "type": "manual"},
            60,
        )
        assert mesh.peer(public)["status"]["endpoint"] == wanted
    finally:
        cluster.run("annotate", "node", public, f"{ANNOTATION_ENDPOINT}-")
    cluster.until(
        "the discovered endpoint is back", lambda: mesh.peer(public)["status"].get("endpoint") == discovered, 20
    )


def test_a_malformed_annotation_is_named_and_changes_nothing(mesh: Any, public: str) -> None:
    cluster = mesh.cluster
    cluster.run("annotate", "node", public, f"{ANNOTATION_ENDPOINT}=here")
    try:
        cluster.until(
            "the Peer says what is wrong",
            lambda: condition(mesh.peer(public), "EndpointAccepted").get("status") == "False",
            60,
        )
        assert ANNOTATION_ENDPOINT in condition(mesh.peer(public), "EndpointAccepted")["message"]
    finally:
        cluster.run("annotate", "node", public, f"{ANNOTATION_ENDPOINT}-")
    mesh.settle()


def test_a_node_leaves_and_joins_again_by_its_label(mesh: Any, hidden: list[str], nodes: Any) -> None:
    """kubectl label: its Peer goes, the others forget it, its host is clean; with the label it gets its address back."""
    node, cluster = hidden[0], mesh.cluster
    address = mesh.peer(node)["spec"]["addresses"]
    cluster.run("label", "node", node, f"{LABEL_VPN_ENABLED}-")
    cluster.until("the Peer is gone", lambda: node not in mesh.peers(), 60)
    cluster.until("the host is clean", lambda: "wire_kube" not in mesh.probes.one(node, "state")["links"], 60)
    others = {(one, other) for one in nodes for other in nodes if node not in (one, other) and one != other}
    assert all(None not in found for found in mesh.ping(20, others).values())
    cluster.run("label", "node", node, f"{LABEL_VPN_ENABLED}=true")
    cluster.until("the Peer is Ready", lambda: is_ready(mesh.peers().get(node, {})), 120)
    assert mesh.peer(node)["spec"]["addresses"] == address
    mesh.settle()
    assert mesh.unanswered() == []
