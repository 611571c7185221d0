# SPDX-License-Identifier: Apache-2.0
"""A real cluster, with the mesh installed once for all tests by what a user types: `kubectl apply -k config/default`.

Any cluster will do whose nodes can start the images. What its network is like the suite reads in the cluster itself:
`e2e.wirekube.io/nat` on Nodes, and the STUN servers in the ConfigMap default/wirekube-e2e (`make kind-up` writes both).
Without them all nodes are taken for public, and there is no STUN server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_mesh import NAMESPACE, Mesh, Timeline, install, uninstall
from e2e_probes import IMAGE, PROBES, Probes, probe_objects

from wirekube.lab.cluster import Cluster, ClusterError
from wirekube.lab.kindnet import ANNOTATION_NAT
from wirekube.lab.topology import Nat

# Tests share one mesh. Each leaves it as it was; the last takes it away.
ORDER = [
    "test_install",
    "test_pods",
    "test_kubectl",
    "test_modes",
    "test_relay",
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
    return {name: Nat(each.get(ANNOTATION_NAT, "none")) for name, each in annotations.items()}


@pytest.fixture(scope="session")
def public(nodes: dict[str, Nat]) -> str:
    """A node that everybody reaches."""
    return next(name for name, nat in nodes.items() if nat is Nat.NONE)


@pytest.fixture(scope="session")
def hidden(nodes: dict[str, Nat]) -> list[str]:
    """The nodes behind a NAT; where there is none, all but the first."""
    return [name for name, nat in nodes.items() if nat is not Nat.NONE] or list(nodes)[1:]


@pytest.fixture(scope="session")
def probes(cluster: Cluster) -> Iterator[Probes]:
    cluster.apply(probe_objects())
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
        install(mesh, timeline)
        yield mesh
    finally:
        if not os.environ.get("WIREKUBE_E2E_KEEP"):
            uninstall(cluster)


@pytest.fixture(scope="session", name="uninstall")
def _uninstall() -> Callable[[Cluster], None]:
    return uninstall


@pytest.fixture(scope="session")
def image() -> str:
    return IMAGE


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
