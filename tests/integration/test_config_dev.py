# SPDX-License-Identifier: Apache-2.0
"""config/dev: config/default, with no more taken back than what live updates need, and a Mesh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = Path(__file__).resolve().parents[2] / "config"
OPERATOR, AGENT = "Deployment/wirekube-operator", "DaemonSet/wirekube-agent"
POD = "spec.template.spec"


def relaxed(workload: str, role: str) -> dict[tuple[str, str], Any]:
    """Return what may differ in each workload: a command around the command, a root file system to write on, no restarts."""
    container = f"{POD}.containers.{role}"
    mount = {"name": "dev", "mountPath": "/etc/wirekube-dev", "readOnly": True}
    return {
        (workload, f"{container}.command"): ["sh", "/etc/wirekube-dev/reload.sh", "run", f"wirekube-{role}"],
        (workload, f"{container}.securityContext.readOnlyRootFilesystem"): False,
        (workload, f"{container}.livenessProbe"): None,
        (workload, f"{container}.volumeMounts./etc/wirekube-dev"): mount,
    }


def owner(workload: str) -> dict[tuple[str, str], Any]:
    """Return what may differ where the operator is not root otherwise."""
    context = f"{POD}.securityContext"
    return {
        (workload, f"{context}.runAsNonRoot"): False,
        (workload, f"{context}.runAsUser"): 0,
        (workload, f"{context}.runAsGroup"): 0,
    }


EXPECTED = (
    relaxed(OPERATOR, "operator")
    | relaxed(AGENT, "agent")
    | owner(OPERATOR)
    | {
        (OPERATOR, f"{POD}.containers.operator.env.WIREKUBE_LEADER_ELECTION"): {
            "name": "WIREKUBE_LEADER_ELECTION",
            "value": "false",
        },
        (AGENT, "spec.updateStrategy.rollingUpdate.maxUnavailable"): "100%",
    }
)


def keyed(value: Any) -> Any:
    """Return lists of things with names as dictionaries."""
    if not isinstance(value, list) or not all(isinstance(each, dict) and "name" in each for each in value):
        return value
    return {each.get("mountPath") or each["name"]: each for each in value}


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield where two objects differ, and what is there now (None: nothing)."""
    old, new = keyed(old), keyed(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, new


@pytest.fixture(scope="module")
def rendered(control_plane: Any) -> dict[str, dict[str, Any]]:
    def render(name: str) -> dict[str, Any]:
        text = control_plane.kubectl("kustomize", str(CONFIG / name)).stdout
        return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(text)}

    return {name: render(name) for name in ("default", "dev")}


def test_nothing_else_is_relaxed(rendered: dict[str, Any]) -> None:
    default, dev = rendered["default"], rendered["dev"]
    found = {(name, path): new for name, old in default.items() for path, new in changes(old, dev.get(name))}
    volumes = [each for each in found if each[1] == f"{POD}.volumes.dev"]
    assert sorted(workload for workload, _ in volumes) == sorted([OPERATOR, AGENT])
    assert {each: new for each, new in found.items() if each not in volumes} == EXPECTED


def test_a_mesh_and_the_script_are_added(rendered: dict[str, Any]) -> None:
    added = {name: each for name, each in rendered["dev"].items() if name not in rendered["default"]}
    mesh = added.pop("WireKubeMesh/default")
    (script,) = added.values()
    assert script["data"] == {"reload.sh": (CONFIG / "dev/reload.sh").read_text()}
    for workload in (OPERATOR, AGENT):
        volumes = {each["name"]: each for each in rendered["dev"][workload]["spec"]["template"]["spec"]["volumes"]}
        assert volumes["dev"]["configMap"]["name"] == script["metadata"]["name"]
    assert mesh["spec"]["relay"]["provider"] == "managed"


def test_the_api_server_accepts_it(control_plane: Any, rendered: dict[str, Any]) -> None:
    def apply(*objects: Any, dry: bool = False) -> None:
        words = ("apply", *(("--dry-run=server",) if dry else ()), "-f", "-")
        control_plane.kubectl(*words, input=yaml.safe_dump_all(objects))

    first = ("Namespace", "CustomResourceDefinition")
    apply(*(each for each in rendered["dev"].values() if each["kind"] in first))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    apply(*(each for each in rendered["dev"].values() if each["kind"] not in first), dry=True)
