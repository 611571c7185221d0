# SPDX-License-Identifier: Apache-2.0
"""The operator's process against a real API server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Operator, World

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
KEY = base64.b64encode(bytes([7]) * 32).decode()
API = "wirekube.io/v1alpha1"


class Cluster:
    def __init__(self, plane: Any) -> None:
        self.kubectl = plane.kubectl

    def get(self, what: str, name: str) -> Any:
        done = self.kubectl("get", what, name, "-o", "json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def node(self, name: str, **metadata: Any) -> None:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, **metadata}}
        self.kubectl("apply", "-f", "-", input=json.dumps(body))

    def publish(self, name: str, ready: str = "True") -> None:
        """What an agent writes."""
        condition = {
            "type": "DataPlaneReady",
            "status": ready,
            "reason": "Up",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"publicKey": KEY, "conditions": [condition]}
        body = {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}, "status": status}
        arguments = ("apply", "--server-side", "--subresource=status", "--field-manager=wirekube-agent", "-f", "-")
        self.kubectl(*arguments, input=json.dumps(body))

    def condition(self, what: str, name: str, type: str) -> str:
        obj = self.get(what, name) or {}
        found = [c for c in obj.get("status", {}).get("conditions", []) if c["type"] == type]
        return f"{found[0]['status']} {found[0]['reason']}" if found else ""


@pytest.fixture(scope="module")
def cluster(control_plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    World(control_plane).install()
    # An API server on loopback does not publish where it is.
    slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
    slices |= {"metadata": {"name": "kubernetes"}, "endpoints": [{"addresses": ["203.0.113.9"]}]}
    control_plane.kubectl("apply", "-n", "default", "-f", "-", input=json.dumps(slices))
    operator = Operator(control_plane.kubeconfig, tmp_path_factory.mktemp("operator") / "log")
    yield Cluster(control_plane)
    code = operator.end()
    control_plane.kubectl("delete", "nodes", "op-a", "op-b", "--ignore-not-found")
    control_plane.kubectl("delete", "wkpeer", "op-a", "op-b", "--ignore-not-found")
    control_plane.kubectl("delete", "wkmesh", "default", "--ignore-not-found")
    control_plane.kubectl("delete", "endpointslice", "kubernetes", "-n", "default", "--ignore-not-found")
    assert code == 0, operator.log()


def test_from_nodes_to_a_mesh(cluster: Cluster) -> None:
    label = {"wirekube.io/vpn-enabled": "true"}
    cluster.node("op-a", labels=label, annotations={"wirekube.io/endpoint": "203.0.113.5:51820"})
    peer = eventually(lambda: cluster.get("wkpeer", "op-a"))
    mesh = cluster.get("wkmesh", "default")
    assert mesh["status"]["meshCIDRs"][0] == "198.18.0.0/16"
    services = json.loads(cluster.kubectl("get", "servicecidr", "kubernetes", "-o", "json").stdout)["spec"]["cidrs"]
    assert mesh["status"]["clusterCIDRs"] == services
    assert mesh["status"]["apiServers"] == ["203.0.113.9"]
    assert [text.partition("/")[2] for text in peer["spec"]["addresses"]] == ["32", "128"]
    assert peer["spec"]["endpoint"] == "203.0.113.5:51820"
    assert peer["metadata"]["ownerReferences"][0]["uid"] == cluster.get("node", "op-a")["metadata"]["uid"]

    # The agent publishes its key, and the Peer becomes Ready; a second one with that key does not.
    cluster.publish("op-a")
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=20s", "wkpeer/op-a")
    cluster.node("op-b", labels=label, annotations={"wirekube.io/endpoint": "nonsense"})
    eventually(lambda: cluster.get("wkpeer", "op-b"))
    cluster.publish("op-b")
    eventually(lambda: cluster.condition("wkpeer", "op-b", "KeyAccepted") == "False DuplicateKey")
    assert cluster.condition("wkpeer", "op-b", "Ready") == "False DuplicateKey"
    assert cluster.condition("wkpeer", "op-b", "EndpointAccepted") == "False InvalidEndpoint"
    assert cluster.condition("wkpeer", "op-b", "DataPlaneReady") == "True Up"
    assert "endpoint" not in cluster.get("wkpeer", "op-b")["spec"]
    eventually(lambda: cluster.get("wkmesh", "default")["status"].get("readyPeers") == 1)
    assert cluster.condition("wkmesh", "default", "Ready") == "True Ready"
    eventually(lambda: "DuplicateKey" in cluster.kubectl("get", "events", "-n", "default").stdout)

    # Nothing is written when nothing changes.
    before = [cluster.get(*what)["metadata"]["resourceVersion"] for what in (("wkpeer", "op-a"), ("wkmesh", "default"))]
    cluster.kubectl("annotate", "node", "op-a", "unrelated=1")
    # The controllers have one worker each: once this later change has come through, so has the one before.
    cluster.kubectl("annotate", "--overwrite", "node", "op-b", "wirekube.io/endpoint=203.0.113.6:51820")
    eventually(lambda: cluster.condition("wkpeer", "op-b", "EndpointAccepted") == "True Accepted")
    after = [cluster.get(*what)["metadata"]["resourceVersion"] for what in (("wkpeer", "op-a"), ("wkmesh", "default"))]
    assert before == after

    # The owner leaves: its key goes to the next one.
    cluster.kubectl("label", "node", "op-a", "wirekube.io/vpn-enabled-")
    eventually(lambda: cluster.get("wkpeer", "op-a") is None)
    eventually(lambda: cluster.condition("wkpeer", "op-b", "KeyAccepted") == "True Accepted")
    cluster.kubectl("delete", "node", "op-b")
    eventually(lambda: cluster.get("wkpeer", "op-b") is None)


def test_an_unreachable_server_is_one_line_and_sigterm_ends(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "x", "user": {"token": "none"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(config))
    operator = Operator(str(tmp_path / "config"), tmp_path / "log")
    eventually(lambda: "cannot use the API server yet" in operator.log())
    operator.stop()
    assert "Traceback" not in operator.log()
    assert len(operator.log().splitlines()) == 1
