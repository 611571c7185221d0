# SPDX-License-Identifier: Apache-2.0
"""Operator processes with the rights of the operator's ServiceAccount, and what they make of Nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from wirekube.lab.controlplane import ControlPlane
from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[3]
API = "wirekube.io/v1alpha1"
NAMESPACE = "wirekube-system"
LABEL = {"wirekube.io/vpn-enabled": "true"}


class Operator:
    """One process; its log is a file.

    Args:
        kubeconfig: what it connects with.
        log: path of its log, made new.
        port: of its health server; 0 for any.
        more: other variables.
    """

    def __init__(self, kubeconfig: str, log: Path, port: int = 0, **more: str) -> None:
        environment = os.environ | {"KUBECONFIG": kubeconfig, "WIREKUBE_HEALTH": f"127.0.0.1:{port}"}
        environment |= {"TMPDIR": str(log.parent)} | more
        self._log, self._port = log, port
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wirekube.controllers.main"], env=environment, stderr=output
            )

    def log(self) -> str:
        return self._log.read_text()

    def answer(self, path: str) -> tuple[int, str]:
        """What its health server says; 0 when it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        return 'leader_election_master_status{name="wirekube-operator"} 1.0' in self.answer("/metrics")[1]

    def ready(self) -> bool:
        return self.answer("/readyz")[0] == 200

    def stop(self) -> None:
        """End it as a kubelet does; it must go well."""
        assert self.end() == 0, self.log()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


class World:
    """What a person sees of one cluster."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.kubectl = plane, plane.kubectl

    def install(self) -> None:
        """CRDs, RBAC, Mesh."""
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
        self.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/rbac"))
        self.install_crds()
        self.make_mesh()

    def install_crds(self) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/crd"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")

    def make_mesh(self) -> None:
        mesh = {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}}
        self.kubectl("apply", "-f", "-", input=json.dumps(mesh))

    def get(self, what: str, name: str, *arguments: str) -> Any:
        done = self.kubectl("get", what, name, "-o", "json", *arguments, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def node(self, name: str) -> None:
        """A Node that wants to be in the mesh."""
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": LABEL}}
        self.kubectl("apply", "-f", "-", input=json.dumps(body))

    def joins(self, name: str, seconds: float = 10) -> float:
        """Label a Node and wait for its Peer; how long that took."""
        begin = time.monotonic()
        self.node(name)
        eventually(lambda: self.get("wkpeer", name), seconds, f"{name} has a Peer")
        return time.monotonic() - begin

    def lease(self) -> dict[str, Any]:
        return (self.get("lease", "wirekube-operator", "-n", NAMESPACE) or {}).get("spec", {})

    def clean(self) -> None:
        """Remove what tests made, but for CRDs and RBAC."""
        for kind in ("wkpeer", "wkmesh"):
            self.kubectl("delete", kind, "--all", check=False)
        self.kubectl("delete", "nodes", "--all")
        self.kubectl("delete", "lease", "--all", "-n", NAMESPACE)
