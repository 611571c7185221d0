# SPDX-License-Identifier: Apache-2.0
"""Pods that do something on a node and report it; see `probe.py` for what and how."""

from __future__ import annotations

import base64
import itertools
import json
import os
import zlib
from pathlib import Path
from typing import Any

from wirekube.lab.cluster import Cluster

PROBES = "wirekube-e2e"
IMAGE = os.environ.get("WIREKUBE_E2E_IMAGE", "wirekube:dev")
PROBE = (Path(__file__).parent / "probe.py").read_text()


class Probes:
    """Runs commands of probe.py on nodes, in pods that end; see there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._numbers = cluster, itertools.count()

    def run(self, commands: dict[str, list[str]], seconds: float = 60, **options: Any) -> dict[str, Any]:
        """Run one command on each node, all at once; return the answers by node.

        Args:
            commands: by name of the node.
            seconds: until all must have ended.
            options: see `_pod`.
        """
        return self.finish(self.begin(commands, **options), seconds)

    def begin(self, commands: dict[str, list[str]], **options: Any) -> dict[str, str]:
        """Start one command on each node; return the pods' names by node, for `finish`."""
        number = next(self._numbers)
        names = {node: f"probe-{number}-{index}" for index, node in enumerate(commands)}
        self._cluster.apply(_pod(names[node], node, words, **options) for node, words in commands.items())
        return names

    def running(self, names: dict[str, str]) -> bool:
        """Return whether all pods of `begin` run."""
        pods = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in self._cluster.items("pods", "-n", PROBES)}
        return all(pods.get(name) == "Running" for name in names.values())

    def finish(self, names: dict[str, str], seconds: float = 60) -> dict[str, Any]:
        """Wait until the commands of `begin` have ended; return the answers by node."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            for pod in self._cluster.items("pods", "-n", PROBES):
                name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
                if names.get(node) == name and pod["status"]["phase"] in ("Succeeded", "Failed"):
                    found[node] = _answer(pod)
            return len(found) == len(names)

        self._cluster.until(f"probes {' '.join(names.values())} end", ended, seconds)
        self._cluster.run("delete", "pod", "-n", PROBES, "--wait=false", *names.values())
        return found

    @property
    def namespace(self) -> str:
        """Where the probes run; tests may put their own objects there too."""
        return PROBES

    def leave(self, node: str, *command: str) -> str:
        """Start a probe that goes on by itself, and wait until it runs; return its name."""
        name = f"probe-{next(self._numbers)}-left"
        self._cluster.apply([_pod(name, node, list(command), pids=True, token=True)])

        def runs() -> bool:
            return self._cluster.get("pod", name, "-n", PROBES)["status"]["phase"] == "Running"

        self._cluster.until(f"the probe {command[0]} runs on {node}", runs, 30)
        return name

    def end(self, name: str) -> None:
        """End a probe that was left."""
        self._cluster.run("delete", "pod", "-n", PROBES, "--wait=false", name)

    def one(self, node: str, *command: str, **options: Any) -> Any:
        """Run a command on one node."""
        return self.run({node: list(command)}, **options)[node]


def _answer(pod: dict[str, Any]) -> Any:
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    if ended["exitCode"]:
        raise AssertionError(f"the probe on {pod['spec']['nodeName']} failed: {ended.get('message', '')}")
    return json.loads(zlib.decompress(base64.b85decode(ended["message"])))


def _pod(
    name: str, node: str, command: list[str], *, host: bool = True, pids: bool = False, token: bool = False
) -> dict[str, Any]:
    """Return a probe's pod: in the node's network or, with `host=False`, in the pod network."""
    host_paths = {"run": "/run/wirekube", "state": "/var/lib/wirekube"} if host else {}
    mounts = [{"name": key, "mountPath": f"/host{path}", "readOnly": True} for key, path in host_paths.items()]
    container = {
        "name": "probe",
        "image": IMAGE,
        "command": ["python3", "-c", PROBE, *command],
        "securityContext": {"runAsUser": 0, "privileged": pids, "capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts if command[0] == "state" else [],
    }
    spec = {
        "nodeName": node,
        "hostNetwork": host,
        "dnsPolicy": "ClusterFirstWithHostNet" if host else "ClusterFirst",
        "hostPID": pids,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": token,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": key, "hostPath": {"path": path}} for key, path in host_paths.items()]
        if command[0] == "state"
        else [],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": PROBES}, "spec": spec}


def probe_objects() -> list[dict[str, Any]]:
    """Return the probes' namespace, and leave to see whether a Node is there."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    group, name = "rbac.authorization.k8s.io", {"name": PROBES}
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]
    subjects = [{"kind": "ServiceAccount", "name": "default", "namespace": PROBES}]
    role = {"apiGroup": group, "kind": "ClusterRole", "name": PROBES}
    rbac = {"apiVersion": f"{group}/v1", "metadata": name}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": name | {"labels": labels}},
        rbac | {"kind": "ClusterRole", "rules": rules},
        rbac | {"kind": "ClusterRoleBinding", "roleRef": role, "subjects": subjects},
    ]
