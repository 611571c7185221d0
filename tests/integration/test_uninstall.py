# SPDX-License-Identifier: Apache-2.0
"""Taking it off a cluster whose operator is gone: nothing waits for it, and nothing of ours is left.

The API server has no controller manager, so what only that does is done here by hand: the end of a namespace, and of what
the operator made for the Mesh.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
DEFAULT, CHART = str(ROOT / "config" / "default"), str(ROOT / "config" / "helm" / "wirekube")
NAMESPACE = "wirekube-system"
NODES = ("un-a", "un-b")
SECONDS = 45.0  # CustomResourceDefinitions go when their objects have gone

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def plane(own_control_plane: Any) -> Iterator[Any]:
    yield own_control_plane
    own_control_plane.kubectl("delete", "nodes", *NODES, "--ignore-not-found")


def operator(plane: Any, folder: Path) -> subprocess.Popen[bytes]:
    """Start the operator with the rights that it was installed with."""
    kubeconfig = folder / "kubeconfig"
    plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "WIREKUBE_HEALTH": "127.0.0.1:0"}
    with (folder / "log").open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "wirekube.controllers.main"], env=environment, stderr=output)


def used_and_then_without_operator(plane: Any, folder: Path) -> None:
    """Let the operator make what it makes, and kill it so that it cannot say goodbye."""
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    mesh = {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubeMesh", "metadata": {"name": "default"}}
    mesh |= {"spec": {"relay": {"provider": "managed", "managed": {}}}}
    plane.kubectl("apply", "-f", "-", input=json.dumps(mesh))
    for name in NODES:
        metadata = {"name": name, "labels": {"wirekube.io/vpn-enabled": "true"}}
        plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))
    process = operator(plane, folder)
    try:
        eventually(lambda: set(names(plane, "wirekubepeers")) >= set(NODES), 40.0)
        eventually(lambda: "wirekube-relay" in names(plane, "deployments"), 40.0)
        eventually(lambda: '"conditions"' in plane.kubectl("get", "wkmesh", "default", "-o", "json").stdout)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def names(plane: Any, kind: str) -> list[str]:
    return [each.partition("/")[2] for each in plane.kubectl("get", kind, "-n", NAMESPACE, "-o", "name").stdout.split()]


def outside(left: set[str], namespaces: set[str]) -> set[str]:
    """Return what does not go with these namespaces."""
    return {each for each in left if not {*each.split("/")} & namespaces}


def collect(plane: Any, left: set[str]) -> set[str]:
    """Delete what belongs to the Mesh, which is gone, as the garbage collector would; return the others."""
    kept = set()
    for each in left:
        kind, _, name = each.split("/")
        found = json.loads(plane.kubectl("get", kind, name, "-o", "json").stdout)
        if {owner["kind"] for owner in found["metadata"].get("ownerReferences", [])} != {"WireKubeMesh"}:
            kept.add(each)
        else:
            plane.kubectl("delete", kind, name)
    return kept


def test_kubectl_delete_ends_without_the_operator(plane: Any, ours: Any, end_namespaces: Any, tmp_path: Path) -> None:
    plane.kubectl("apply", "--server-side", "-k", DEFAULT)
    used_and_then_without_operator(plane, tmp_path)
    begin = time.monotonic()
    # Nobody finishes a namespace here, for which kubectl would wait.
    plane.kubectl("delete", "--wait=false", "-k", DEFAULT)
    plane.kubectl("wait", "--for=delete", f"--timeout={SECONDS:.0f}s", "crd", "--all")
    assert time.monotonic() - begin < SECONDS
    left = eventually(lambda: ours(plane))
    gone = end_namespaces(plane)
    assert NAMESPACE in gone
    assert collect(plane, outside(left, gone)) == set()
    eventually(lambda: ours(plane) == set())


def test_helm_uninstall_ends_without_the_operator(
    plane: Any, ours: Any, end_namespaces: Any, helm: str, tmp_path: Path
) -> None:
    run = [helm, "--kubeconfig", plane.kubeconfig, "--namespace", NAMESPACE]
    subprocess.run([*run, "install", "wirekube", CHART, "--create-namespace"], check=True, capture_output=True)
    used_and_then_without_operator(plane, tmp_path)
    begin = time.monotonic()
    subprocess.run([*run, "uninstall", "wirekube"], check=True, capture_output=True)
    plane.kubectl("delete", "--wait=false", "namespace", NAMESPACE)
    plane.kubectl("wait", "--for=delete", f"--timeout={SECONDS:.0f}s", "crd", "--all")
    assert time.monotonic() - begin < SECONDS
    left = eventually(lambda: ours(plane))
    assert collect(plane, outside(left, end_namespaces(plane))) == set()
    eventually(lambda: ours(plane) == set())
