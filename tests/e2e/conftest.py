# SPDX-License-Identifier: Apache-2.0
"""A real cluster, with the mesh installed once for all tests by what a user types: `kubectl apply -k config/default`.

Any cluster will do whose nodes can start the images. What its network is like the suite reads in the cluster itself:
`e2e.wirekube.io/nat` on Nodes, and the STUN servers in the ConfigMap default/wirekube-e2e (`make kind-up` writes both).
Without them all nodes are taken for public, and there is no STUN server.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wirekube.api.constants import LABEL_VPN_ENABLED
from wirekube.lab.cluster import Cluster, ClusterError, address_of, condition, is_ready
from wirekube.lab.expect import allowed_by_nat
from wirekube.lab.topology import Nat

ROOT = Path(__file__).parents[2]
NAMESPACE, PROBES = "wirekube-system", "wirekube-e2e"
IMAGE = os.environ.get("WIREKUBE_E2E_IMAGE", "wirekube:dev")
PROBE = (Path(__file__).parent / "probe.py").read_text()
WORKLOADS = ("deployment/wirekube-operator", "daemonset/wirekube-agent", "deployment/wirekube-relay")
# Tests share one mesh. Each leaves it as it was; the last takes it away.
ORDER = [
    "test_install",
    "test_pods",
    "test_kubectl",
    "test_modes",
    "test_routing",
    "test_faults",
    "test_failures",
    "test_upgrade",
    "test_uninstall",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files into the order in which a cluster lives through them; run them only when that was asked for."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.parent.name == "e2e" else -1)
    if os.environ.get("WIREKUBE_E2E") != "yes":
        reason = "these kill, drain and delete on the cluster of the kubeconfig: hack/e2e runs them"
        for item in items:
            if item.path.parent.name == "e2e":
                item.add_marker(pytest.mark.skip(reason=reason))


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


@pytest.fixture(scope="session")
def timeline(request: pytest.FixtureRequest) -> Iterator[Timeline]:
    lines = Timeline()
    yield lines
    request.config.stash[TIMELINE] = lines.lines


TIMELINE: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the timeline, whatever the outcome."""
    for line in config.stash.get(TIMELINE, []):
        terminalreporter.write_line(line)


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
        number = next(self._numbers)
        names = {node: f"probe-{number}-{index}" for index, node in enumerate(commands)}
        self._cluster.apply(_pod(names[node], node, words, **options) for node, words in commands.items())
        found: dict[str, Any] = {}

        def ended() -> bool:
            for pod in self._cluster.items("pods", "-n", PROBES):
                name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
                if names.get(node) == name and pod["status"]["phase"] in ("Succeeded", "Failed"):
                    found[node] = _answer(pod)
            return len(found) == len(names)

        self._cluster.until(f"probes {' '.join(commands[node][0] for node in names)} end", ended, seconds)
        self._cluster.run("delete", "pod", "-n", PROBES, "--wait=false", *names.values())
        return found

    @property
    def namespace(self) -> str:
        """Where the probes run; tests may put their own objects there too."""
        return PROBES

    def leave(self, node: str, *command: str) -> None:
        """Start a probe that goes on by itself, and wait until it runs."""
        name = f"probe-{next(self._numbers)}-left"
        self._cluster.apply([_pod(name, node, list(command), pids=True, token=True)])

        def runs() -> bool:
            return self._cluster.get("pod", name, "-n", PROBES)["status"]["phase"] == "Running"

        self._cluster.until(f"the probe {command[0]} runs on {node}", runs, 30)

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


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl is not in PATH: run `make e2e`, which puts it there")
    found = Cluster()
    found.run("version")
    return found


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> dict[str, Nat]:
    """The nodes of the cluster, in order, and what stands before each."""
    annotations = {node["metadata"]["name"]: node["metadata"].get("annotations", {}) for node in cluster.items("nodes")}
    return {name: Nat(each.get("e2e.wirekube.io/nat", "none")) for name, each in annotations.items()}


@pytest.fixture(scope="session")
def public(nodes: dict[str, Nat]) -> str:
    """A node that everybody reaches."""
    return next(name for name, nat in nodes.items() if nat is Nat.NONE)


@pytest.fixture(scope="session")
def hidden(nodes: dict[str, Nat]) -> list[str]:
    """The nodes behind a NAT; where there is none, all but the first."""
    return [name for name, nat in nodes.items() if nat is not Nat.NONE] or list(nodes)[1:]


def _probe_objects() -> list[dict[str, Any]]:
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


@pytest.fixture(scope="session")
def probes(cluster: Cluster) -> Iterator[Probes]:
    cluster.apply(_probe_objects())
    cluster.until(
        "the namespace has its service account", lambda: cluster.get("serviceaccount", "default", "-n", PROBES), 30
    )
    yield Probes(cluster)
    cluster.run("delete", "namespace,clusterrole,clusterrolebinding", PROBES, "--wait=false")


@pytest.fixture(scope="session")
def before(cluster: Cluster, nodes: dict[str, Nat], probes: Probes) -> dict[str, Any]:
    """What the nodes were like before anything was installed."""
    if cluster.run("get", "namespace", NAMESPACE, "--ignore-not-found"):
        pytest.fail(f"the namespace {NAMESPACE} is there already: uninstall first (kubectl delete -k config/default)")
    return probes.run({node: ["state"] for node in nodes})


@pytest.fixture(scope="session")
def pod_ranges(cluster: Cluster, before: dict[str, Any]) -> list[str]:
    """The pod ranges of the nodes at the beginning; one that is made anew may get another."""
    return [node["spec"].get("podCIDR", "") for node in cluster.items("nodes")]


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

    def settle(self, seconds: float = 60) -> None:
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


def relay_endpoint(cluster: Cluster) -> str:
    """Return where agents outside reach the relay: its load balancer, else the NodePort of the node that it runs on."""
    service = cluster.get("service", "wirekube-relay", "-n", NAMESPACE)
    port = next(each for each in service["spec"]["ports"] if each["protocol"] == "TCP")
    for ingress in service["status"].get("loadBalancer", {}).get("ingress", []):
        return f"{ingress.get('ip') or ingress['hostname']}:{port['port']}"
    pods = cluster.items("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=wirekube-relay")
    node = cluster.get("node", pods[0]["spec"]["nodeName"])
    return f"{address_of(node, 'ExternalIP') or address_of(node)}:{port['nodePort']}"


def mesh_object(cluster: Cluster) -> dict[str, Any]:
    """Return the Mesh of this cluster."""
    facts = json.loads(cluster.run("get", "configmap", "wirekube-e2e", "--ignore-not-found", "-o", "json") or "{}")
    servers = [each for each in facts.get("data", {}).get("stunServers", "").split(",") if each]
    relay = {
        "mode": "auto",
        "provider": "external",
        "handshakeTimeoutSeconds": 5,
        "directRetryIntervalSeconds": 10,
        "external": {"endpoint": relay_endpoint(cluster)},
    }
    spec = {"stunServers": servers, "relay": relay}
    return {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubeMesh", "metadata": {"name": "default"}, "spec": spec}


@pytest.fixture(scope="session")
def mesh(
    cluster: Cluster,
    nodes: dict[str, Nat],
    probes: Probes,
    before: dict[str, Any],
    pod_ranges: list[str],
    timeline: Timeline,
) -> Iterator[Mesh]:
    """Install and wait; uninstall in the end, also when it does not come up."""
    mesh = Mesh(cluster, nodes, probes)
    try:
        _install(mesh, timeline)
        yield mesh
    finally:
        if not os.environ.get("WIREKUBE_E2E_KEEP"):
            uninstall(cluster)


def _install(mesh: Mesh, timeline: Timeline) -> None:
    """Install as the README says; each step goes into the timeline."""
    cluster, nodes = mesh.cluster, mesh.nodes
    timeline.start()
    cluster.run("apply", "-k", str(ROOT / "config" / "default"))
    cluster.run("label", "nodes", *nodes, f"{LABEL_VPN_ENABLED}=true", "--overwrite")
    timeline.mark("kubectl apply -k config/default, nodes labelled")
    cluster.run("wait", "--for=condition=Established", "--timeout=30s", "crd/wirekubemeshes.wirekube.io")
    cluster.until("the relay has a node", lambda: relay_endpoint(cluster), 60)
    cluster.apply([mesh_object(cluster)])
    cluster.until("every node's agent runs", lambda: len(_running(mesh, "agent")) == len(nodes), 90)
    timeline.mark("pods running on all nodes")
    cluster.until("every Peer has a key", lambda: _published(mesh) == len(nodes), 60)
    timeline.mark("Peers published")
    answers = mesh.ping(60)
    times = [each[0] for found in answers.values() for each in found if each]
    timeline.mark("first ping of all pairs answered, seen by pods started then", max(times, default=None))
    mesh.settle(60)
    timeline.mark("every Peer Ready, final paths")
    mesh.rolled_out()


@pytest.fixture(scope="session", name="uninstall")
def _uninstall() -> Callable[[Cluster], None]:
    return uninstall


@pytest.fixture(scope="session")
def image() -> str:
    return IMAGE


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


@pytest.fixture(autouse=True)
def describe_on_failure(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    """Show what a person would look at first when a test fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        for words in (("get", "pods", "-A", "-o", "wide"), ("get", "wirekubepeers", "-o", "wide")):
            try:
                print(cluster.run(*words))
            except ClusterError as error:
                print(error)
