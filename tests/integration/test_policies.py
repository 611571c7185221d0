# SPDX-License-Identifier: Apache-2.0
"""config/policy on a real API server, where RBAC lets our ServiceAccounts do everything: the policies hold by themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
PEERS = f"/apis/{API}/wirekubepeers"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/wirekube-node-lease/leases"
A, B = "pol-a", "pol-b"
KEY = base64.b64encode(bytes([9]) * 32).decode()
STAMP = "2026-01-01T00:00:00Z"
EVERYTHING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "test-policies-everything"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:wirekube-system"}],
}  # fmt: skip
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "wirekube-node-lease"}}
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
def cluster(control_plane: Any) -> Iterator[Any]:
    """Everything of config/default, two Nodes with Peers that the operator has judged, and far too many rights."""
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/default"))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in (A, B)]
    for each in (EVERYTHING, NAMESPACE, *nodes, peer(A), peer(B)):
        control_plane.kubectl(*SERVER_SIDE, input=json.dumps(each))
    yield control_plane
    control_plane.kubectl("delete", "clusterrolebinding", EVERYTHING["metadata"]["name"])
    control_plane.kubectl("delete", "nodes", A, B)
    control_plane.kubectl("delete", "wkpeer", A, B)
    control_plane.kubectl("delete", "leases", "--all", "-n", "wirekube-node-lease")
    control_plane.kubectl("delete", "pod", "agent-of-pol-b", "-n", "wirekube-system", "--ignore-not-found", "--force")


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


# Agents.


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


def test_all_others_are_held_by_rbac_alone(cluster: Any, agent: Any, judged: None, caller_of: Any) -> None:
    operator = caller_of("operator")
    verdict = [condition("Ready", "False"), condition("KeyAccepted", message=KEY)]
    for name in (A, B):
        assert operator("merge", f"{PEERS}/{name}/status", {"status": {"conditions": verdict}}).code == 200


# The operator.


def thing(api: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **more}


def in_namespace(api: str, plural: str, namespace: str = "wirekube-system") -> str:
    return f"/{'api' if api == 'v1' else 'apis'}/{api}/namespaces/{namespace}/{plural}"


RBAC = "rbac.authorization.k8s.io/v1"
ROLE = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "wirekube-relay"}}
EVENT = {
    "action": "Test", "eventTime": "2026-01-02T03:04:05.000000Z", "reason": "Test", "type": "Normal",
    "reportingController": "test", "reportingInstance": "test", "regarding": {"namespace": "default"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (in_namespace("v1", "secrets"), thing("v1", "Secret", "wirekube-relay"), 201),
        (in_namespace("v1", "secrets"), thing("v1", "Secret", "wirekube-relay-2"), 201),
        (in_namespace("v1", "secrets"), thing("v1", "Secret", "wirekube-relayed"), 403),
        (in_namespace("v1", "secrets"), thing("v1", "Secret", "another"), 403),
        (in_namespace("v1", "secrets", "default"), thing("v1", "Secret", "wirekube-relay"), 403),
        (in_namespace("v1", "serviceaccounts"), thing("v1", "ServiceAccount", "another"), 403),
        (in_namespace("v1", "pods"), thing("v1", "Pod", "x", spec={"containers": [{"name": "c", "image": "x"}]}), 403),
        (in_namespace("coordination.k8s.io/v1", "leases"), lease("wirekube-operator"), 201),
        (in_namespace("coordination.k8s.io/v1", "leases"), lease("another"), 403),
        (in_namespace("coordination.k8s.io/v1", "leases", "kube-system"), lease("wirekube-operator"), 403),
        (in_namespace("v1", "secrets"), thing("v1", "Secret", "wirekube-operator"), 403),
        (f"/apis/{RBAC}/clusterrolebindings", thing(RBAC, "ClusterRoleBinding", "wirekube-relay-2", **ROLE), 201),
        (f"/apis/{RBAC}/clusterrolebindings", thing(RBAC, "ClusterRoleBinding", "another", **ROLE), 403),
        ("/api/v1/namespaces", thing("v1", "Namespace", "another"), 403),
        (PEERS, peer("pol-new"), 201),
        (in_namespace("events.k8s.io/v1", "events", "default"), thing("events.k8s.io/v1", "Event", "x", **EVENT), 201),
    ],
)
def test_what_the_operator_may_create(
    cluster: Any, agent: Any, caller_of: Any, path: str, body: dict[str, Any], code: int
) -> None:
    operator = caller_of("operator")
    eventually(lambda: operator("POST", in_namespace("v1", "secrets"), thing("v1", "Secret", "another")).code == 403)
    answer = operator("POST", f"{path}?dryRun=All", body)
    already = code == 201 and answer.code == 409  # config/default has one
    assert answer.code == code or already, answer
    if code == 403:
        assert f"the operator may not create {path.rpartition('/')[2]} {body['metadata']['name']}" in answer.message


def test_a_generated_name_is_no_way_around(cluster: Any, agent: Any, caller_of: Any) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"generateName": "another-"}}
    assert caller_of("operator")("POST", in_namespace("v1", "secrets"), body).code == 403


# Peers, by anybody: here by the administrator.


def dry(cluster: Any, verb: str, body: dict[str, Any]) -> str:
    """Return how kubectl refuses; empty when it does not."""
    refused: str = cluster.kubectl(verb, "--dry-run=server", "-f", "-", input=json.dumps(body), check=False).stderr
    return refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0/0", "not a default route"),
        ("::/0", "not a default route"),
        ("10.0.0.0", "must be ADDRESS/LENGTH"),
        ("10.0.0.256/32", "must be ADDRESS/LENGTH"),
        ("10.0.0.0/33", "must be ADDRESS/LENGTH"),
        ("010.0.0.0/8", "must be ADDRESS/LENGTH"),
        ("1:2:3/64", "must be ADDRESS/LENGTH"),
        ("::ffff:10.0.0.0/104", "must be ADDRESS/LENGTH"),
        ("fe80::%eth0/64", "must be ADDRESS/LENGTH"),
        ("rubbish", "must be ADDRESS/LENGTH"),
        ("10.0.0.1/24", "must have no bits beyond its length"),
        ("fd00::1/64", "must have no bits beyond its length"),
        ("0.0.0.0/1", "is not private"),
        ("8.0.0.0/8", "is not private"),
        ("8.8.8.8/32", "is not private"),
        ("10.0.0.0/7", "is not private"),
        ("172.0.0.0/8", "is not private"),
        ("127.0.0.0/8", "is not private"),
        ("169.254.0.0/16", "is not private"),
        ("169.254.169.254/32", "is not private"),
        ("224.0.0.0/4", "is not private"),
        ("240.0.0.0/4", "is not private"),
        ("2000::/3", "is not private"),
        ("2606:4700::/32", "is not private"),
        ("::1/128", "is not private"),
        ("fe80::/64", "is not private"),
        ("ff00::/8", "is not private"),
    ],
)
def test_an_allowed_ip_is_refused_with_its_name_and_a_remedy(cluster: Any, agent: Any, text: str, words: str) -> None:
    for verb, name in (("create", "pol-new"), ("apply", A)):
        refused = dry(cluster, verb, peer(name, spec={"allowedIPs": ["10.1.0.0/16", text]}))
        assert words in refused
        assert text in refused
        assert "10.1.0.0/16" not in refused.partition("give networks inside")[0]
        assert words != "is not private" or "give networks inside 10.0.0.0/8, 172.16.0.0/12" in refused


def test_private_allowed_ips_are_taken(cluster: Any, agent: Any) -> None:
    networks = ["10.0.0.0/8", "10.1.2.3/32", "172.16.0.0/12", "172.31.255.0/24", "192.168.0.0/16", "100.64.0.0/10"]
    networks += ["fc00::/7", "fd12:3456::/48", "fd00::1/128", "203.0.113.0/24", "198.51.100.7/32", "192.0.2.0/25"]
    networks += ["198.18.0.0/15", "2001:db8::/48"]
    assert dry(cluster, "create", peer("pol-new", spec={"allowedIPs": networks})) == ""


def test_what_got_in_before_the_policy_hinders_nobody(cluster: Any, agent: Any) -> None:
    """The operator still writes the rest of such a Peer, and nothing else gets in beside it."""
    old, spec = "8.8.8.0/24", {"persistentKeepalive": 5}
    body = peer("pol-old", spec={"allowedIPs": [old]})
    binding = ("validatingadmissionpolicybinding", "wirekube-peers")
    cluster.kubectl("delete", *binding)
    try:
        eventually(lambda: cluster.kubectl("create", "-f", "-", input=json.dumps(body), check=False).returncode == 0)
        cluster.kubectl(*SERVER_SIDE, input=(ROOT / "config/policy/peers.yaml").read_text())
        eventually(lambda: "is not private" in dry(cluster, "create", body | {"metadata": {"name": "pol-new"}}))
        patch = ("patch", "wkpeer", "pol-old", "--type=merge", "-p")
        cluster.kubectl(*patch, json.dumps({"spec": spec}))
        more = cluster.kubectl(*patch, json.dumps({"spec": {"allowedIPs": [old, "9.9.9.0/24"]}}), check=False)
        assert "allowedIPs of pol-old: 9.9.9.0/24 is not private" in more.stderr
        cluster.kubectl(*patch, json.dumps({"spec": {"allowedIPs": []}}))
        again = cluster.kubectl(*patch, json.dumps({"spec": {"allowedIPs": [old]}}), check=False)
        assert f"{old} is not private" in again.stderr
    finally:
        cluster.kubectl("delete", "wkpeer", "pol-old", "--ignore-not-found")


# The Mesh.


def test_there_is_one_mesh_of_one_name(cluster: Any, agent: Any) -> None:
    mesh = {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(mesh))
    try:
        for metadata in ({"name": "other"}, {"name": "default2"}, {"generateName": "default"}):
            refused = dry(cluster, "create", mesh | {"metadata": metadata})
            assert "its name is default" in refused
        assert "already exists" in dry(cluster, "create", mesh)
        renamed = [{"op": "replace", "path": "/metadata/name", "value": "other"}]
        words = ("patch", "wkmesh", "default", "--type=json", "-p", json.dumps(renamed))
        assert cluster.kubectl(*words, check=False).returncode != 0
        names = cluster.kubectl("get", "wkmesh", "-o", "jsonpath={.items[*].metadata.name}").stdout
        assert names == "default"
    finally:
        cluster.kubectl("delete", "wkmesh", "default")


# All policies.


def test_nothing_passes_when_a_policy_cannot_be_evaluated(cluster: Any, agent: Any) -> None:
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(ROOT / "config/policy")).stdout))
    policies = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"}
    bindings = {each["spec"]["policyName"]: each for each in objects if each not in policies.values()}
    assert policies.keys() == bindings.keys() == {"wirekube-agents", "wirekube-operator", "wirekube-peers"}
    assert {each["spec"]["failurePolicy"] for each in policies.values()} == {"Fail"}
    assert [each["spec"]["validationActions"] for each in bindings.values()] == [["Deny"]] * 3
