# SPDX-License-Identifier: Apache-2.0
"""The operator's policies on a real API server, where RBAC lets it do everything: they hold by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from wirekube.lab.wait import eventually

RBAC = "rbac.authorization.k8s.io/v1"

pytestmark = pytest.mark.timeout(120)


def thing(api: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **more}


def in_namespace(api: str, plural: str, namespace: str = "wirekube-system") -> str:
    return f"/{'api' if api == 'v1' else 'apis'}/{api}/namespaces/{namespace}/{plural}"


LEASES = in_namespace("coordination.k8s.io/v1", "leases")
DEPLOYMENTS, SECRETS = in_namespace("apps/v1", "deployments"), in_namespace("v1", "secrets")
PEERS = "/apis/wirekube.io/v1alpha1/wirekubepeers"


def lease(name: str) -> dict[str, Any]:
    return thing("coordination.k8s.io/v1", "Lease", name, spec={"holderIdentity": "x"})


@pytest.fixture(scope="module")
def operator(everything_allowed: Any, caller_of: Callable[..., Any]) -> Any:
    """The operator; returned when its policies are in force."""
    found = caller_of("operator")
    another, filled = thing("v1", "Secret", "another"), thing("v1", "Secret", "wirekube-relay-3", data={"key": "eA=="})
    eventually(lambda: "may not create" in found("POST", f"{SECRETS}?dryRun=All", another).message)
    eventually(lambda: "only empty" in found("POST", f"{SECRETS}?dryRun=All", filled).message)
    return found


ROLE = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "wirekube-relay"}}
EVENT = {
    "action": "Test", "eventTime": "2026-01-02T03:04:05.000000Z", "reason": "Test", "type": "Normal",
    "reportingController": "test", "reportingInstance": "test", "regarding": {"namespace": "default"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (SECRETS, thing("v1", "Secret", "wirekube-relay"), 201),
        (SECRETS, thing("v1", "Secret", "wirekube-relay-2"), 201),
        (SECRETS, thing("v1", "Secret", "wirekube-relayed"), 403),
        (SECRETS, thing("v1", "Secret", "another"), 403),
        (in_namespace("v1", "secrets", "default"), thing("v1", "Secret", "wirekube-relay"), 403),
        (in_namespace("v1", "serviceaccounts"), thing("v1", "ServiceAccount", "another"), 403),
        (in_namespace("v1", "pods"), thing("v1", "Pod", "x", spec={"containers": [{"name": "c", "image": "x"}]}), 403),
        (LEASES, lease("wirekube-operator"), 201),
        (LEASES, lease("another"), 403),
        (in_namespace("coordination.k8s.io/v1", "leases", "kube-system"), lease("wirekube-operator"), 403),
        (SECRETS, thing("v1", "Secret", "wirekube-operator"), 403),
        (f"/apis/{RBAC}/clusterrolebindings", thing(RBAC, "ClusterRoleBinding", "wirekube-relay-2", **ROLE), 201),
        (f"/apis/{RBAC}/clusterrolebindings", thing(RBAC, "ClusterRoleBinding", "another", **ROLE), 403),
        ("/api/v1/namespaces", thing("v1", "Namespace", "another"), 403),
        (PEERS, thing("wirekube.io/v1alpha1", "WireKubePeer", "pol-new"), 201),
        (in_namespace("events.k8s.io/v1", "events", "default"), thing("events.k8s.io/v1", "Event", "x", **EVENT), 201),
    ],
)
def test_what_the_operator_may_create(operator: Any, path: str, body: dict[str, Any], code: int) -> None:
    answer = operator("POST", f"{path}?dryRun=All", body)
    already = code == 201 and answer.code == 409  # config/default has one
    assert answer.code == code or already, answer
    if code == 403:
        assert f"the operator may not create {path.rpartition('/')[2]} {body['metadata']['name']}" in answer.message


def test_a_generated_name_is_no_way_around(operator: Any) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"generateName": "another-"}}
    assert operator("POST", SECRETS, body).code == 403


SAFE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
CONTAINER = {"name": "relay", "image": "x", "securityContext": SAFE}
POD = {
    "serviceAccountName": "wirekube-relay",
    "securityContext": {"runAsNonRoot": True},
    "containers": [CONTAINER],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}
LABELS = {"app": "test-policies"}
FROM_SECRET = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "wirekube-relay", "key": "key"}}}


def deployment(pod: dict[str, Any]) -> dict[str, Any]:
    spec = {"selector": {"matchLabels": LABELS}, "template": {"metadata": {"labels": LABELS}, "spec": POD | pod}}
    return thing("apps/v1", "Deployment", "wirekube-relay-2", spec=spec)


def container(**more: Any) -> dict[str, Any]:
    return {"containers": [CONTAINER | more]}


def binding(kind: str, **subject: str) -> dict[str, Any]:
    full = {"kind": "ServiceAccount", "name": "wirekube-relay", "namespace": "wirekube-system"} | subject
    return thing(RBAC, kind, "wirekube-relay-2", subjects=[full], **ROLE)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (DEPLOYMENTS, deployment({}), ""),
        (DEPLOYMENTS, deployment({"volumes": [{"name": "x", "configMap": {"name": "wirekube-relay"}}]}), ""),
        (DEPLOYMENTS, deployment({"serviceAccountName": "wirekube-agent"}), "serviceAccountName wirekube-relay"),
        (DEPLOYMENTS, deployment({"serviceAccountName": None}), "serviceAccountName wirekube-relay"),
        (DEPLOYMENTS, deployment({"hostNetwork": True}), "nothing of the host"),
        (DEPLOYMENTS, deployment({"hostPID": True}), "nothing of the host"),
        (DEPLOYMENTS, deployment({"hostIPC": True}), "nothing of the host"),
        (DEPLOYMENTS, deployment({"securityContext": {"runAsNonRoot": False}}), "runAsNonRoot"),
        (DEPLOYMENTS, deployment({"securityContext": None}), "runAsNonRoot"),
        (DEPLOYMENTS, deployment({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}), "volumes"),
        (DEPLOYMENTS, deployment({"volumes": [{"name": "x", "secret": {"secretName": "x"}}]}), "volumes"),
        (DEPLOYMENTS, deployment(container(securityContext={})), "allowPrivilegeEscalation"),
        (DEPLOYMENTS, deployment(container(securityContext={"privileged": True})), "allowPrivilegeEscalation"),
        (DEPLOYMENTS, deployment(container(securityContext=SAFE | {"runAsNonRoot": False})), "run as root"),
        (
            DEPLOYMENTS,
            deployment(container(securityContext=SAFE | {"capabilities": {"add": ["NET_ADMIN"]}})),
            "add cap",
        ),
        (DEPLOYMENTS, deployment(container(env=[FROM_SECRET])), "get Secrets in their environment"),
        (
            DEPLOYMENTS,
            deployment(container(envFrom=[{"secretRef": {"name": "x"}}])),
            "get Secrets in their environment",
        ),
        (
            DEPLOYMENTS,
            deployment({"initContainers": [CONTAINER | {"name": "i", "securityContext": {}}]}),
            "containers of",
        ),
        (SECRETS, thing("v1", "Secret", "wirekube-relay-2"), ""),
        (SECRETS, thing("v1", "Secret", "wirekube-relay-2", data={"key": "eA=="}), "only empty"),
        (SECRETS, thing("v1", "Secret", "wirekube-relay-2", stringData={"key": "x"}), "only empty"),
        (
            SECRETS,
            {
                **thing("v1", "Secret", "wirekube-relay-2", type="kubernetes.io/service-account-token"),
                "metadata": {
                    "name": "wirekube-relay-2",
                    "annotations": {"kubernetes.io/service-account.name": "wirekube-agent"},
                },
            },
            "of type Opaque",
        ),
        (f"/apis/{RBAC}/clusterrolebindings", binding("ClusterRoleBinding"), ""),
        (f"/apis/{RBAC}/clusterrolebindings", binding("ClusterRoleBinding", name="wirekube-operator"), "may bind"),
        (f"/apis/{RBAC}/clusterrolebindings", binding("ClusterRoleBinding", namespace="default"), "may bind"),
        (in_namespace(RBAC, "rolebindings"), binding("RoleBinding"), ""),
        (in_namespace(RBAC, "rolebindings"), binding("RoleBinding", name="wirekube-operator"), "may bind"),
        (
            in_namespace(RBAC, "rolebindings"),
            thing(RBAC, "RoleBinding", "wirekube-relay-2", **ROLE, subjects=[{"kind": "Group", "name": "everybody"}]),
            "may bind",
        ),
    ],
)
def test_the_relay_is_no_way_to_further_rights(operator: Any, path: str, body: dict[str, Any], words: str) -> None:
    answer = operator("POST", f"{path}?dryRun=All", body)
    assert answer.code == (403 if words else 201), answer
    assert words in answer.message


def test_what_is_the_relays_does_not_become_something_else(everything_allowed: Any, operator: Any) -> None:
    good = deployment({})
    everything_allowed.kubectl("apply", "-n", "wirekube-system", "-f", "-", input=json.dumps(good))
    try:
        for bad in (
            {"hostNetwork": True},
            {"serviceAccountName": "wirekube-agent"},
            container(securityContext={"allowPrivilegeEscalation": True}),
        ):
            answer = operator("apply", f"{DEPLOYMENTS}/wirekube-relay-2", deployment(bad))
            assert (answer.code, "operator's Deployments" in answer.message) == (403, True), answer
        assert operator("merge", f"{DEPLOYMENTS}/wirekube-relay-2", {"spec": {"replicas": 2}}).code == 200
    finally:
        everything_allowed.kubectl("delete", "deployment", "wirekube-relay-2", "-n", "wirekube-system")
