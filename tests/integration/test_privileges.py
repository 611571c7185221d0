# SPDX-License-Identifier: Apache-2.0
"""What each component's real token gets from a real API server under config/default: all that it needs, nothing else.

Writes are dry runs: they are authorised and admitted as others are, and change nothing when one passes that should not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wirekube.controllers.kinds import SECRET as SECRETS
from wirekube.controllers.relay.objects import desired, secret
from wirekube.controllers.relay.placement import place
from wirekube.controllers.relay.settings import Image, Settings
from wirekube.lab.wait import eventually
from wirekube.runtime.objects import Kind

API = "wirekube.io/v1alpha1"
A, B, GONE = "prv-a", "prv-b", "prv-gone"
STAMP, MICRO = "2026-01-01T00:00:00Z", "2026-01-02T03:04:05.000000Z"
OURS = "/api/v1/namespaces/wirekube-system"
PEERS, MESHES, SLICES = (f"/apis/{API}/wirekube{each}" for each in ("peers", "meshes", "peerslices"))
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
ELECTION, NODE_LEASES = LEASES.format("wirekube-system"), LEASES.format("wirekube-node-lease")
RBAC, POLICIES = "/apis/rbac.authorization.k8s.io/v1", "/apis/admissionregistration.k8s.io/v1"
DAEMONSETS, DEPLOYMENTS = (f"/apis/apps/v1/namespaces/wirekube-system/{each}" for each in ("daemonsets", "deployments"))
SERVER_SIDE = ("apply", "--server-side", "--force-conflicts", "-f", "-")

pytestmark = pytest.mark.timeout(120)

Request = tuple[str, str, Any]


def condition(type: str, status: str = "True") -> dict[str, str]:
    return {"type": type, "status": status, "reason": "Test", "message": "", "lastTransitionTime": STAMP}


def thing(api: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **more}


def peer(name: str, **more: Any) -> dict[str, Any]:
    return thing(API, "WireKubePeer", name, **more)


def lease(name: str) -> dict[str, Any]:
    spec = {"holderIdentity": name, "leaseDurationSeconds": 50, "renewTime": MICRO}
    return thing("coordination.k8s.io/v1", "Lease", name, spec=spec)


def event(namespace: str) -> Request:
    more = {"action": "Test", "eventTime": MICRO, "reason": "Test", "type": "Normal"}
    more |= {"reportingController": "test", "reportingInstance": "test", "regarding": {"namespace": namespace}}
    body = thing("events.k8s.io/v1", "Event", "prv-event", **more)
    return "POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body


def watch(path: str) -> Request:
    return "GET", f"{path}?watch=true&timeoutSeconds=1&limit=1", None


def path_of(kind: Kind, name: str = "wirekube-relay") -> str:
    group = ("/api/" if kind.group_version == "v1" else "/apis/") + kind.group_version
    return f"{group}/{'namespaces/wirekube-system/' if kind.namespaced else ''}{kind.plural}/{name}"


def made(kind: Kind, obj: dict[str, Any]) -> Request:
    return "apply", path_of(kind), {"apiVersion": kind.group_version, "kind": kind.kind, **obj}


def token_of(account: str) -> Request:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return "POST", f"{OURS}/serviceaccounts/{account}/token", body


SLICE = thing(API, "WireKubePeerSlice", "prv-slice", peers=[{"name": A}])
MESH = thing(API, "WireKubeMesh", "default", spec={"mtu": 1400})
OWN_STATUS = peer(B, status={"listenPort": 51820, "conditions": [condition("DataPlaneReady")]})
SECRET = thing("v1", "Secret", "wirekube-relay", data={"key": "eA=="})
RELAY_SETTINGS = Settings(
    namespace="wirekube-system", owner="0", replicas=2, service_type="NodePort", port=3478,
    image=Image("wirekube:dev", "IfNotPresent", ("pull",)), resources={}, placement=place([], "NodePort", 2), api_ports=(443,),
)  # fmt: skip
THE_RELAY = tuple(made(kind, obj) for kind, obj in desired(RELAY_SETTINGS))
MAKE_SECRET = ("POST", f"{OURS}/secrets", made(SECRETS, secret(RELAY_SETTINGS))[2])
BINDING = next(body for _, path, body in THE_RELAY if "/rolebindings/" in path)
CLUSTER_BINDING = next(body for _, path, body in THE_RELAY if "/clusterrolebindings/" in path)
DEPLOYMENT = next(body for _, path, body in THE_RELAY if "/deployments/" in path)
POD = thing("v1", "Pod", "another", spec={"containers": [{"name": "c", "image": "x"}]})
ADMIN = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}}


def as_agent(deployment: dict[str, Any]) -> dict[str, Any]:
    """The relay's Deployment under the agents' ServiceAccount."""
    changed: dict[str, Any] = json.loads(json.dumps(deployment))
    changed["spec"]["template"]["spec"]["serviceAccountName"] = "wirekube-agent"
    return changed


def for_operator(binding: dict[str, Any]) -> dict[str, Any]:
    """The relay's rights for the operator itself."""
    return binding | {"subjects": [binding["subjects"][0] | {"name": "wirekube-operator"}]}


# What nobody of us may do, whatever else.
NEVER: tuple[Request, ...] = (
    ("GET", "/api/v1/secrets", None),
    ("GET", f"{OURS}/secrets", None),
    ("GET", f"{OURS}/secrets/another", None),
    ("GET", "/api/v1/namespaces/kube-system/secrets", None),
    ("merge", f"/api/v1/nodes/{A}", {"metadata": {"labels": {"wirekube.io/vpn-enabled": "true"}}}),
    ("merge", f"/api/v1/nodes/{A}/status", {"status": {}}),
    ("DELETE", f"/api/v1/nodes/{A}", None),
    ("POST", f"/api/v1/nodes/{A}/proxy/run/x", None),
    ("POST", f"{OURS}/pods", POD),
    ("POST", f"{OURS}/pods/another/exec?command=id", None),
    ("DELETE", f"{OURS}/pods/another", None),
    ("merge", f"{DAEMONSETS}/wirekube-agent", {"spec": {}}),
    ("POST", DAEMONSETS, thing("apps/v1", "DaemonSet", "another")),
    ("DELETE", f"{DAEMONSETS}/wirekube-agent", None),
    token_of("wirekube-agent"),
    token_of("wirekube-operator"),
    token_of("wirekube-relay"),
    ("POST", f"{RBAC}/clusterrolebindings", thing("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "x", **ADMIN)),
    ("POST", f"{RBAC}/clusterroles", thing("rbac.authorization.k8s.io/v1", "ClusterRole", "wirekube-relay-2")),
    ("merge", f"{RBAC}/clusterroles/wirekube-agent", {"rules": []}),
    ("merge", f"{RBAC}/clusterroles/wirekube-relay", {"rules": []}),
    ("DELETE", f"{POLICIES}/validatingadmissionpolicies/wirekube-agents", None),
    ("merge", f"{POLICIES}/validatingadmissionpolicybindings/wirekube-agents", {"spec": {}}),
    ("DELETE", f"{POLICIES}/validatingadmissionpolicybindings/wirekube-agents", None),
    ("merge", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/wirekubepeers.wirekube.io", {"spec": {}}),
    ("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/wirekubepeers.wirekube.io", None),
    ("DELETE", PEERS, None),
    ("POST", MESHES, MESH),
    ("merge", f"{MESHES}/default", {"spec": {"mtu": 1400}}),
    ("PUT", f"{MESHES}/default", MESH),
    ("DELETE", f"{MESHES}/default", None),
    ("DELETE", MESHES, None),
    ("POST", "/api/v1/namespaces", thing("v1", "Namespace", "another")),
    ("DELETE", "/api/v1/namespaces/wirekube-node-lease", None),
    ("DELETE", f"{LEASES.format('kube-node-lease')}/{A}", None),
    ("DELETE", ELECTION, None),
    ("DELETE", NODE_LEASES, None),
    event("kube-system"),
)

# What agents and relays may not do either.
NOT_THE_OPERATOR: tuple[Request, ...] = (
    ("GET", "/api/v1/nodes", None),
    ("GET", f"/api/v1/nodes/{B}", None),
    ("GET", "/api/v1/pods", None),
    ("GET", f"{OURS}/configmaps", None),
    ("POST", PEERS, peer("prv-new")),
    ("apply", f"{PEERS}/prv-new", peer("prv-new")),
    ("apply", f"{PEERS}/{B}", peer(B, spec={"allowedIPs": ["10.0.0.0/24"]})),
    ("merge", f"{PEERS}/{B}", {"spec": {"allowedIPs": ["10.0.0.0/24"]}}),
    ("merge", f"{PEERS}/{B}", {"metadata": {"labels": {"x": "y"}}}),
    ("PUT", f"{PEERS}/{B}", peer(B)),
    ("DELETE", f"{PEERS}/{B}", None),
    ("merge", f"{MESHES}/default/status", {"status": {"peers": 9}}),
    ("POST", SLICES, SLICE),
    ("apply", f"{SLICES}/prv-slice", SLICE),
    ("merge", f"{SLICES}/prv-slice", {}),
    ("DELETE", f"{SLICES}/prv-slice", None),
    ("DELETE", SLICES, None),
    ("GET", f"{ELECTION}/wirekube-operator", None),
    ("POST", ELECTION, lease("wirekube-operator")),
    ("apply", f"{ELECTION}/wirekube-operator", lease("wirekube-operator")),
    ("merge", f"{ELECTION}/wirekube-operator", {"spec": {"holderIdentity": "thief"}}),
    ("PUT", f"{ELECTION}/wirekube-operator", lease("wirekube-operator")),
    ("DELETE", f"{ELECTION}/wirekube-operator", None),
    ("DELETE", f"{NODE_LEASES}/{B}", None),
    ("GET", NODE_LEASES, None),
    ("GET", f"{NODE_LEASES}/{B}", None),
    event("wirekube-system"),
)

AGENT: tuple[Request, ...] = (
    ("GET", PEERS, None),
    watch(PEERS),
    ("apply", f"{PEERS}/{A}/status", peer(A, status={"listenPort": 1})),
    ("merge", f"{PEERS}/{A}/status", {"status": {"listenPort": 1}}),
    ("json", f"{PEERS}/{A}/status", [{"op": "remove", "path": "/status"}]),
    ("PUT", f"{PEERS}/{B}/status", OWN_STATUS),
    ("apply", f"{PEERS}/{B}/status", peer(B, status={"conditions": [condition("Ready", "False")]})),
    ("apply", f"{PEERS}/{B}/status", peer(B, status={"conditions": [condition("KeyAccepted")]})),
    ("apply", f"{PEERS}/{B}/status", peer(B, status={"conditions": [condition("AllowedIPsAccepted")]})),
    ("merge", f"{PEERS}/{B}/status", {"status": {"conditions": None}}),
    ("merge", f"{PEERS}/{B}/status", {"status": None}),
    ("GET", f"{OURS}/secrets/wirekube-relay", None),
    ("merge", f"{OURS}/secrets/wirekube-relay", SECRET),
    ("apply", f"{NODE_LEASES}/{A}", lease(A)),
    ("POST", NODE_LEASES, lease(A)),
    ("merge", f"{NODE_LEASES}/{A}", {"spec": {"holderIdentity": B}}),
)

RELAY: tuple[Request, ...] = (
    ("apply", f"{PEERS}/{B}/status", OWN_STATUS),
    ("GET", MESHES, None),
    ("GET", f"{OURS}/configmaps/another", None),
    ("merge", f"{OURS}/configmaps/another", {}),
    ("DELETE", f"{OURS}/configmaps/wirekube-relay", None),
    ("PUT", f"{OURS}/secrets/wirekube-relay", SECRET),
    ("DELETE", f"{OURS}/secrets/wirekube-relay", None),
    ("POST", f"{OURS}/secrets", thing("v1", "Secret", "wirekube-relay-2")),
    ("apply", f"{NODE_LEASES}/{B}", lease(B)),
    ("POST", NODE_LEASES, lease(B)),
    event("default"),
)

OPERATOR: tuple[Request, ...] = (
    ("merge", f"{MESHES}/other/status", {}),
    ("GET", f"{OURS}/secrets/wirekube-relay", None),
    ("merge", f"{OURS}/secrets/wirekube-relay", SECRET),
    ("apply", f"{OURS}/secrets/wirekube-relay", SECRET),
    ("PUT", f"{OURS}/secrets/wirekube-relay", SECRET),
    ("POST", f"{OURS}/secrets", thing("v1", "Secret", "another")),
    ("POST", f"{OURS}/serviceaccounts", thing("v1", "ServiceAccount", "another")),
    ("DELETE", f"{OURS}/serviceaccounts/wirekube-agent", None),
    ("GET", "/api/v1/namespaces/kube-system/configmaps", None),
    ("GET", "/api/v1/namespaces/default/services/another", None),
    ("apply", f"{NODE_LEASES}/{A}", lease(A)),
    ("POST", NODE_LEASES, lease(A)),
    ("POST", ELECTION, lease("another")),
    ("merge", f"{ELECTION}/another", {}),
    ("GET", ELECTION, None),
    ("PUT", f"{ELECTION}/wirekube-operator", lease("wirekube-operator")),
    ("DELETE", f"{ELECTION}/wirekube-operator", None),
    ("merge", f"{OURS}/configmaps/another", {}),
    ("merge", f"{OURS}/serviceaccounts/wirekube-agent", {}),
    ("GET", f"{OURS}/serviceaccounts", None),
    ("merge", f"{DEPLOYMENTS}/wirekube-operator", {"spec": {"replicas": 0}}),
    ("DELETE", f"{DEPLOYMENTS}/wirekube-operator", None),
    ("POST", DEPLOYMENTS, DEPLOYMENT | {"metadata": {"name": "another"}}),
    ("apply", f"{DEPLOYMENTS}/wirekube-relay", as_agent(DEPLOYMENT)),
    ("merge", f"{RBAC}/clusterrolebindings/wirekube-operator", {}),
    ("apply", f"{RBAC}/clusterrolebindings/wirekube-relay", CLUSTER_BINDING | ADMIN),
    ("apply", f"{RBAC}/clusterrolebindings/wirekube-relay", for_operator(CLUSTER_BINDING)),
    ("apply", f"{RBAC}/namespaces/wirekube-system/rolebindings/wirekube-relay", for_operator(BINDING)),
    ("POST", f"{RBAC}/namespaces/wirekube-system/rolebindings", BINDING | {"metadata": {"name": "another"}}),
    ("POST", f"{OURS}/secrets", MAKE_SECRET[2] | {"metadata": {"name": "wirekube-relay-2"}, "data": {"key": "eA=="}}),
)

FORBIDDEN = {
    "agent": NEVER + NOT_THE_OPERATOR + AGENT,
    "relay": NEVER + NOT_THE_OPERATOR + RELAY,
    "operator": NEVER + OPERATOR,
}

NEEDED: dict[str, tuple[Request, ...]] = {
    "agent": (
        ("GET", MESHES, None),
        watch(MESHES),
        ("GET", f"{MESHES}/default", None),
        ("GET", SLICES, None),
        watch(SLICES),
        ("GET", f"{SLICES}/prv-slice", None),
        ("GET", f"{PEERS}/{B}", None),
        ("apply", f"{PEERS}/{B}/status", OWN_STATUS),
        ("apply", f"{NODE_LEASES}/{B}", lease(B)),
        event("default"),
    ),
    "operator": (
        ("GET", "/api/v1/nodes", None),
        watch("/api/v1/nodes"),
        ("GET", MESHES, None),
        watch(MESHES),
        ("apply", f"{MESHES}/default/status", thing(API, "WireKubeMesh", "default", status={"peers": 2})),
        ("GET", PEERS, None),
        watch(PEERS),
        ("apply", f"{PEERS}/prv-new", peer("prv-new", spec={"addresses": ["198.18.0.1/32"]})),
        ("apply", f"{PEERS}/{A}", peer(A, spec={"addresses": ["198.18.0.1/32"]})),
        ("apply", f"{PEERS}/{A}/status", peer(A, status={"conditions": [condition("Ready"), condition("KeyAccepted")]})),
        ("DELETE", f"{PEERS}/{A}", None),
        ("GET", SLICES, None),
        watch(SLICES),
        ("POST", SLICES, SLICE | {"metadata": {"name": "prv-slice-2"}}),
        ("apply", f"{SLICES}/prv-slice", SLICE),
        ("DELETE", f"{SLICES}/prv-slice", None),
        ("GET", f"{ELECTION}/wirekube-operator", None),
        ("merge", f"{ELECTION}/wirekube-operator", {"spec": {"leaseTransitions": 2}}),
        ("GET", NODE_LEASES, None),
        watch(NODE_LEASES),
        ("DELETE", f"{NODE_LEASES}/{A}", None),
        *THE_RELAY,
        *(("DELETE", path, None) for _, path, _ in THE_RELAY),
        ("DELETE", f"{OURS}/secrets/wirekube-relay", None),
        ("GET", f"{DEPLOYMENTS}/wirekube-operator", None),
        ("GET", "/apis/discovery.k8s.io/v1/namespaces/wirekube-system/endpointslices", None),
        ("GET", "/apis/networking.k8s.io/v1/servicecidrs", None),
        ("GET", "/api/v1/namespaces/default/services/kubernetes", None),
        event("default"),
    ),
    "relay": (
        ("GET", PEERS, None),
        watch(PEERS),
        ("GET", f"{PEERS}/{A}", None),
        ("GET", f"{OURS}/secrets/wirekube-relay", None),
        ("apply", f"{OURS}/secrets/wirekube-relay", SECRET),
        ("GET", f"{OURS}/configmaps/wirekube-relay", None),
        ("merge", f"{OURS}/configmaps/wirekube-relay", {"data": {"publicKey": "x"}}),
    ),
}  # fmt: skip


def dry(request: Request) -> Request:
    verb, path, body = request
    return request if verb == "GET" else (verb, f"{path}{'&' if '?' in path else '?'}dryRun=All", body)


def named(table: dict[str, tuple[Request, ...]]) -> list[Any]:
    rows = [(who, request) for who, requests in table.items() for request in requests]
    return [pytest.param(who, each, id=f"{who}-{each[0]}-{each[1]}-{at}") for at, (who, each) in enumerate(rows)]


@pytest.fixture(scope="module")
def cluster(installed: Any) -> Iterator[Any]:
    """A Mesh, Nodes with Peers that the operator has judged, a Lease of one of them."""
    nodes = [thing("v1", "Node", name) for name in (A, B, GONE)]
    for each in (*nodes, peer(A), peer(B), SLICE, thing(API, "WireKubeMesh", "default")):
        installed.kubectl(*SERVER_SIDE, input=json.dumps(each))
    installed.kubectl(*SERVER_SIDE, "-n", "wirekube-node-lease", input=json.dumps(lease(A)))
    judged = json.dumps({"status": {"conditions": [condition("DataPlaneReady"), condition("Ready")]}})
    for name in (A, B):
        installed.kubectl("patch", "wkpeer", name, "--subresource=status", "--type=merge", "-p", judged)
    yield installed
    installed.kubectl("delete", "nodes", A, B, GONE, "--ignore-not-found")
    installed.kubectl("delete", "wkpeer", A, B)
    installed.kubectl("delete", "wkmesh/default", "wkslice/prv-slice")
    installed.kubectl("delete", "lease", A, "-n", "wirekube-node-lease")


@pytest.fixture(scope="module")
def callers(cluster: Any, caller_of: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """A caller with the token of each component, as it gets it; returned when all rules are in force.

    Its own Lease and the relay the operator makes itself, by its token.
    """
    operator, unbound = caller_of("operator"), caller_of("agent")
    eventually(lambda: "is bound to no node" in unbound("merge", f"{PEERS}/{B}/status", {}).message)
    eventually(lambda: operator("GET", "/api/v1/secrets").code == 403)
    for each in (("POST", ELECTION, lease("wirekube-operator")), MAKE_SECRET, *THE_RELAY):
        eventually(lambda each=each: operator(*each).code in {200, 201, 409}, what=str(each))
    found = {"agent": caller_of("agent", Node=B), "operator": operator, "relay": caller_of("relay")}
    for each in found.values():
        eventually(lambda each=each: each("GET", "/api/v1/secrets").code == 403)
    eventually(lambda: found["relay"]("GET", PEERS).code == 200)
    yield found
    for _, path, _ in (*THE_RELAY, ("", f"{OURS}/secrets/wirekube-relay", None)):
        assert operator("DELETE", path).code == 200
    cluster.kubectl("delete", "lease", "wirekube-operator", "-n", "wirekube-system")


@pytest.mark.parametrize(("who", "request_"), named(FORBIDDEN))
def test_what_a_component_may_not_do(callers: dict[str, Any], who: str, request_: Request) -> None:
    answer = callers[who](*dry(request_))
    assert answer.code == 403, answer


@pytest.mark.parametrize(("who", "request_"), named(NEEDED))
def test_what_a_component_must_be_able_to_do(callers: dict[str, Any], who: str, request_: Request) -> None:
    answer = callers[who](*dry(request_))
    assert answer.code in {200, 201}, answer


@pytest.mark.parametrize("who", FORBIDDEN)
@pytest.mark.parametrize(
    "other",
    [
        {"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"},
        {"Impersonate-User": "system:serviceaccount:wirekube-system:wirekube-operator"},
        {
            "Impersonate-User": "system:serviceaccount:wirekube-system:wirekube-agent",
            "Impersonate-Extra-authentication.kubernetes.io%2fnode-name": A,
        },
        {"Impersonate-User": f"system:node:{A}", "Impersonate-Group": "system:nodes"},
    ],
    ids=lambda other: str(other["Impersonate-User"]),
)
def test_nobody_is_taken_for_another(callers: dict[str, Any], who: str, other: dict[str, str]) -> None:
    answer = callers[who]("GET", PEERS, headers=other)
    assert answer.code == 403
    assert "cannot impersonate" in answer.message


def test_an_agent_makes_no_peer_by_its_status(callers: dict[str, Any]) -> None:
    assert callers["agent"]("apply", f"{PEERS}/prv-new/status", peer("prv-new", status={})).code == 404


def test_a_token_ends_with_what_it_is_bound_to(cluster: Any, callers: dict[str, Any], caller_of: Any) -> None:
    """Also when there is a Node, or a Pod, of that name again."""
    spec = {"serviceAccountName": "wirekube-agent", "nodeName": B, "containers": [{"name": "c", "image": "x"}]}
    pod = thing("v1", "Pod", "prv-pod", spec=spec)
    pod["metadata"]["namespace"] = "wirekube-system"
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    by_node, by_pod = caller_of("agent", Node=GONE), caller_of("agent", Pod="prv-pod")
    assert [each("GET", MESHES).code for each in (by_node, by_pod)] == [200, 200]
    cluster.kubectl("delete", "node", GONE)
    cluster.kubectl("delete", "pod", "prv-pod", "-n", "wirekube-system", "--force")
    for each in (by_node, by_pod):
        eventually(lambda each=each: each("GET", MESHES).code == 401, 30)
    try:
        for body in (thing("v1", "Node", GONE), pod):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(body))
        cluster.kubectl(*SERVER_SIDE, input=json.dumps(peer(GONE)))
        assert by_node("merge", f"{PEERS}/{GONE}/status", {"status": {"listenPort": 1}}).code == 401
        assert by_pod("merge", f"{PEERS}/{B}/status", {"status": {"listenPort": 1}}).code == 401
    finally:
        cluster.kubectl("delete", "pod", "prv-pod", "-n", "wirekube-system", "--force")
        cluster.kubectl("delete", "wkpeer", GONE, "--ignore-not-found")
