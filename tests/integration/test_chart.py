# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: the same as `kubectl apply -k config/default`, and what its values make of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "config" / "helm" / "wirekube"
NAMESPACE = "wirekube-system"
RELEASE_NAMESPACE = {f"Namespace//{NAMESPACE}"}  # where Helm keeps the release; there before it, and after it
GONE_SECONDS = 60.0  # kinds that go are known to every cache of the API server a while longer

pytestmark = pytest.mark.timeout(180)
OPERATOR, AGENT = "Deployment/wirekube-operator", "DaemonSet/wirekube-agent"
RELAY = {"mode": "auto", "provider": "external", "external": {"endpoint": "relay.example.com:3478"}}
MESH = {"create": True, "spec": {"mtu": 1400, "relay": RELAY}}
EVERYTHING = {
    "image": {"repository": "registry.example.com:5000/net/wirekube", "tag": "v1.2.3", "pullPolicy": "Always"},
    "wireguardImage": {"repository": "registry.example.com/wg", "tag": "9", "pullPolicy": "Never"},
    "imagePullSecrets": [{"name": "pull"}],
    "logLevel": "debug",
    "operator": {
        "replicas": 3,
        "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
        "nodeSelector": {"pool": "system"},
        "affinity": {"nodeAffinity": None},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "net", "effect": "NoExecute"}],
        "priorityClassName": "",
        "podAnnotations": {"example.com/scrape": "true"},
        "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://192.0.2.9:4318"}],
    },
    "agent": {
        "resources": {"requests": {"memory": "128Mi"}},
        "wireguard": {"resources": {"limits": {"memory": "512Mi"}}},
        "nodeSelector": {"pool": "edge"},
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "edge-critical",
        "podAnnotations": {"example.com/scrape": "true"},
        "env": [{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
    },
}

Objects = dict[str, Any]


def by_id(text: str) -> Objects:
    """Return manifests by KIND/NAME, and /NAMESPACE where one name may stand in several."""

    def name(manifest: Any) -> str:
        metadata = manifest["metadata"]
        more = f"/{metadata['namespace']}" if manifest["kind"] in {"Role", "RoleBinding"} else ""
        return f"{manifest['kind']}/{metadata['name']}{more}"

    return {name(each): each for each in yaml.safe_load_all(text) if each}


@pytest.fixture(scope="module")
def template(helm: str) -> Callable[..., Objects]:
    """Returns what a release with these values has."""

    def run(values: Any = None, namespace: str = NAMESPACE) -> Objects:
        words = [helm, "template", "wirekube", str(CHART), "--namespace", namespace, "--values", "-"]
        done = subprocess.run(words, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return by_id(done.stdout)

    return run


@pytest.fixture(scope="module")
def helm_major(helm: str) -> int:
    return int(subprocess.run([helm, "version", "--short"], capture_output=True, text=True, check=True).stdout[1])


@pytest.fixture
def release(helm: str, own_control_plane: Any) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Helm against the API server; what a test that failed left is taken away."""

    def run(*words: str, values: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        given = [] if values is None else ["--values", "-"]
        argv = [helm, "--kubeconfig", own_control_plane.kubeconfig, "--namespace", NAMESPACE, *words, *given]
        done = subprocess.run(argv, input=json.dumps(values), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    yield run
    run("uninstall", "wirekube", check=False)


def pod(rendered: Objects, workload: str) -> Any:
    return rendered[workload]["spec"]["template"]


def container(rendered: Objects, workload: str, name: str) -> Any:
    spec = pod(rendered, workload)["spec"]
    return next(each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name)


def without_namespace(rendered: Objects) -> Objects:
    return {key: each for key, each in rendered.items() if key != f"Namespace/{NAMESPACE}"}


def test_with_no_values_it_is_what_kustomize_makes(own_control_plane: Any, template: Any) -> None:
    kustomized = by_id(own_control_plane.kubectl("kustomize", str(ROOT / "config/default")).stdout)
    assert template() == without_namespace(kustomized)


def test_the_images_and_where_they_come_from(template: Any) -> None:
    rendered = template(EVERYTHING)
    ours, helper = ("registry.example.com:5000/net/wirekube:v1.2.3", "Always"), ("registry.example.com/wg:9", "Never")
    pods = [each["spec"]["template"]["spec"] for each in rendered.values() if "template" in each.get("spec", {})]
    assert len(pods) >= 2
    for spec in pods:
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            assert (each["image"], each["imagePullPolicy"]) == (helper if each["name"] == "wireguard" else ours)


def test_the_operators_values(template: Any) -> None:
    rendered, default = template(EVERYTHING), template()
    spec = pod(rendered, OPERATOR)["spec"]
    assert rendered[OPERATOR]["spec"]["replicas"] == 3
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "system"}
    assert "affinity" not in spec
    assert "priorityClassName" not in spec
    assert spec["tolerations"] == [
        *pod(default, OPERATOR)["spec"]["tolerations"],
        *EVERYTHING["operator"]["tolerations"],
    ]
    assert pod(rendered, OPERATOR)["metadata"]["annotations"]["example.com/scrape"] == "true"
    resources = container(rendered, OPERATOR, "operator")["resources"]
    assert resources == {"requests": {"cpu": 1, "memory": "96Mi"}, "limits": {"memory": "1Gi"}}


def test_the_agents_values(template: Any) -> None:
    rendered = template(EVERYTHING)
    spec = pod(rendered, AGENT)["spec"]
    assert rendered[AGENT]["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "edge"}
    assert spec["affinity"] == EVERYTHING["agent"]["affinity"]
    assert spec["priorityClassName"] == "edge-critical"
    annotations = pod(rendered, AGENT)["metadata"]["annotations"]
    assert annotations == {"kubectl.kubernetes.io/default-container": "agent", "example.com/scrape": "true"}
    assert container(rendered, AGENT, "agent")["resources"]["requests"] == {"cpu": "20m", "memory": "128Mi"}
    assert container(rendered, AGENT, "wireguard")["resources"]["limits"] == {"memory": "512Mi"}


@pytest.mark.parametrize(("workload", "name"), [(OPERATOR, "operator"), (AGENT, "agent"), (AGENT, "cleanup")])
def test_environment_variables_are_added_and_none_is_there_twice(template: Any, workload: str, name: str) -> None:
    rendered, default = container(template(EVERYTHING), workload, name), container(template(), workload, name)
    more = EVERYTHING["operator" if workload == OPERATOR else "agent"]["env"]
    assert rendered["env"] == [*default["env"], {"name": "WIREKUBE_LOG_LEVEL", "value": "debug"}, *more]
    names = [each["name"] for each in rendered["env"]]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", ["other", "123"])
def test_the_releases_namespace_is_that_of_everything(template: Any, name: str) -> None:
    rendered = json.dumps(template(namespace=name))
    assert NAMESPACE not in rendered
    assert f'"namespace": "{name}"' in rendered


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nonsense": 1}, "'nonsense' not allowed"),
        ({"operator": {"replica": 2}}, "'replica' not allowed"),
        ({"operator": {"replicas": 0}}, "/operator/replicas"),
        ({"operator": {"resources": {"request": {}}}}, "'request' not allowed"),
        ({"operator": {"resources": {"limits": {"memory": "much"}}}}, "/operator/resources/limits/memory"),
        ({"operator": {"tolerations": [{"effect": "Never"}]}}, "/operator/tolerations/0/effect"),
        ({"agent": {"env": [{"name": "NODE_NAME", "value": "a"}]}}, "/agent/env/0/name"),
        ({"agent": {"updateStrategy": {"type": "Recreate"}}}, "/agent/updateStrategy/type"),
        ({"agent": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "some"}}}}, "maxUnavailable"),
        ({"image": {"tag": "a b"}}, "/image/tag"),
        ({"image": {"tag": 1}}, "/image/tag"),
        ({"wireguardImage": {"pullPolicy": "Sometimes"}}, "/wireguardImage/pullPolicy"),
        ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
        ({"logLevel": "loud"}, "/logLevel"),
        ({"mesh": {"create": "yes"}}, "/mesh/create"),
        ({"mesh": {"spec": {"mtu": 100}}}, "/mesh/spec/mtu"),
        ({"mesh": {"spec": {"relays": {}}}}, "'relays' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: str, values: Any, said: str) -> None:
    words = [helm, "template", "wirekube", str(CHART), "--values", "-"]
    done = subprocess.run(words, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr.replace(".", "/")


@pytest.fixture(scope="module")
def prepared(own_control_plane: Any) -> Any:
    """An API server with what the chart's README asks for first."""
    own_control_plane.kubectl("create", "namespace", NAMESPACE)
    own_control_plane.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")
    return own_control_plane


@pytest.fixture
def gone(prepared: Any, ours: Any, end_namespaces: Any) -> Callable[[], None]:
    """Waits until nothing of ours is there but what was there before."""

    def check() -> bool:
        end_namespaces(prepared)
        return bool(ours(prepared) == RELEASE_NAMESPACE)

    def wait() -> None:
        eventually(check, GONE_SECONDS, "nothing is left")

    return wait


@pytest.fixture
def crds_and_namespaces(prepared: Any, template: Any, gone: Any) -> Iterator[None]:
    """What must be there before the rest can even be tried."""
    first = {"CustomResourceDefinition", "Namespace"}
    objects = yaml.safe_dump_all(each for each in template().values() if each["kind"] in first)
    prepared.kubectl("apply", "--server-side", "-f", "-", input=objects)
    prepared.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    yield
    prepared.kubectl("delete", "--wait=false", "-f", "-", input=objects)
    gone()


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_the_api_server_takes_every_object_and_its_pods(
    prepared: Any, crds_and_namespaces: None, template: Any, values: Any
) -> None:
    rendered = template(values)
    apply = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
    prepared.kubectl(*apply, input=yaml.safe_dump_all(rendered.values()))
    for workload in (OPERATOR, AGENT):
        spec = pod(rendered, workload)["spec"] | {"priorityClassName": "system-node-critical"}
        metadata = pod(rendered, workload)["metadata"] | {"name": "probe", "namespace": NAMESPACE}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        prepared.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(body))


def mesh_of(plane: Any) -> Any:
    return json.loads(plane.kubectl("get", "wirekubemesh", "default", "-o", "json").stdout)


def test_uninstalled_nothing_is_left(prepared: Any, release: Any, ours: Any, gone: Any) -> None:
    assert ours(prepared) == RELEASE_NAMESPACE
    release("install", "wirekube", str(CHART))
    release("upgrade", "wirekube", str(CHART), values=EVERYTHING)
    there = ours(prepared)
    assert {f"Deployment/{NAMESPACE}/wirekube-operator", "CustomResourceDefinition//wirekubepeers.wirekube.io"} <= there
    release("uninstall", "wirekube")
    gone()


def test_the_mesh_of_a_release(prepared: Any, release: Any, gone: Any, helm_major: int) -> None:
    chart = ("wirekube", str(CHART))
    if helm_major < 4:
        done = release("install", *chart, values={"mesh": MESH}, check=False)
        assert "mesh.create needs Helm 4" in done.stderr
        return
    release("install", *chart, values={"mesh": MESH})
    first = mesh_of(prepared)
    assert (first["spec"]["mtu"], first["spec"]["relay"]["external"]) == (
        1400,
        RELAY["external"] | {"transport": "tcp"},
    )
    # Twice, since the first adopts what the installation made as a hook.
    for mtu in (1390, 1380):
        release("upgrade", *chart, values={"mesh": {"create": True, "spec": MESH["spec"] | {"mtu": mtu}}})
        assert mesh_of(prepared)["spec"]["mtu"] == mtu
    release("upgrade", *chart, values={})
    release("rollback", "wirekube", "1")
    assert mesh_of(prepared)["metadata"]["uid"] == first["metadata"]["uid"]
    release("uninstall", "wirekube")
    gone()


def test_an_upgrade_brings_the_crds_up_to_date(prepared: Any, release: Any, gone: Any, tmp_path: Path) -> None:
    older = tmp_path / "wirekube"
    subprocess.run(["cp", "-r", CHART, older], check=True)
    path = older / "templates/manifests/crd-wirekube.io_wirekubepeers.yaml"
    path.write_text(path.read_text().replace("- wkpeer", "- wkold"))
    names = ("get", "crd", "wirekubepeers.wirekube.io", "-o", "jsonpath={.spec.names.shortNames}")
    release("install", "wirekube", str(older))
    assert prepared.kubectl(*names).stdout == '["wkold"]'
    release("upgrade", "wirekube", str(CHART))
    assert prepared.kubectl(*names).stdout == '["wkpeer"]'
    release("uninstall", "wirekube")
    gone()


def test_what_kubectl_installed_helm_takes_over(prepared: Any, release: Any, gone: Any, helm_major: int) -> None:
    prepared.kubectl("apply", "--server-side", "-k", str(ROOT / "config/default"))
    before = prepared.kubectl("get", "crd", "wirekubepeers.wirekube.io", "-o", "jsonpath={.metadata.uid}").stdout
    words = ["install", "wirekube", str(CHART), "--take-ownership"]
    release(*words, *["--force-conflicts"] * (helm_major >= 4))
    assert (
        prepared.kubectl("get", "crd", "wirekubepeers.wirekube.io", "-o", "jsonpath={.metadata.uid}").stdout == before
    )
    release("uninstall", "wirekube")
    gone()


def test_a_namespace_that_would_refuse_the_agents_is_refused(prepared: Any, release: Any) -> None:
    label = "pod-security.kubernetes.io/enforce"
    prepared.kubectl("label", "namespace", NAMESPACE, "--overwrite", f"{label}=baseline")
    done = release("install", "wirekube", str(CHART), check=False)
    prepared.kubectl("label", "namespace", NAMESPACE, "--overwrite", f"{label}=privileged")
    assert done.returncode != 0
    assert f"kubectl label namespace {NAMESPACE} --overwrite {label}=privileged" in done.stderr
