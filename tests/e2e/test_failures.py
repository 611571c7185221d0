# SPDX-License-Identifier: Apache-2.0
"""What a person meets: each time a condition, an Event or one line says what to do, and putting it right is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from wirekube.api.constants import LABEL_VPN_ENABLED
from wirekube.lab.cluster import condition, is_ready

NAMESPACE = "wirekube-system"
TUN = "/dev/net/tun"


def _template(mesh: Any, patch: dict[str, Any], how: str) -> None:
    mesh.cluster.patch("daemonset", "wirekube-agent", {"spec": patch}, "-n", NAMESPACE, how=how)


@contextmanager
def _other_agent(mesh: Any, node: str, pod: dict[str, Any]) -> Iterator[None]:
    """Give one node an agent with another pod spec (a strategic merge patch); the others keep theirs."""
    kept = mesh.cluster.get("daemonset", "wirekube-agent", "-n", NAMESPACE)["spec"]
    _template(mesh, {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}, "merge")
    try:
        _template(mesh, {"template": {"spec": pod}}, "strategic")
        _replace(mesh, node)
        yield
    finally:
        _template(mesh, {"template": kept["template"]}, "merge")
        _replace(mesh, node)
        _template(mesh, {"updateStrategy": kept["updateStrategy"]}, "merge")
    mesh.rolled_out()


def _replace(mesh: Any, node: str) -> None:
    """Delete a node's agent and wait for another one."""
    old = mesh.pods("agent")[node]["metadata"]
    mesh.cluster.run("delete", "pod", "-n", NAMESPACE, old["name"])

    def replaced() -> bool:
        pod = mesh.pods("agent").get(node)
        return pod is not None and pod["metadata"]["uid"] != old["uid"]

    mesh.cluster.until("the agent's pod is made anew", replaced, 60)


def _says(mesh: Any, node: str, kind: str, *words: str, seconds: float = 120) -> None:
    """Wait until a condition of the Peer is False and its message has the words."""

    def said() -> bool:
        found = condition(mesh.peer(node), kind)
        assert found.get("status") == "False", found
        return all(word in found["message"] for word in words)

    mesh.cluster.until(f"{kind} of {node} says {', '.join(words)}", said, seconds)


@pytest.fixture
def node(mesh: Any, hidden: list[str]) -> Iterator[str]:
    """A node to do harm to; afterwards the mesh is whole again."""
    yield hidden[0]
    mesh.settle(90)
    assert mesh.unanswered() == []


def test_a_labelled_node_whose_image_is_missing(mesh: Any, node: str) -> None:
    """The kubelet says which image, the Peer says that no agent runs and where to look."""
    cluster, missing = mesh.cluster, {"image": "wirekube:missing", "imagePullPolicy": "Never"}
    cluster.run("label", "node", node, f"{LABEL_VPN_ENABLED}-")
    cluster.until("the Peer is gone", lambda: node not in mesh.peers(), 60)
    pod = {kind: [{"name": name} | missing] for kind, name in (("initContainers", "cleanup"), ("containers", "agent"))}
    try:
        with _other_agent(mesh, node, pod):
            cluster.run("label", "node", node, f"{LABEL_VPN_ENABLED}=true")
            cluster.until("the Peer is there", lambda: node in mesh.peers(), 60)
            _says(mesh, node, "Ready", "kubectl", "wirekube-system", node)
            name = mesh.pods("agent")[node]["metadata"]["name"]
            cluster.until("the Event names the image", lambda: "wirekube:missing" in _events(mesh, name), 60)
    finally:
        cluster.run("label", "node", node, f"{LABEL_VPN_ENABLED}=true", "--overwrite")
    cluster.until("the Peer is Ready", lambda: is_ready(mesh.peer(node)), 120)


def _events(mesh: Any, pod: str) -> str:
    selector = f"--field-selector=involvedObject.name={pod}"
    return str(mesh.cluster.run("get", "events", "-n", NAMESPACE, selector, "-o", "jsonpath={.items[*].message}"))


def _has_kernel_wireguard(mesh: Any, node: str) -> bool:
    return "wireguard-go" not in mesh.probes.one(node, "commands", pids=True)


def test_a_node_with_neither_module_nor_helper(mesh: Any, node: str) -> None:
    if _has_kernel_wireguard(mesh, node):
        pytest.skip("this node's kernel has WireGuard")
    with _other_agent(mesh, node, {"containers": [{"name": "wireguard", "$patch": "delete"}]}):
        _says(mesh, node, "DataPlaneReady", "kernel", "container wireguard")


def test_a_node_without_a_tun_device(mesh: Any, node: str) -> None:
    if _has_kernel_wireguard(mesh, node):
        pytest.skip("this node's kernel has WireGuard")
    mesh.probes.one(node, "rename", TUN, f"{TUN}.away", pids=True)
    try:
        _replace(mesh, node)
        _says(mesh, node, "DataPlaneReady", TUN)
    finally:
        mesh.probes.one(node, "rename", f"{TUN}.away", TUN, pids=True)
    # Nothing else is needed: the agent tries again.
    mesh.cluster.until("the Peer is Ready", lambda: is_ready(mesh.peer(node)), 120)
