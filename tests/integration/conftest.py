# SPDX-License-Identifier: Apache-2.0
"""A real API server for the whole session, on loopback, and callers of it that have a ServiceAccount's token."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from operators import World
from ports import free_ports

from wirekube.lab.controlplane import ControlPlane, find_or_build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    api, client = free_ports(2)
    folder = tmp_path_factory.mktemp("controlplane")
    plane = ControlPlane(folder, find_or_build(), port=api, etcd_port=_pair(client))
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with everything of config/default; policies come into force within a second."""
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "config/default"))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    return control_plane


@pytest.fixture(scope="module")
def everything_allowed(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The same, with a right to everything for our ServiceAccounts: what is refused now, a policy refuses."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    group = {"apiGroup": role["apiGroup"], "kind": "Group", "name": "system:serviceaccounts:wirekube-system"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "roleRef": role}
    binding |= {"metadata": {"name": "test-everything-allowed"}, "subjects": [group]}
    installed.kubectl("apply", "-f", "-", input=json.dumps(binding))
    yield installed
    installed.kubectl("delete", "clusterrolebinding", "test-everything-allowed")


@dataclass(frozen=True)
class Answer:
    """What the API server said: the HTTP status, the object or the Status, and the message of a refusal."""

    code: int
    body: Any

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if self.body.get("kind") == "Status" else ""


class Caller:
    """One who has a token, and speaks HTTP: kubectl would look before it asks."""

    CONTENT: ClassVar = {
        "apply": "application/apply-patch+yaml",
        "merge": "application/merge-patch+json",
        "json": "application/json-patch+json",
    }

    def __init__(self, http: httpx.Client, token: str) -> None:
        self._http, self._headers = http, {"Authorization": f"Bearer {token}"}

    def __call__(self, verb: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Ask: the verb is an HTTP method, or apply (forced), merge, json for those kinds of PATCH."""
        method, kind = ("PATCH", self.CONTENT[verb]) if verb in self.CONTENT else (verb, "application/json")
        query = {"fieldManager": "wirekube-agent", "force": "true"} if verb == "apply" else {}
        sent = self._headers | {"Content-Type": kind} | (headers or {})
        url = httpx.URL(path).copy_merge_params(query)
        answer = self._http.request(method, url, headers=sent, content=None if body is None else json.dumps(body))
        try:
            return Answer(answer.status_code, answer.json())
        except ValueError:
            return Answer(answer.status_code, {"kind": "Status", "message": answer.text})


@pytest.fixture(scope="session")
def caller_of(control_plane: ControlPlane) -> Iterator[Callable[..., Caller]]:
    """Make a caller with a real token of a ServiceAccount of ours, for example `caller_of("agent", Node="a")`."""
    trust = ssl.create_default_context(cafile=control_plane.folder / "pki" / "ca.crt")

    def make(account: str, **bound: str) -> Caller:
        words = ["create", "token", f"wirekube-{account}", "-n", "wirekube-system"]
        for kind, name in bound.items():
            words += [f"--bound-object-kind={kind}", f"--bound-object-name={name}"]
        return Caller(http, control_plane.kubectl(*words).stdout.strip())

    with httpx.Client(base_url=control_plane.url, verify=trust, timeout=20) as http:
        yield make


def _pair(port: int) -> int:
    """Return a port whose successor is free too: etcd takes both."""
    while True:
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            port += 2


@pytest.fixture(scope="module")
def own_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server for a module that takes away what others install: CRDs, above all."""
    api, client = free_ports(2)
    plane = ControlPlane(tmp_path_factory.mktemp("own"), find_or_build(), port=api, etcd_port=_pair(client))
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane) -> Iterator[World]:
    """CRDs, rights and a Mesh for operators that the tests start; what they make is gone afterwards."""
    found = World(control_plane)
    found.install()
    yield found
    found.clean()


@pytest.fixture(scope="session")
def helm() -> str:
    """Path of the Helm in PATH, else of the one that hack/controlplane/build makes."""
    found = shutil.which("helm")
    if found:
        return found
    built = subprocess.run([ROOT / "hack/controlplane/build", "helm"], stdout=subprocess.PIPE, text=True, check=True)
    return f"{built.stdout.strip()}/helm"


@pytest.fixture(scope="session")
def ours() -> Callable[[ControlPlane], set[str] | None]:
    """Returns as KIND/NAMESPACE/NAME all objects, of every kind, that have our name; None while the kinds change."""
    shown = r'jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\n"}{end}'

    def listed(plane: ControlPlane) -> set[str] | None:
        kinds = plane.kubectl("api-resources", "--verbs=list,delete", "-o", "name").stdout.split()
        done = plane.kubectl("get", ",".join(kinds), "--all-namespaces", "-o", shown, check=False)
        return None if done.returncode else {each for each in done.stdout.splitlines() if "wirekube" in each}

    return listed


@pytest.fixture(scope="session")
def end_namespaces() -> Callable[[ControlPlane], set[str]]:
    """Empties the namespaces that are being deleted and lets them go, as a controller manager would; returns their names."""

    def end(plane: ControlPlane) -> set[str]:
        kinds = plane.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").stdout.split()
        every = json.loads(plane.kubectl("get", "namespaces", "-o", "json").stdout)["items"]
        going = {each["metadata"]["name"]: each for each in every if "deletionTimestamp" in each["metadata"]}
        for name, namespace in going.items():
            plane.kubectl("delete", ",".join(kinds), "--all", "-n", name)
            namespace["spec"]["finalizers"] = []
            url = f"/api/v1/namespaces/{name}/finalize"
            plane.kubectl("replace", "--raw", url, "-f", "-", input=json.dumps(namespace))
        return set(going)

    return end
