# SPDX-License-Identifier: Apache-2.0
"""A real API server takes the CRDs, fills in defaults and refuses with words that a person understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CRDS = ("wirekubemeshes.wirekube.io", "wirekubepeers.wirekube.io")


@pytest.fixture(scope="module")
def cluster(control_plane: Any) -> Any:
    control_plane.kubectl("apply", "--server-side", "-k", str(ROOT / "config/crd"))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in CRDS))
    return control_plane


def dry(cluster: Any, kind: str, spec: dict[str, Any], name: str = "default") -> Any:
    body = {"apiVersion": "wirekube.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    arguments = ("create", "--dry-run=server", "-o", "json", "-f", "-")
    return cluster.kubectl(*arguments, input=json.dumps(body), check=False)


def test_the_schemas_are_structural(cluster: Any) -> None:
    for name in CRDS:
        crd = json.loads(cluster.kubectl("get", "crd", name, "-o", "json").stdout)
        bad = [c for c in crd["status"]["conditions"] if c["type"] == "NonStructuralSchema" and c["status"] == "True"]
        assert bad == []


def test_defaults_are_filled_in(cluster: Any) -> None:
    spec = json.loads(dry(cluster, "WireKubeMesh", {}).stdout)["spec"]
    relay = {"mode": "auto", "handshakeTimeoutSeconds": 30, "directRetryIntervalSeconds": 120}
    routing = {"nodeAddresses": "mesh", "podCIDRs": False}
    assert spec == {
        "listenPort": 51820,
        "interfaceName": "wire_kube",
        "mtu": 1420,
        "relay": relay,
        "routing": routing,
    }


def test_the_sample_is_taken(cluster: Any) -> None:
    cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "config/samples"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"stunServers": ["stun.example.com:3478"]}, "give at least two STUN servers or none"),
        ({"stunServers": ["a:1", "a:1"]}, "may stand in the list once"),
        ({"stunServers": ["a:1", "b:70000"]}, "must be HOST:PORT"),
        ({"interfaceName": "a/b"}, "a letter, then letters"),
        ({"interfaceName": "sixteen_letters_"}, "Too long"),
        ({"relay": {"provider": "external"}}, "relay.external.endpoint must say where"),
        ({"relay": {"mode": "always"}}, "relay.provider must say which"),
        ({"relay": {"external": {"endpoint": "a:1", "transport": "udp"}}}, 'supported values: "tcp"'),
        ({"meshCIDR": "0.0.0.0/0"}, "not a default route"),
        ({"routing": {"nodeAddresses": "all"}}, 'supported values: "mesh", "internal"'),
        ({"routing": {"podCIDRs": "yes"}}, "must be of type boolean"),
        ({"routing": {"excludeCIDRs": ["10.0.0.1"]}}, "must be ADDRESS/LENGTH"),
        ({"mtu": 1000}, "greater than or equal to 1280"),
    ],
)
def test_a_mesh_is_refused_with_a_reason(cluster: Any, spec: dict[str, Any], words: str) -> None:
    assert words in dry(cluster, "WireKubeMesh", spec).stderr


def test_a_mesh_has_one_name(cluster: Any) -> None:
    assert "its name is default" in dry(cluster, "WireKubeMesh", {}, name="other").stderr


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"allowedIPs": ["0.0.0.0/0"]}, "not a default route"),
        ({"allowedIPs": ["::/0"]}, "not a default route"),
        ({"allowedIPs": ["10.0.0.0"]}, "must be ADDRESS/LENGTH"),
        ({"allowedIPs": [f"10.0.{i}.0/24" for i in range(65)]}, "at most 64"),
        ({"addresses": ["198.18.0.0/24"]}, "must be one address"),
        ({"nodeAddresses": ["192.168.1.0/24"]}, "must be one address"),
        ({"podCIDRs": ["::/0"]}, "not a default route"),
        ({"endpoint": "nowhere"}, "must be HOST:PORT"),
        ({"persistentKeepalive": 65536}, "less than or equal to 65535"),
    ],
)
def test_a_peer_is_refused_with_a_reason(cluster: Any, spec: dict[str, Any], words: str) -> None:
    assert words in dry(cluster, "WireKubePeer", spec).stderr


def test_a_full_peer_is_taken(cluster: Any) -> None:
    spec = {
        "addresses": ["198.18.3.4/32", "fd12::304/128"],
        "endpoint": "[2001:db8::1]:51820",
        "allowedIPs": ["10.0.0.0/24", "fd77:1::/64"],
        "nodeAddresses": ["192.168.1.5/32", "fd77::5/128"],
        "podCIDRs": ["10.244.1.0/24", "fd01:1::/64"],
        "persistentKeepalive": 0,
    }
    assert json.loads(dry(cluster, "WireKubePeer", spec).stdout)["spec"] == spec


def test_kubectl_explains_fields_and_knows_short_names(cluster: Any) -> None:
    assert "Absent: no relay" in cluster.kubectl("explain", "wkmesh.spec.relay.provider").stdout
    assert "private InternalIPs" in cluster.kubectl("explain", "wkmesh.spec.routing.nodeAddresses").stdout
    assert "NodeAddressesAccepted" in cluster.kubectl("explain", "wkpeer.spec.nodeAddresses").stdout
    assert "No resources found" in cluster.kubectl("get", "wkpeer,wkmesh", "-l", "none=none").stderr
