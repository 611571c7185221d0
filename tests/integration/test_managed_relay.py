# SPDX-License-Identifier: Apache-2.0
"""The managed relay on a real API server, by the operator's process with the operator's own rights.

There are no controllers here: what those of a cluster would do (replicas that get ready, a load balancer's address) the
tests write in their place.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "wirekube-system", "wirekube-relay"
API = "wirekube.io/v1alpha1"
KEY = base64.b64encode(bytes(range(32))).decode()
NAMESPACED = (
    "configmap",
    "deployment",
    "networkpolicy",
    "poddisruptionbudget",
    "rolebinding",
    "secret",
    "service",
    "serviceaccount",
)
MANAGED = {"mode": "auto", "provider": "managed"}


class Cluster:
    """What a person does, and what a cluster's controllers would do."""

    def __init__(self, plane: Any, log: Path) -> None:
        self.kubectl, self.log = plane.kubectl, log

    def apply(self, *objects: Any) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, what: str, name: str = NAME, namespace: str | None = NAMESPACE) -> Any:
        where = ("-n", namespace) if namespace else ()
        done = self.kubectl("get", what, name, *where, "-o", "json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def patch(self, what: str, patch: Any, *more: str, name: str = NAME, how: str = "merge") -> None:
        self.kubectl("patch", what, name, "-n", NAMESPACE, f"--type={how}", "-p", json.dumps(patch), *more)

    def relay(self, **relay: Any) -> None:
        """Set spec.relay as a whole."""
        spec = [{"op": "replace", "path": "/spec/relay", "value": relay}]
        self.kubectl("patch", "wkmesh", "default", "--type=json", "-p", json.dumps(spec))

    def there(self) -> set[str]:
        found = {kind for kind in NAMESPACED if self.get(kind)}
        return found | ({"clusterrolebinding"} if self.get("clusterrolebinding", namespace=None) else set())

    def container(self) -> Any:
        return self.get("deployment")["spec"]["template"]["spec"]["containers"][0]

    def status(self) -> Any:
        return self.get("wkmesh", "default", None).get("status", {})

    def said(self, kind: str = "RelayReady") -> str:
        found = [each for each in self.status().get("conditions", []) if each["type"] == kind]
        return f"{found[0]['status']} {found[0]['reason']}" if found else ""

    def message(self) -> str:
        return str(next(each for each in self.status()["conditions"] if each["type"] == "RelayReady")["message"])

    def node(self, name: str, *addresses: tuple[str, str], labels: Any = None) -> None:
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}})
        listed = [{"type": kind, "address": address} for kind, address in addresses]
        self.kubectl("patch", "node", name, "--subresource=status", "-p", json.dumps({"status": {"addresses": listed}}))

    def pods(self, **ready: bool) -> None:
        """Let relays run, one on each node named, as the EndpointSlice controller tells it."""
        endpoints = [
            {
                "addresses": [f"10.244.0.{number}"],
                "nodeName": node,
                "conditions": {"ready": is_ready},
                "targetRef": {"kind": "Pod", "name": f"relay-{node}", "namespace": NAMESPACE},
            }
            for number, (node, is_ready) in enumerate(ready.items(), 1)
        ]
        metadata = {
            "name": f"{NAME}-abcde",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        }
        ports = [{"name": "relay", "port": 3478, "protocol": "TCP"}]
        slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
        self.apply(slices | {"metadata": metadata, "endpoints": endpoints, "ports": ports})

    def balancer(self, *ingress: Any) -> None:
        self.patch("service", {"status": {"loadBalancer": {"ingress": list(ingress)}}}, "--subresource=status")

    def publish(self) -> None:
        """What a relay does."""
        self.patch("configmap", {"data": {"publicKey": KEY}})

    def versions(self) -> dict[str, str]:
        return {kind: self.get(kind)["metadata"]["resourceVersion"] for kind in sorted(self.there() & {*NAMESPACED})}


def operator_deployment(image: str) -> Any:
    """As config/operator has it, as far as the relay is concerned; nothing runs it here."""
    labels = {"app.kubernetes.io/name": "wirekube-operator"}
    container = {"name": "operator", "image": image}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "wirekube-operator", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


@pytest.fixture(scope="module")
def cluster(control_plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("managed")
    cluster = Cluster(control_plane, folder / "log")
    cluster.kubectl("apply", "-f", str(ROOT / "config/default/namespace.yaml"))
    for part in ("config/crd", "config/rbac", "config/policy"):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / part))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    mesh = {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}, "spec": {"relay": MANAGED}}
    cluster.apply(operator_deployment("registry.example.com/wirekube:1"), mesh)
    kubeconfig = folder / "kubeconfig"
    control_plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)
    process = start(kubeconfig, cluster.log)
    yield cluster
    process.send_signal(signal.SIGTERM)
    code = process.wait(20)
    cluster.kubectl("delete", "wkmesh", "--all")
    for kind in NAMESPACED:
        cluster.kubectl("delete", kind, NAME, "-n", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("delete", "clusterrolebinding", NAME, "--ignore-not-found")
    cluster.kubectl("delete", "deployment", "wirekube-operator", "-n", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("delete", "endpointslice", f"{NAME}-abcde", "-n", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("delete", "nodes", "--all")
    assert code == 0, cluster.log.read_text()
    assert "Traceback" not in cluster.log.read_text()


def start(kubeconfig: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "WIREKUBE_HEALTH": "127.0.0.1:0"}
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "wirekube.controllers.main"], env=environment, stderr=output)


EVERYTHING = {*NAMESPACED, "clusterrolebinding"}


@pytest.fixture
def managed(cluster: Cluster) -> Cluster:
    """The relay as the Mesh asks for it by default, without any pod and without a public key."""
    cluster.kubectl("delete", "nodes", "--all")
    cluster.relay(**MANAGED)
    eventually(lambda: cluster.there() == EVERYTHING, 30)
    cluster.pods()
    cluster.patch("configmap", {"data": None})
    cluster.balancer()
    return cluster


def test_the_mesh_becomes_a_relay(managed: Cluster) -> None:
    uid = managed.get("wkmesh", "default", None)["metadata"]["uid"]
    for kind in NAMESPACED:
        metadata = managed.get(kind)["metadata"]
        assert [each["uid"] for each in metadata["ownerReferences"]] == [uid], kind
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "wirekube-operator"
    spec = managed.get("service")["spec"]
    assert (spec["type"], spec["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert [(each["port"], each["protocol"]) for each in spec["ports"]] == [(3478, "TCP")]
    assert managed.get("deployment")["spec"]["replicas"] == 1
    assert managed.container()["image"] == "registry.example.com/wirekube:1"
    assert "data" not in managed.get("secret")
    eventually(lambda: managed.said() == "False RelayStarting")
    assert managed.said("Ready") == "False RelayStarting"


def test_the_relays_pods_are_admitted_where_pods_are_restricted(managed: Cluster) -> None:
    template = eventually(lambda: managed.get("deployment"))["spec"]["template"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    strict = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict-relay", "labels": labels}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": "strict-relay"}}
    managed.apply(strict, account)
    metadata = template["metadata"] | {"name": "probe", "namespace": "strict-relay"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    create = ("create", "--dry-run=server", "-f", "-")
    managed.kubectl(*create, input=json.dumps(pod))
    loose = pod | {"spec": pod["spec"] | {"hostNetwork": True}}
    assert "PodSecurity" in managed.kubectl(*create, input=json.dumps(loose), check=False).stderr


def test_the_relay_gets_the_rights_of_its_role_and_no_more(managed: Cluster) -> None:
    def may(verb: str, what: str) -> bool:
        account = f"--as=system:serviceaccount:{NAMESPACE}:{NAME}"
        done = managed.kubectl("auth", "can-i", verb, what, "-n", NAMESPACE, account, check=False)
        return str(done.stdout).strip() == "yes"

    own = [f"{kind}/{NAME}" for kind in ("secrets", "configmaps")]
    assert all(may(verb, what) for verb in ("get", "patch") for what in own)
    assert may("watch", "wirekubepeers.wirekube.io")
    for verb, what in (
        ("update", own[0]),
        ("delete", own[0]),
        ("get", "secrets/another"),
        ("list", "secrets"),
        ("create", "configmaps"),
        ("patch", "wirekubepeers.wirekube.io"),
        ("get", "wirekubemeshes.wirekube.io"),
        ("get", "pods"),
    ):
        assert not may(verb, what), (verb, what)


def test_what_somebody_changes_or_deletes_is_repaired(managed: Cluster) -> None:
    managed.patch("deployment", {"spec": {"replicas": 5}})
    managed.patch(
        "deployment", [{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--open"}], how="json"
    )
    managed.patch("service", {"spec": {"type": "ClusterIP", "externalTrafficPolicy": None}})
    managed.patch("networkpolicy", {"spec": {"ingress": [], "policyTypes": ["Ingress"]}})
    managed.patch("configmap", {"metadata": {"labels": None}})
    for kind in ("serviceaccount", "poddisruptionbudget", "rolebinding"):
        managed.kubectl("delete", kind, NAME, "-n", NAMESPACE)
    managed.kubectl("delete", "clusterrolebinding", NAME)

    def whole() -> bool:
        assert managed.there() == EVERYTHING
        assert managed.get("deployment")["spec"]["replicas"] == 1
        assert "--open" not in managed.container()["args"]
        assert managed.get("service")["spec"]["type"] == "LoadBalancer"
        assert managed.get("networkpolicy")["spec"]["ingress"]
        return bool(managed.get("configmap")["metadata"]["labels"])

    eventually(whole, 20)


def test_a_lost_secret_is_made_anew_while_relays_wait_for_it(managed: Cluster) -> None:
    """The operator may not look; it tries while not all relays are ready."""
    managed.kubectl("delete", "secret", NAME, "-n", NAMESPACE)
    eventually(lambda: managed.get("secret"), 40)


def test_fields_of_others_stay_and_nothing_is_written_without_need(managed: Cluster) -> None:
    managed.patch("service", {"metadata": {"annotations": {"example.com/balancer": "internal"}}})
    managed.patch("deployment", {"spec": {"revisionHistoryLimit": 3}})
    # Once this later change has come through, so have those before: each controller has one worker.
    managed.relay(**MANAGED, managed={"resources": {"requests": {"cpu": "1000m"}}})
    eventually(lambda: managed.container()["resources"] == {"requests": {"cpu": "1"}})
    before = managed.versions()
    managed.pods(nobody=True)
    managed.publish()
    managed.node("elsewhere")
    eventually(lambda: managed.said() == "False NoRelayAddress")
    after = managed.versions()
    assert {kind for kind in before if before[kind] != after[kind]} <= {"configmap"}
    assert managed.get("service")["metadata"]["annotations"]["example.com/balancer"] == "internal"
    assert managed.get("deployment")["spec"]["revisionHistoryLimit"] == 3


def test_what_the_mesh_says_is_rolled_out_and_taken_back(managed: Cluster) -> None:
    amounts = {"requests": {"cpu": 2, "memory": "1024Mi"}, "limits": {"memory": "2Gi"}}
    managed.relay(
        **MANAGED, managed={"replicas": 3, "port": 443, "image": "mesh.example.com/relay:2", "resources": amounts}
    )
    shown = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    eventually(lambda: managed.container()["resources"] == shown)
    assert managed.container()["image"] == "mesh.example.com/relay:2"
    assert managed.get("deployment")["spec"]["replicas"] == 3
    eventually(lambda: managed.get("service")["spec"]["ports"][0]["port"] == 443)
    managed.relay(**MANAGED)
    eventually(lambda: managed.container()["resources"].get("limits") == {"memory": "512Mi"})
    assert managed.get("deployment")["spec"]["replicas"] == 1


def test_the_load_balancers_address_is_published_and_cleared(managed: Cluster) -> None:
    managed.node("a")
    managed.publish()
    managed.pods(a=True)
    eventually(lambda: managed.said() == "False NoRelayAddress")
    assert "kubectl describe service wirekube-relay -n wirekube-system" in managed.message()
    assert managed.status().get("relays", []) == []
    managed.balancer({"ip": "203.0.113.80"})
    entry = {"name": NAME, "endpoints": ["203.0.113.80:3478"], "publicKey": KEY, "readyReplicas": 1}
    eventually(lambda: managed.status().get("relays") == [entry])
    assert (managed.said(), managed.said("Ready")) == ("True Resolved", "True Ready")
    # Relays that are not ready keep the address of the load balancer.
    managed.pods(a=False)
    eventually(lambda: managed.status()["relays"][0]["readyReplicas"] == 0)
    assert managed.status()["relays"][0]["endpoints"] == ["203.0.113.80:3478"]
    eventually(lambda: managed.said().startswith("False "))
    managed.pods(a=True)
    managed.balancer()
    eventually(lambda: managed.said() == "False NoRelayAddress")
    assert managed.status().get("relays", []) == []
    # externalIPs, which a person sets, come first, and stay.
    managed.patch("service", {"spec": {"externalIPs": ["203.0.113.81"]}})
    eventually(lambda: managed.said() == "True Resolved")
    assert managed.status()["relays"][0]["endpoints"] == ["203.0.113.81:3478"]
    managed.patch("service", {"spec": {"externalIPs": None}})


def test_node_ports_are_those_of_nodes_with_a_ready_relay(managed: Cluster) -> None:
    managed.publish()
    managed.relay(**MANAGED, managed={"serviceType": "NodePort", "replicas": 2})
    eventually(lambda: managed.said() == "False NoRelayNode")
    assert "kubectl label node NODE wirekube.io/relay=true" in managed.message()
    managed.node("a", ("InternalIP", "10.0.0.1"), ("ExternalIP", "203.0.113.1"))
    managed.node("b", ("InternalIP", "10.0.0.2"), labels={"node-role.kubernetes.io/control-plane": ""})
    eventually(lambda: managed.said() != "False NoRelayNode")
    affinity = managed.get("deployment")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert len(affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]) == 2
    port = managed.get("service")["spec"]["ports"][0]["nodePort"]
    managed.pods(a=True, b=False)
    eventually(lambda: managed.said() == "True Resolved")
    assert managed.status()["relays"][0]["endpoints"] == [f"203.0.113.1:{port}"]
    managed.pods(a=True, b=True)
    eventually(lambda: managed.status()["relays"][0]["readyReplicas"] == 2)
    assert managed.status()["relays"][0]["endpoints"] == [f"203.0.113.1:{port}", f"10.0.0.2:{port}"]
    managed.kubectl("annotate", "node", "a", "wirekube.io/endpoint=198.51.100.1:51820")
    eventually(lambda: f"198.51.100.1:{port}" in managed.status()["relays"][0]["endpoints"])
    managed.kubectl("label", "node", "b", "wirekube.io/relay=true")
    managed.pods(a=False, b=True)
    eventually(lambda: managed.status()["relays"][0]["endpoints"] == [f"10.0.0.2:{port}"])


@pytest.mark.parametrize(
    "relay",
    [
        {"mode": "auto", "provider": "external", "external": {"endpoint": "203.0.113.9:3478"}},
        {"mode": "never", "provider": "managed"},
        {"mode": "auto"},
    ],
    ids=["external", "never", "none"],
)
def test_a_switch_takes_everything_away_and_back(managed: Cluster, relay: Any) -> None:
    managed.publish()
    managed.patch("configmap", {"metadata": {"annotations": {"example.com/x": "1"}}})
    managed.relay(**relay)
    eventually(lambda: managed.there() == set(), 20)
    external = relay.get("provider") == "external"
    wanted = [{"name": "203.0.113.9:3478", "endpoints": ["203.0.113.9:3478"]}] if external else []
    eventually(lambda: managed.status().get("relays", []) == wanted)
    managed.relay(**MANAGED)
    eventually(lambda: managed.there() == EVERYTHING, 20)


def test_what_is_not_ours_is_left_alone(managed: Cluster) -> None:
    managed.relay(mode="auto")
    eventually(lambda: managed.there() == set(), 20)
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": NAMESPACE}}
    managed.apply(foreign, secret)
    managed.relay(mode="never")
    eventually(lambda: managed.said() == "False Disabled")
    assert managed.there() == {"configmap", "secret"}
    managed.relay(**MANAGED)
    eventually(lambda: managed.there() == EVERYTHING, 20)


def test_a_relay_that_the_api_server_refuses_is_named(managed: Cluster) -> None:
    wrong = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
    managed.relay(**MANAGED, managed={"resources": wrong})
    eventually(lambda: managed.said() == "False RelayNotApplied")
    assert "Deployment" in managed.message()
    assert "memory" in managed.message()
    managed.relay(**MANAGED)
    eventually(lambda: managed.said() != "False RelayNotApplied")


def test_the_relay_goes_with_the_mesh(managed: Cluster) -> None:
    """In a cluster the garbage collector does it; without one, and when the dependents are orphaned, the operator."""
    managed.kubectl("delete", "wkmesh", "default")
    eventually(lambda: managed.there() == set(), 20)
    managed.apply(
        {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}, "spec": {"relay": MANAGED}}
    )
    eventually(lambda: managed.there() == EVERYTHING, 20)
