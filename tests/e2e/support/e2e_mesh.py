# SPDX-License-Identifier: Apache-2.0
"""The mesh under test: installing it, asking it, uninstalling it, all by what a user types."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e_probes import Probes

from wirekube.api.constants import LABEL_VPN_ENABLED
from wirekube.lab.cluster import Cluster, condition, is_ready
from wirekube.lab.expect import allowed_by_nat
from wirekube.lab.kindnet import FACTS
from wirekube.lab.topology import Nat

ROOT = Path(__file__).parents[3]
NAMESPACE = "wirekube-system"
WORKLOADS = ("deployment/wirekube-operator", "daemonset/wirekube-agent", "deployment/wirekube-relay")


class Timeline:
    """Prints what was reached when, as a table at the end."""

    def __init__(self) -> None:
        self.begin = time.time()
        self.lines: list[str] = []

    def start(self) -> None:
        """Count from now on."""
        self.begin = time.time()

    def mark(self, said: str, at: float | None = None) -> None:
        """Note something, now or at a Unix time."""
        self.lines.append(f"{(time.time() if at is None else at) - self.begin:6.1f} s  {said}")

    def note(self, line: str) -> None:
        """Note a line without a time."""
        self.lines.append(f"{'':10}{line}")


class Mesh:
    """The installed mesh."""

    def __init__(self, cluster: Cluster, nodes: dict[str, Nat], probes: Probes) -> None:
        self.cluster, self.nodes, self.probes = cluster, nodes, probes

    def peer(self, name: str) -> dict[str, Any]:
        """Return a Peer."""
        return self.cluster.get("wirekubepeer", name)

    def peers(self) -> dict[str, dict[str, Any]]:
        """Return all Peers by name."""
        return {each["metadata"]["name"]: each for each in self.cluster.items("wirekubepeers")}

    def addresses(self) -> dict[str, list[str]]:
        """Return the mesh addresses of each node: IPv4, and IPv6 where the host has not switched it off."""
        return {
            name: [
                text.partition("/")[0]
                for text in peer["spec"].get("addresses", [])
                if ":" not in text or condition(peer, "DataPlaneReady").get("reason") == "Up"
            ]
            for name, peer in self.peers().items()
        }

    def set(self, **spec: Any) -> None:
        """Merge fields into the Mesh's spec."""
        self.cluster.patch("wirekubemesh", "default", {"spec": spec})

    def paths(self) -> dict[tuple[str, str], str]:
        """Return how each node says that it reaches each other one."""
        peers = self.peers()
        found = {}
        for name, peer in peers.items():
            status = peer.get("status", {})
            counts = status.get("peers", {})
            if sum(counts.values()) != len(peers) - 1:
                raise AssertionError(f"{name} counts {counts} of {len(peers) - 1} others")
            indirect = {each["name"]: each["path"] for each in status.get("notDirect", [])}
            found |= {(name, other): indirect.get(other, "Direct") for other in peers if other != name}
        return found

    def wrong_paths(self) -> dict[tuple[str, str], str]:
        """Return the paths that the NATs in front of a pair do not allow."""
        return {
            pair: path
            for pair, path in self.paths().items()
            if path not in allowed_by_nat(self.nodes[pair[0]], self.nodes[pair[1]])
        }

    def ping(self, seconds: float = 30, pairs: set[tuple[str, str]] | None = None) -> dict[tuple[str, str], Any]:
        """Ping by mesh address from every node to every other; return [time, round trip] or None for each pair."""
        addresses = self.addresses()
        targets = {
            (one, other): addresses[other]
            for one in self.nodes
            for other in self.nodes
            if one != other and (pairs is None or (one, other) in pairs)
        }
        both = {name for name, found in addresses.items() if len(found) > 1}
        targets = {(one, other): found if one in both else found[:1] for (one, other), found in targets.items()}
        commands = {
            one: ["ping", str(seconds), *(a for pair, found in targets.items() if pair[0] == one for a in found)]
            for one in {pair[0] for pair in targets}
        }
        answers = self.probes.run(commands, seconds + 40)
        return {pair: [answers[pair[0]][a] for a in found] for pair, found in targets.items()}

    def unanswered(self, seconds: float = 30) -> list[tuple[str, str]]:
        """Return the pairs whose pings by mesh address had no answer."""
        return sorted(pair for pair, answers in self.ping(seconds).items() if None in answers)

    def gaps(self, seconds: float, act: Callable[[], None]) -> dict[tuple[str, str], float | None]:
        """Return the longest time without an answer between each two nodes while something is done to the mesh.

        Args:
            seconds: how long is pinged.
            act: is called when all pings run.
        """
        addresses = {name: found[0] for name, found in self.addresses().items()}
        others = {one: [other for other in self.nodes if other != one] for one in self.nodes}
        commands = {
            one: ["gaps", str(seconds), *(addresses[other] for other in found)] for one, found in others.items()
        }
        names = self.probes.begin(commands)
        self.cluster.until("all pings run", lambda: self.probes.running(names), 30)
        act()
        answers = self.probes.finish(names, seconds + 40)
        return {(one, other): answers[one][addresses[other]] for one, found in others.items() for other in found}

    def relays(self) -> dict[str, Any]:
        """Return the entry of the one relay in the Mesh's status; empty while there is none."""
        entries = self.cluster.get("wirekubemesh", "default").get("status", {}).get("relays", [])
        return entries[0] if entries else {}

    def settle(self, seconds: float = 120) -> None:
        """Wait until every Peer is Ready and every path is one that the NATs allow."""
        self.cluster.until(
            "every Peer is Ready", lambda: all(is_ready(peer) for peer in self.peers().values()), seconds
        )
        self.cluster.until("every path is as its NATs allow", lambda: not self.wrong_paths(), seconds)

    def rolled_out(self, seconds: int = 120) -> None:
        """Wait until all workloads have the pods that they want."""
        for workload in WORKLOADS:
            self.cluster.run("rollout", "status", "-n", NAMESPACE, workload, f"--timeout={seconds}s")

    def pods(self, component: str) -> dict[str, dict[str, Any]]:
        """Return the running pods of agent, operator or relay, by node."""
        found = self.cluster.items("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/name=wirekube-{component}")
        return {pod["spec"]["nodeName"]: pod for pod in found if not pod["metadata"].get("deletionTimestamp")}


def mesh_object(cluster: Cluster) -> dict[str, Any]:
    """Return the Mesh of this cluster."""
    facts = json.loads(cluster.run("get", "configmap", FACTS, "--ignore-not-found", "-o", "json") or "{}")
    servers = [each for each in facts.get("data", {}).get("stunServers", "").split(",") if each]
    relay = {
        "mode": "auto",
        "provider": "managed",
        "handshakeTimeoutSeconds": 5,
        "directRetryIntervalSeconds": 10,
        "managed": {"serviceType": "NodePort"},
    }
    spec = {"stunServers": servers, "relay": relay}
    return {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubeMesh", "metadata": {"name": "default"}, "spec": spec}


def install(mesh: Mesh, timeline: Timeline) -> None:
    """Install as the README says; each step goes into the timeline."""
    cluster, nodes = mesh.cluster, mesh.nodes
    timeline.start()
    cluster.run("apply", "-k", str(ROOT / "config" / "default"))
    cluster.run("label", "nodes", *nodes, f"{LABEL_VPN_ENABLED}=true", "--overwrite")
    timeline.mark("kubectl apply -k config/default, nodes labelled")
    cluster.run("wait", "--for=condition=Established", "--timeout=30s", "crd/wirekubemeshes.wirekube.io")
    cluster.apply([mesh_object(cluster)])
    cluster.until("every node's agent runs", lambda: len(_running(mesh, "agent")) == len(nodes), 180)
    timeline.mark("pods running on all nodes")
    cluster.run("wait", "--for=condition=RelayReady", "--timeout=120s", "wirekubemesh/default")
    timeline.mark("the relay that the operator made is ready")
    cluster.until("every Peer has a key", lambda: _published(mesh) == len(nodes), 120)
    timeline.mark("Peers published")
    answers = mesh.ping(60)
    times = [each[0] for found in answers.values() for each in found if each]
    timeline.mark("first ping of all pairs answered, seen by pods started then", max(times, default=None))
    mesh.settle(60)
    timeline.mark("every Peer Ready, final paths")
    mesh.rolled_out()


def uninstall(cluster: Cluster) -> None:
    """Uninstall as the README says; nothing happens when nothing is installed."""
    if not cluster.run("get", "namespace", NAMESPACE, "--ignore-not-found"):
        return
    cluster.run("delete", "-k", str(ROOT / "config" / "default"), "--timeout=120s")
    cluster.run("apply", "-k", str(ROOT / "config" / "cleanup"))
    cluster.run("rollout", "status", "-n", "wirekube-cleanup", "daemonset/wirekube-cleanup", "--timeout=120s")
    cluster.run("delete", "-k", str(ROOT / "config" / "cleanup"), "--timeout=60s")


def _running(mesh: Mesh, component: str) -> list[str]:
    return [
        node
        for node, pod in mesh.pods(component).items()
        if all("running" in each["state"] for each in pod["status"].get("containerStatuses", [{"state": {}}]))
    ]


def _published(mesh: Mesh) -> int:
    return sum(1 for peer in mesh.peers().values() if peer.get("status", {}).get("publicKey"))
