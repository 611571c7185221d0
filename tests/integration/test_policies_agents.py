# SPDX-License-Identifier: Apache-2.0
"""The agents' policy on a real API server, where RBAC lets them do everything: it holds by itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wirekube.lab.wait import eventually

API = "wirekube.io/v1alpha1"
PEERS = f"/apis/{API}/wirekubepeers"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/wirekube-node-lease/leases"
A, B = "pol-a", "pol-b"
KEY = base64.b64encode(bytes([9]) * 32).decode()
STAMP = "2026-01-01T00:00:00Z"
SERVER_SIDE = ("apply", "--server-side", "--force-conflicts", "-f", "-")

pytestmark = pytest.mark.timeout(120)


def condition(type: str, status: str = "True", message: str = "") -> dict[str, str]:
    return {"type": type, "status": status, "reason": "Test", "message": message, "lastTransitionTime": STAMP}


def peer(name: str, **parts: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}, **parts}


def lease(name: str, holder: str | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, **metadata},
        "spec": {"holderIdentity": holder or name, "renewTime": "2026-01-02T03:04:05.000000Z"},
    }


@pytest.fixture(scope="module")
def cluster(everything_allowed: Any) -> Iterator[Any]:
    """Two Nodes with Peers."""
    kubectl = everything_allowed.kubectl
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in (A, B)]
    for each in (*nodes, peer(A), peer(B)):
        kubectl(*SERVER_SIDE, input=json.dumps(each))
    yield everything_allowed
    kubectl("delete", "nodes", A, B)
    kubectl("delete", "wkpeer", A, B)
    kubectl("delete", "leases", "--all", "-n", "wirekube-node-lease")
    kubectl("delete", "pod", "agent-of-pol-b", "-n", "wirekube-system", "--ignore-not-found", "--force")


@pytest.fixture(scope="module")
def agent(cluster: Any, caller_of: Callable[..., Any]) -> Any:
    """The agent of node B, with a token bound to the Node; returned when rights and policies are in force."""
    unbound, found = caller_of("agent"), caller_of("agent", Node=B)
    eventually(lambda: "is bound to no node" in unbound("merge", f"{PEERS}/{B}/status", {}).message)
    eventually(lambda: found("GET", "/api/v1/nodes").code == 200)
    return found


@pytest.fixture
def judged(cluster: Any) -> None:
    """The Peers have the operator's conditions; what an agent wrote before is gone."""
    for name in (A, B):
        conditions = [condition("Ready"), condition("KeyAccepted", message=KEY), condition("DataPlaneReady")]
        patch = json.dumps({"status": {"conditions": conditions, "publicKey": KEY}})
        cluster.kubectl("patch", "wkpeer", name, "--subresource=status", "--type=merge", "-p", patch)


def status_of(cluster: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "wkpeer", name, "-o", "json").stdout)["status"]
    return found


def test_an_agent_writes_its_own_status(cluster: Any, agent: Any, judged: None) -> None:
    own = peer(B, status={"listenPort": 1234, "conditions": [condition("DataPlaneReady", "False"), condition("NAT")]})
    assert agent("apply", f"{PEERS}/{B}/status", own).code == 200
    status = status_of(cluster, B)
    assert status["listenPort"] == 1234
    found = {each["type"]: each["status"] for each in status["conditions"]}
    assert found == {"Ready": "True", "KeyAccepted": "True", "DataPlaneReady": "False", "NAT": "True"}


def test_a_pods_token_is_bound_to_the_pods_node(cluster: Any, agent: Any, caller_of: Any, judged: None) -> None:
    spec = {"serviceAccountName": "wirekube-agent", "nodeName": B, "containers": [{"name": "c", "image": "x"}]}
    metadata = {"name": "agent-of-pol-b", "namespace": "wirekube-system"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    found = caller_of("agent", Pod="agent-of-pol-b")
    assert found("merge", f"{PEERS}/{B}/status", {"status": {"listenPort": 4321}}).code == 200
    refused = found("merge", f"{PEERS}/{A}/status", {"status": {"listenPort": 4321}})
    assert (refused.code, status_of(cluster, A).get("listenPort")) == (403, None)


def test_a_token_that_is_bound_to_nothing_writes_nothing(cluster: Any, agent: Any, caller_of: Any) -> None:
    unbound = caller_of("agent")
    tries = (("merge", f"{PEERS}/{B}/status", {"status": {"listenPort": 1}}), ("POST", LEASES, lease(B)))
    for each, what in zip(tries, ("wirekubepeers", "leases"), strict=True):
        answer = unbound(*each)
        assert answer.code == 403
        assert f"is bound to no node, so it may not write {what} {B}" in answer.message


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("apply", {"publicKey": KEY}),
        ("merge", {"publicKey": KEY}),
        ("merge", None),
        ("json", [{"op": "replace", "path": "/status/publicKey", "value": KEY}]),
    ],
)
def test_an_agent_writes_no_other_nodes_status(cluster: Any, agent: Any, judged: None, verb: str, status: Any) -> None:
    before = status_of(cluster, A)
    body = status if verb == "json" else peer(A, status=status)
    answer = agent(verb, f"{PEERS}/{A}/status", body)
    assert (answer.code, status_of(cluster, A)) == (403, before)
    assert f"the agent of node {B} may not write wirekubepeers of node {A}" in answer.message


@pytest.mark.parametrize(
    ("verb", "conditions"),
    [
        ("apply", [condition("Ready", "False")]),
        ("apply", [condition("KeyAccepted", message="another key")]),
        ("apply", [condition("AllowedIPsAccepted")]),
        ("apply", [condition("InventedAccepted")]),
        ("merge", None),
        ("merge", []),
        ("merge", [condition("Ready"), condition("DataPlaneReady")]),
        ("merge", [condition("Ready") | {"lastTransitionTime": "2026-02-02T00:00:00Z"}]),
    ],
)
def test_the_operators_conditions_are_not_an_agents(
    cluster: Any, agent: Any, judged: None, verb: str, conditions: Any
) -> None:
    before = status_of(cluster, B)
    answer = agent(verb, f"{PEERS}/{B}/status", peer(B, status={"conditions": conditions}))
    assert (answer.code, status_of(cluster, B)) == (403, before)
    assert "they are the operator's" in answer.message
    assert B in answer.message


def test_a_whole_status_is_not_taken_away_with_the_conditions(cluster: Any, agent: Any, judged: None) -> None:
    whole = json.loads(cluster.kubectl("get", "wkpeer", B, "-o", "json").stdout)
    for status in ({"publicKey": KEY}, {}, None):
        put = agent("PUT", f"{PEERS}/{B}/status", whole | {"status": status})
        assert put.code == 403, put
    assert len(status_of(cluster, B)["conditions"]) == 3


def test_nothing_but_status_is_written_through_status(cluster: Any, agent: Any, judged: None) -> None:
    smuggled = {"metadata": {"labels": {"x": "y"}, "finalizers": ["x.io/y"], "annotations": {"x": "y"}}}
    smuggled |= {"spec": {"allowedIPs": ["10.9.0.0/24"]}, "status": {"listenPort": 99}}
    assert agent("merge", f"{PEERS}/{B}/status", smuggled).code == 200
    found = json.loads(cluster.kubectl("get", "wkpeer", B, "-o", "json").stdout)
    assert found["status"]["listenPort"] == 99
    assert {"labels", "finalizers", "annotations"} & found["metadata"].keys() == set()
    assert "allowedIPs" not in found.get("spec", {})


def test_an_agent_renews_its_own_lease(cluster: Any, agent: Any) -> None:
    assert agent("apply", f"{LEASES}/{B}", lease(B)).code in {200, 201}
    renewed = lease(B)
    renewed["spec"]["renewTime"] = "2026-01-02T03:05:05.000000Z"
    assert agent("apply", f"{LEASES}/{B}", renewed).code == 200
    shown = json.loads(cluster.kubectl("get", "lease", B, "-n", "wirekube-node-lease", "-o", "json").stdout)
    assert shown["spec"] == renewed["spec"]


@pytest.mark.parametrize(
    ("verb", "there"), [("apply", True), ("apply", False), ("POST", False), ("merge", True)], ids=str
)
def test_an_agent_writes_no_other_nodes_lease(cluster: Any, agent: Any, verb: str, there: bool) -> None:
    words = ("-n", "wirekube-node-lease")
    cluster.kubectl("delete", "lease", A, *words, "--ignore-not-found")
    if there:
        cluster.kubectl("apply", *words, "-f", "-", input=json.dumps(lease(A)))
    answer = agent(verb, LEASES if verb == "POST" else f"{LEASES}/{A}", lease(A, B))
    assert answer.code == 403
    assert f"the agent of node {B} may not write leases of node {A}" in answer.message
    left = cluster.kubectl("get", "lease", A, *words, "-o", "jsonpath={.spec.holderIdentity}", check=False).stdout
    assert left == (A if there else "")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lease(B, A), f"must have the holderIdentity {B}, not {A}"),
        (lease(B) | {"spec": {"holderIdentity": None}}, f"must have the holderIdentity {B}, not none"),
        (lease(B, finalizers=["x.io/y"]), "neither finalizers nor owners"),
        (
            lease(B, ownerReferences=[{"apiVersion": "v1", "kind": "Node", "name": A, "uid": "1"}]),
            "neither finalizers nor owners",
        ),
        (lease("") | {"metadata": {"generateName": f"{B}-"}}, f"the agent of node {B} may not write leases of node"),
    ],
    ids=["holder", "no-holder", "finalizer", "owner", "generated-name"],
)
def test_an_agents_lease_says_that_the_node_lives_and_no_more(
    cluster: Any, agent: Any, body: dict[str, Any], words: str
) -> None:
    cluster.kubectl("delete", "lease", B, "-n", "wirekube-node-lease", "--ignore-not-found")
    created = agent("POST", LEASES, body)
    assert (created.code, words in created.message) == (403, True), created
    assert agent("POST", LEASES, lease(B)).code == 201
    if "generateName" not in body["metadata"]:
        changed = agent("merge", f"{LEASES}/{B}", body)
        assert (changed.code, words in changed.message) == (403, True), changed


def test_all_others_are_held_by_rbac_alone(agent: Any, judged: None, caller_of: Any) -> None:
    operator = caller_of("operator")
    verdict = [condition("Ready", "False"), condition("KeyAccepted", message=KEY)]
    for name in (A, B):
        assert operator("merge", f"{PEERS}/{name}/status", {"status": {"conditions": verdict}}).code == 200
