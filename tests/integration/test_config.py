# SPDX-License-Identifier: Apache-2.0
"""The manifests: the API server takes them, and nobody may do more than the design says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "system:serviceaccount:wirekube-system:wirekube-"


@pytest.fixture(scope="module")
def cluster(control_plane: Any) -> Any:
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/default"))
    return control_plane


@pytest.fixture(scope="module")
def rendered(control_plane: Any) -> dict[str, Any]:
    """What `kubectl apply -k config/default` sends, by kind and name."""
    text = control_plane.kubectl("kustomize", str(ROOT / "config/default")).stdout
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


WORKLOADS = ("DaemonSet/wirekube-agent", "Deployment/wirekube-operator")


def pod_of(rendered: dict[str, Any], workload: str, namespace: str = "wirekube-system") -> Any:
    template = rendered[workload]["spec"]["template"]
    metadata = template["metadata"] | {"name": "probe", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def containers_of(rendered: dict[str, Any]) -> dict[str, Any]:
    specs = [rendered[each]["spec"]["template"]["spec"] for each in WORKLOADS]
    return {each["name"]: each for spec in specs for each in [*spec.get("initContainers", []), *spec["containers"]]}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_pods_are_admitted(cluster: Any, rendered: dict[str, Any], workload: str) -> None:
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod_of(rendered, workload)))


def test_applied_again_nothing_changes(cluster: Any) -> None:
    again = cluster.kubectl(
        "diff", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/default"), check=False
    )
    assert (again.returncode, again.stdout) == (0, ""), again.stderr


def test_a_client_side_apply_of_everything_is_accepted(cluster: Any) -> None:
    cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "config/default"))


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("cleanup", ["NET_ADMIN", "SYS_MODULE"]),
        ("agent", ["NET_ADMIN", "SYS_MODULE"]),
        ("wireguard", ["NET_ADMIN"]),
        ("operator", []),
    ],
)
def test_capabilities(rendered: dict[str, Any], name: str, capabilities: list[str]) -> None:
    security = containers_of(rendered)[name]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]} | ({"add": capabilities} if capabilities else {})
    assert not security.get("privileged")
    assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)


def test_the_agents_pod(rendered: dict[str, Any]) -> None:
    spec = rendered["DaemonSet/wirekube-agent"]["spec"]["template"]["spec"]
    assert [each["command"] for each in spec["initContainers"]] == [["wirekube-agent", "cleanup", "--stale"]]
    assert [each["name"] for each in spec["containers"]] == ["wireguard", "agent"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}


def test_only_the_agent_itself_gets_its_token_and_only_the_helper_needs_no_more_than_three_folders(
    rendered: dict[str, Any],
) -> None:
    spec = rendered["DaemonSet/wirekube-agent"]["spec"]["template"]["spec"]
    mounts = {
        each["name"]: {mount["mountPath"] for mount in each["volumeMounts"]}
        for each in spec["initContainers"] + spec["containers"]
    }
    assert spec["automountServiceAccountToken"] is False
    assert mounts["wireguard"] == {"/run/wirekube", "/dev/net", "/var/run/wireguard"}
    assert mounts["agent"] - mounts["cleanup"] == {"/var/run/secrets/kubernetes.io/serviceaccount"}


def test_manifests_name_no_version_of_an_image_themselves(rendered: dict[str, Any]) -> None:
    images = {name: each["image"] for name, each in containers_of(rendered).items()}
    ours = dict.fromkeys(("cleanup", "agent", "operator"), "wirekube:dev")
    assert images == ours | {"wireguard": "wirekube-wireguard:dev"}
    named = [path.name for path in ROOT.glob("config/*/*.yaml") if "wirekube:" in path.read_text()]
    assert named == []


def test_the_clean_up_is_admitted_and_has_the_image_of_the_rest(cluster: Any, rendered: dict[str, Any]) -> None:
    text = cluster.kubectl("kustomize", str(ROOT / "config/cleanup")).stdout
    namespace, daemonset = yaml.safe_load_all(text)
    cluster.kubectl("apply", "-f", "-", input=json.dumps(namespace))
    name = namespace["metadata"]["name"]
    pod = pod_of({"DaemonSet/cleanup": daemonset}, "DaemonSet/cleanup", name)
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))
    containers = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    assert {each["image"] for each in containers} == {containers_of(rendered)["agent"]["image"]}
    assert containers[0]["command"] == ["wirekube-agent", "cleanup"]


def test_pods_on_one_host_listen_on_ports_of_their_own_and_on_loopback_only(rendered: dict[str, Any]) -> None:
    asked = set()
    for workload in ("DaemonSet/wirekube-agent", "Deployment/wirekube-operator"):
        for each in rendered[workload]["spec"]["template"]["spec"]["containers"]:
            probes = [probe["httpGet"] for name, probe in each.items() if name.endswith("Probe")]
            assert {probe["host"] for probe in probes} <= {"127.0.0.1"}
            asked |= {(each["name"], probe["port"]) for probe in probes}
    assert asked == {("agent", 9586), ("operator", 9585)}


def test_the_scheduler_keeps_two_operators_off_one_node_and_an_update_ends_on_the_only_one(
    rendered: dict[str, Any],
) -> None:
    spec = rendered["Deployment/wirekube-operator"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert [each["hostPort"] for each in container["ports"]] == [9585]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_sample_is_a_valid_mesh(cluster: Any) -> None:
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "config/samples"))


@pytest.mark.parametrize(
    ("who", "verb", "what", "allowed"),
    [
        ("agent", "watch", "wirekubepeerslices.wirekube.io", True),
        ("agent", "watch", "wirekubepeers.wirekube.io", False),
        ("agent", "get", "wirekubemeshes.wirekube.io", True),
        ("agent", "patch", "wirekubepeers.wirekube.io/status", True),
        ("agent", "update", "wirekubepeers.wirekube.io/status", False),
        ("agent", "patch", "wirekubepeers.wirekube.io", False),
        ("agent", "create", "wirekubepeers.wirekube.io", False),
        ("agent", "delete", "wirekubepeers.wirekube.io", False),
        ("agent", "deletecollection", "wirekubepeers.wirekube.io", False),
        ("agent", "patch", "wirekubemeshes.wirekube.io/status", False),
        ("agent", "get", "secrets", False),
        ("agent", "list", "nodes", False),
        ("agent", "create", "events.events.k8s.io", True),
        ("operator", "create", "wirekubepeers.wirekube.io", True),
        ("operator", "delete", "wirekubepeers.wirekube.io", True),
        ("operator", "patch", "wirekubemeshes.wirekube.io", False),
        ("operator", "patch", "nodes", False),
        ("operator", "get", "endpointslices.discovery.k8s.io/kubernetes", True),
        ("operator", "get", "endpointslices.discovery.k8s.io/other", False),
        ("operator", "get", "secrets", False),
        ("operator", "create", "clusterrolebindings.rbac.authorization.k8s.io", False),
        ("operator", "patch", "clusterroles.rbac.authorization.k8s.io/wirekube-relay", False),
        ("operator", "bind", "clusterroles.rbac.authorization.k8s.io/wirekube-relay", True),
        ("operator", "bind", "clusterroles.rbac.authorization.k8s.io/cluster-admin", False),
        ("operator", "escalate", "clusterroles.rbac.authorization.k8s.io/wirekube-relay", False),
        ("operator", "create", "pods", False),
    ],
)
def test_rights(cluster: Any, who: str, verb: str, what: str, allowed: bool) -> None:
    resource, _, subresource = what.partition("/") if what.endswith("/status") else (what, "", "")
    arguments = ["auth", "can-i", verb, resource, "-n", "default", f"--as={ACCOUNT}{who}"]
    if subresource:
        arguments.append(f"--subresource={subresource}")
    assert cluster.kubectl(*arguments, check=False).stdout.strip() == ("yes" if allowed else "no")


WRITES = ("watch", "create", "patch", "delete")
OF_THE_RELAY = (
    "configmaps",
    "serviceaccounts",
    "services",
    "deployments.apps",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "rolebindings.rbac.authorization.k8s.io",
)


@pytest.mark.parametrize(
    ("who", "namespace", "verbs"),
    [
        ("agent", "wirekube-node-lease", {"create", "patch"}),
        ("operator", "wirekube-node-lease", {"get", "list", "watch", "delete"}),
        ("relay", "wirekube-node-lease", set()),
        ("agent", "wirekube-system", set()),
        ("agent", "default", set()),
        ("operator", "default", set()),
    ],
)
def test_leases_of_agents_are_renewed_by_agents_and_cleared_away_by_the_operator(
    cluster: Any, who: str, namespace: str, verbs: set[str]
) -> None:
    allowed = set()
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"):
        arguments = ("auth", "can-i", verb, "leases.coordination.k8s.io", "-n", namespace, f"--as={ACCOUNT}{who}")
        if cluster.kubectl(*arguments, check=False).stdout.strip() == "yes":
            allowed.add(verb)
    assert allowed == verbs


@pytest.mark.parametrize(
    ("verb", "lease", "allowed"),
    [
        ("create", "", True),
        ("get", "wirekube-operator", True),
        ("patch", "wirekube-operator", True),
        ("update", "wirekube-operator", False),
        ("delete", "wirekube-operator", False),
        ("patch", "another", False),
        ("list", "", False),
    ],
)
def test_the_operator_may_use_its_own_lease_only(cluster: Any, verb: str, lease: str, allowed: bool) -> None:
    what = f"leases.coordination.k8s.io/{lease}" if lease else "leases.coordination.k8s.io"
    arguments = ("auth", "can-i", verb, what, "-n", "wirekube-system", f"--as={ACCOUNT}operator")
    assert cluster.kubectl(*arguments, check=False).stdout.strip() == ("yes" if allowed else "no")


@pytest.mark.parametrize(
    ("verb", "secret", "allowed"),
    [
        ("create", "", True),
        ("delete", "wirekube-relay", True),
        ("delete", "another", False),
        ("get", "wirekube-relay", False),
        ("list", "", False),
        ("watch", "", False),
        ("patch", "wirekube-relay", False),
        ("update", "wirekube-relay", False),
    ],
)
def test_the_operator_makes_the_relays_secret_and_cannot_read_it(
    cluster: Any, verb: str, secret: str, allowed: bool
) -> None:
    assert may(cluster, "operator", verb, f"secrets/{secret}" if secret else "secrets") is allowed


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        *((verb, f"{kind}/wirekube-relay", True) for verb in WRITES for kind in OF_THE_RELAY),
        *((verb, f"{kind}/another", False) for verb in WRITES for kind in OF_THE_RELAY),
        *((verb, kind, False) for verb in ("list", "create", "deletecollection") for kind in OF_THE_RELAY),
        ("get", "deployments.apps/wirekube-operator", True),
        ("patch", "deployments.apps/wirekube-operator", False),
        ("watch", "endpointslices.discovery.k8s.io", True),
        ("patch", "endpointslices.discovery.k8s.io", False),
        ("bind", "roles.rbac.authorization.k8s.io/wirekube-relay", True),
        ("bind", "roles.rbac.authorization.k8s.io/another", False),
        ("patch", "roles.rbac.authorization.k8s.io/wirekube-relay", False),
        ("create", "pods", False),
        ("create", "serviceaccounts/token", False),
    ],
)
def test_the_operator_may_write_the_relays_objects_by_name(cluster: Any, verb: str, what: str, allowed: bool) -> None:
    assert may(cluster, "operator", verb, what) is allowed


def may(cluster: Any, who: str, verb: str, what: str, namespace: str = "wirekube-system") -> bool:
    arguments = ("auth", "can-i", verb, what, "-n", namespace, f"--as={ACCOUNT}{who}")
    return str(cluster.kubectl(*arguments, check=False).stdout).strip() == "yes"
