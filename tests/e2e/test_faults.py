# SPDX-License-Identifier: Apache-2.0
"""What happens to clusters: restarts, kills, nodes that go and come back."""

from __future__ import annotations

from typing import Any

import pytest

from wirekube.lab.cluster import is_ready

NAMESPACE = "wirekube-system"


def _uids(mesh: Any, component: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in mesh.pods(component).values()}


def test_a_rollout_of_the_agents_ends_in_the_same_mesh(mesh: Any) -> None:
    before, pods = {name: peer["status"]["publicKey"] for name, peer in mesh.peers().items()}, _uids(mesh, "agent")
    mesh.cluster.run("rollout", "restart", "-n", NAMESPACE, "daemonset/wirekube-agent")
    mesh.rolled_out()
    assert not pods & _uids(mesh, "agent")
    mesh.settle()
    assert {name: peer["status"]["publicKey"] for name, peer in mesh.peers().items()} == before
    assert mesh.unanswered() == []


def test_a_killed_operator_comes_back_and_nobody_notices(mesh: Any, probes: Any) -> None:
    (node,) = mesh.pods("operator")
    restarts = _restarts(mesh.pods("operator")[node])
    assert probes.one(node, "signal", "SIGKILL", "wirekube-operator", pids=True) >= 1
    assert mesh.unanswered() == []
    mesh.cluster.until("the operator was restarted", lambda: _restarts(mesh.pods("operator")[node]) > restarts, 120)
    mesh.rolled_out()
    mesh.settle()


def _restarts(pod: dict[str, Any]) -> int:
    return sum(each["restartCount"] for each in pod["status"].get("containerStatuses", []))


def test_a_restarted_api_server_costs_no_tunnel(mesh: Any, probes: Any) -> None:
    servers = mesh.cluster.items("pods", "-n", "kube-system", "-l", "component=kube-apiserver")
    if len(servers) != 1:
        pytest.skip("the API server of this cluster is not one static pod")
    node, before = servers[0]["spec"]["nodeName"], _restarts(servers[0])
    name = servers[0]["metadata"]["name"]
    paths = mesh.paths()
    # The kubelet reports the probe's end as soon as there is an API server again.
    assert probes.one(node, "signal", "SIGKILL", "kube-apiserver --", pids=True) >= 1
    mesh.cluster.until(
        "the API server was restarted",
        lambda: _restarts(mesh.cluster.get("pod", name, "-n", "kube-system")) > before,
        180,
    )
    assert mesh.unanswered() == []
    mesh.settle()
    assert mesh.paths().keys() == paths.keys()


def test_a_node_that_is_drained_deleted_and_made_anew_is_in_the_mesh_again(
    mesh: Any, probes: Any, hidden: list[str], nodes: Any
) -> None:
    """Its Peer goes with it and comes back with its address; the others' paths do not move meanwhile."""
    node, cluster = hidden[-1], mesh.cluster
    address = mesh.peer(node)["spec"]["addresses"]
    kept = cluster.get("node", node)["metadata"]
    cluster.run("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
    # A kubelet registers its Node when it starts; the probe ends it once the Node is gone.
    probes.leave(node, "unregistered", "60", node, "kubelet --")
    cluster.run("delete", "node", node, "--timeout=30s")
    cluster.until("the Peer is gone", lambda: node not in mesh.peers(), 60)
    others = {(one, other) for one in nodes for other in nodes if node not in (one, other) and one != other}
    assert all(None not in found for found in mesh.ping(20, others).values())
    cluster.until("the node has registered again", lambda: is_ready(cluster.get("node", node)), 120)
    for key in ("labels", "annotations"):
        wanted = {name: text for name, text in kept.get(key, {}).items() if "wirekube.io/" in name}
        cluster.patch("node", node, {"metadata": {key: wanted}})
    cluster.until("its Peer is Ready", lambda: is_ready(mesh.peers().get(node, {})), 180)
    assert mesh.peer(node)["spec"]["addresses"] == address
    mesh.rolled_out()
    mesh.settle()
    assert mesh.unanswered() == []
