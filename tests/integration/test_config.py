# SPDX-License-Identifier: Apache-2.0
"""The manifests: the API server takes them, and nobody may do more than the design says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "system:serviceaccount:wirekube-system:wirekube-"


@pytest.fixture(scope="module")
def cluster(control_plane: Any) -> Any:
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
    control_plane.kubectl("apply", "--server-side", "-k", str(ROOT / "config/default"))
    return control_plane


def pod_spec(path: str) -> Any:
    return next(
        each["spec"]["template"]["spec"]
        for each in yaml.safe_load_all((ROOT / path).read_text())
        if each["kind"] in {"DaemonSet", "Deployment"}
    )


@pytest.mark.parametrize(
    "path", ["config/agent/daemonset.yaml", "config/operator/deployment.yaml", "config/relay/relay.yaml"]
)
def test_the_pods_are_admitted(cluster: Any, path: str) -> None:
    spec = pod_spec(path)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": "wirekube-system"},
        "spec": {"serviceAccountName": "wirekube-agent"} | spec,
    }
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(body))


def test_the_agent_has_two_capabilities_and_no_privilege() -> None:
    spec = pod_spec("config/agent/daemonset.yaml")
    for container in spec["initContainers"] + spec["containers"]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_MODULE"]}
        assert (security["privileged"], security["readOnlyRootFilesystem"]) == (False, True)
    assert spec["initContainers"][0]["command"] == ["wirekube-agent", "cleanup", "--stale"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_default_has_no_relay() -> None:
    assert "../relay" not in (ROOT / "config/default/kustomization.yaml").read_text()


@pytest.mark.parametrize(
    ("who", "verb", "what", "allowed"),
    [
        ("agent", "watch", "wirekubepeers.wirekube.io", True),
        ("agent", "get", "wirekubemeshes.wirekube.io", True),
        ("agent", "patch", "wirekubepeers.wirekube.io/status", True),
        ("agent", "update", "wirekubepeers.wirekube.io/status", False),
        ("agent", "patch", "wirekubepeers.wirekube.io", False),
        ("agent", "create", "wirekubepeers.wirekube.io", False),
        ("agent", "delete", "wirekubepeers.wirekube.io", False),
        ("agent", "deletecollection", "wirekubepeers.wirekube.io", False),
        ("agent", "patch", "wirekubemeshes.wirekube.io/status", False),
        ("agent", "get", "secrets", False),
        ("agent", "list", "nodes", False),
        ("agent", "create", "events.events.k8s.io", True),
        ("operator", "create", "wirekubepeers.wirekube.io", True),
        ("operator", "delete", "wirekubepeers.wirekube.io", True),
        ("operator", "patch", "wirekubemeshes.wirekube.io/status", True),
        ("operator", "patch", "wirekubemeshes.wirekube.io", False),
        ("operator", "patch", "nodes", False),
        ("operator", "get", "endpointslices.discovery.k8s.io/kubernetes", True),
        ("operator", "get", "endpointslices.discovery.k8s.io/other", False),
        ("operator", "get", "secrets", False),
        ("operator", "create", "pods", False),
    ],
)
def test_rights(cluster: Any, who: str, verb: str, what: str, allowed: bool) -> None:
    resource, _, subresource = what.partition("/") if what.endswith("/status") else (what, "", "")
    arguments = ["auth", "can-i", verb, resource, "-n", "default", f"--as={ACCOUNT}{who}"]
    if subresource:
        arguments.append(f"--subresource={subresource}")
    assert cluster.kubectl(*arguments, check=False).stdout.strip() == ("yes" if allowed else "no")
