# SPDX-License-Identifier: Apache-2.0
"""spec.routing of the Mesh against a real API server: the operator's process writes Peers, and says what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Operator

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
NODES = {
    "nr-api": (("10.50.0.9",), "10.244.9.0/24"),
    "nr-a": (("192.168.1.5", "203.0.113.7"), "10.244.1.0/24"),
    "nr-b": (("192.168.1.6",), "10.244.7.0/24"),
    "nr-twin": (("192.168.1.6",), "10.244.0.0/22"),
}

pytestmark = pytest.mark.timeout(120)


class Cluster:
    def __init__(self, plane: Any) -> None:
        self.kubectl = plane.kubectl

    def get(self, what: str, name: str) -> Any:
        shown = self.kubectl("get", what, name, "-o", "json", "--ignore-not-found").stdout
        return json.loads(shown) if shown else {}

    def apply(self, body: Any) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps(body))

    def route(self, routing: Any) -> None:
        patch = json.dumps({"spec": {"routing": routing}})
        self.kubectl("patch", "wkmesh", "default", "--type=merge", "-p", patch)

    def spec(self, name: str, field: str) -> list[str] | None:
        return self.get("wkpeer", name).get("spec", {}).get(field)

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        conditions = self.get("wkpeer", name).get("status", {}).get("conditions", [])
        found = next((each for each in conditions if each["type"] == kind), None)
        return (found["status"], found["reason"], found["message"]) if found else ("", "", "")

    def verdict(self, name: str, kind: str, status: str, reason: str) -> str:
        """Wait for a verdict, return its message."""
        eventually(lambda: self.condition(name, kind)[:2] == (status, reason), what=f"{name}: {kind}={status} {reason}")
        return self.condition(name, kind)[2]


@pytest.fixture(scope="module")
def cluster(control_plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    kubectl = control_plane.kubectl
    kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
    kubectl("apply", "--server-side", "-k", str(ROOT / "config/crd"))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
    slices |= {"metadata": {"name": "kubernetes"}, "endpoints": [{"addresses": ["10.50.0.9"]}]}
    kubectl("apply", "-n", "default", "-f", "-", input=json.dumps(slices))
    found = Cluster(control_plane)
    found.apply({"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}})
    for name, (addresses, pods) in NODES.items():
        metadata = {"name": name, "labels": {"wirekube.io/vpn-enabled": "true"}}
        listed = [{"type": "InternalIP", "address": each} for each in addresses]
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDR": pods, "podCIDRs": [pods]}}
        found.apply(body)
        status = json.dumps({"status": {"addresses": listed}})
        kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", status)
    operator = Operator(control_plane.kubeconfig, tmp_path_factory.mktemp("operator") / "log")
    yield found
    code = operator.end()
    for words in (("nodes", *NODES), ("wkpeer", *NODES), ("wkmesh", "default")):
        kubectl("delete", *words, "--ignore-not-found")
    kubectl("delete", "endpointslice", "kubernetes", "-n", "default", "--ignore-not-found")
    assert code == 0, operator.log()


def test_networks_of_nodes_come_are_judged_and_go(cluster: Cluster) -> None:
    eventually(lambda: all(cluster.spec(name, "addresses") for name in NODES), what="Peers")
    assert cluster.spec("nr-a", "nodeAddresses") is cluster.spec("nr-a", "podCIDRs") is None

    cluster.route({"nodeAddresses": "internal", "podCIDRs": True, "excludeCIDRs": ["10.244.7.0/25"]})
    cluster.verdict("nr-a", "NodeAddressesAccepted", "True", "Accepted")
    assert cluster.spec("nr-a", "nodeAddresses") == ["192.168.1.5/32"], "a public address stays outside"
    assert cluster.spec("nr-a", "podCIDRs") == ["10.244.1.0/24"]
    cluster.verdict("nr-a", "PodCIDRsAccepted", "True", "Accepted")

    words = cluster.verdict("nr-api", "NodeAddressesAccepted", "False", "APIServerAddress")
    assert words.startswith("left out: 10.50.0.9/32 stays outside of the mesh: an API server")
    for name, other in (("nr-b", "nr-twin"), ("nr-twin", "nr-b")):
        words = cluster.verdict(name, "NodeAddressesAccepted", "False", "NodeAddressTaken")
        assert words == f"left out: 192.168.1.6/32 is an address of the Node {other}, too"
    assert "10.244.7.0/25" in cluster.verdict("nr-b", "PodCIDRsAccepted", "False", "PodCIDRExcluded")
    words = cluster.verdict("nr-twin", "PodCIDRsAccepted", "False", "PodCIDROverlaps")
    assert words == "left out: 10.244.0.0/22 overlaps 10.244.1.0/24, a pod range of the Node nr-a"
    told = cluster.kubectl("get", "events", "-n", "default").stdout
    assert "NodeAddressTaken" in told

    # Only the operator's own fields go when they are switched off.
    patch = json.dumps({"spec": {"allowedIPs": ["192.168.1.0/29"]}})
    cluster.kubectl("patch", "wkpeer", "nr-a", "--type=merge", "-p", patch)
    cluster.verdict("nr-a", "AllowedIPsAccepted", "True", "Accepted")
    cluster.route(None)
    for field in ("nodeAddresses", "podCIDRs"):
        eventually(lambda field=field: not any(cluster.spec(name, field) for name in NODES), what=f"{field} are gone")
    cluster.verdict("nr-b", "NodeAddressesAccepted", "True", "NotRequested")
    cluster.verdict("nr-b", "PodCIDRsAccepted", "True", "NotRequested")
    assert cluster.spec("nr-a", "allowedIPs") == ["192.168.1.0/29"]
    assert [text.partition("/")[2] for text in cluster.spec("nr-a", "addresses") or []] == ["32", "128"]
