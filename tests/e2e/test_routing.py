# SPDX-License-Identifier: Apache-2.0
"""spec.routing: kubelets, pods, Services and cluster DNS through the mesh, over the cluster's own unchanged CNI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

WEB, PORT = "web", 8080


@pytest.fixture(scope="module")
def web(mesh: Any, nodes: Any, probes: Any, image: str) -> Iterator[dict[str, dict[str, Any]]]:
    """A web server in the pod network of each node that tells its name, and a Service before them; the pods by node."""
    where = {"name": WEB, "namespace": probes.namespace}
    serve = f"cd /www && hostname >index.html && echo serving && exec python3 -m http.server {PORT}"
    pod = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": WEB,
                "image": image,
                "command": ["sh", "-c", serve],
                "readinessProbe": {"httpGet": {"port": PORT}, "periodSeconds": 1},
                "volumeMounts": [{"name": "www", "mountPath": "/www"}],
            }
        ],
        "volumes": [{"name": "www", "emptyDir": {}}],
    }
    template = {"metadata": {"labels": {"app": WEB}}, "spec": pod}
    mesh.cluster.apply(
        [
            {
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": where,
                "spec": {"selector": {"matchLabels": {"app": WEB}}, "template": template},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": where,
                "spec": {"selector": {"app": WEB}, "ports": [{"port": 80, "targetPort": PORT}]},
            },
        ]
    )
    mesh.cluster.run("rollout", "status", "-n", probes.namespace, f"daemonset/{WEB}", "--timeout=90s")
    pods = mesh.cluster.items("pods", "-n", probes.namespace, "-l", f"app={WEB}")
    found = {each["spec"]["nodeName"]: each for each in pods}
    assert found.keys() == nodes.keys()
    yield found
    mesh.cluster.run("delete", "daemonset,service", WEB, "-n", probes.namespace)


def _name(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def test_logs_and_exec_reach_kubelets_behind_nat(mesh: Any, probes: Any, web: Any, hidden: list[str]) -> None:
    """routing.nodeAddresses: internal carries what goes to a Node's own address, as the API server's calls do."""
    cluster, namespace = mesh.cluster, probes.namespace
    mesh.set(routing={"nodeAddresses": "internal"})
    try:
        for node in hidden:
            name = _name(web[node])
            cluster.until(
                f"kubectl logs reaches {node}",
                lambda name=name: "serving" in cluster.run("logs", "-n", namespace, name, "--request-timeout=5s"),
                120,
            )
            said = cluster.run("exec", "-n", namespace, name, "--", "cat", "/www/index.html")
            assert said.strip() == name
    finally:
        mesh.set(routing=None)
    mesh.settle()


def test_an_address_of_the_api_server_stays_outside_the_mesh(mesh: Any, public: str) -> None:
    """Kubelets must reach it before there is a mesh."""
    cluster = mesh.cluster
    servers = cluster.get("wirekubemesh", "default")["status"]["apiServers"]
    mesh.set(routing={"nodeAddresses": "internal"})
    try:
        cluster.until(
            "every other node's address is in the mesh",
            lambda: all(
                peer["spec"].get("nodeAddresses")
                for peer in mesh.peers().values()
                if not set(servers) & set(_internal(cluster, peer))
            ),
            60,
        )
        shown = {
            text.partition("/")[0] for peer in mesh.peers().values() for text in peer["spec"].get("nodeAddresses", [])
        }
        routes = mesh.probes.one(next(name for name in mesh.nodes if name != public), "state")["routes"]
        taken = {line.split()[1] for line in routes if line.startswith("22347 ")}
        assert not taken & set(servers)
        assert taken & shown
    finally:
        mesh.set(routing=None)
    mesh.settle()


def _internal(cluster: Any, peer: dict[str, Any]) -> list[str]:
    node = cluster.get("node", peer["metadata"]["name"])
    return [each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"]


def test_pods_services_and_dns_work_across_nats(mesh: Any, probes: Any, web: Any, nodes: Any) -> None:
    """routing.podCIDRs: true carries the pod ranges of a CNI that routes them plainly through nodes' addresses."""
    mesh.set(routing={"podCIDRs": True})
    try:
        pods = {f"http://{pod['status']['podIP']}:{PORT}/": _name(pod) for pod in web.values()}
        service = mesh.cluster.get("service", WEB, "-n", probes.namespace)["spec"]["clusterIP"]
        names = [f"http://{service}/", f"http://{WEB}.{probes.namespace}.svc.cluster.local/"]
        answers = probes.run({node: ["fetch", "45", *pods, *names] for node in nodes}, 90, host=False)
        for node, found in answers.items():
            assert "error" not in found, (node, found)
            assert {url: found[url].strip() for url in pods} == pods, node
            assert all(found[url].strip() in pods.values() for url in names), (node, found)
    finally:
        mesh.set(routing=None)
    mesh.settle()
    assert mesh.unanswered() == []
