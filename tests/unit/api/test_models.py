# SPDX-License-Identifier: Apache-2.0
"""The models hold the user's defaults, and the generated CRDs say what the models say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from wirekube.api import crds
from wirekube.api.structural import structural
from wirekube.api.v1alpha1 import WireKubeMesh, WireKubePeer

META = {"name": "default"}


def mesh(**spec: Any) -> WireKubeMesh:
    return WireKubeMesh.model_validate({"metadata": META, "spec": spec})


def test_the_crds_in_the_repository_are_up_to_date() -> None:
    assert crds.stale() == []


def test_defaults() -> None:
    assert mesh().spec.model_dump(exclude_none=True) == {
        "listenPort": 51820,
        "interfaceName": "wire_kube",
        "mtu": 1420,
        "stunServers": (),
        "relay": {"mode": "auto", "handshakeTimeoutSeconds": 30, "directRetryIntervalSeconds": 120},
        "routing": {"nodeAddresses": "mesh", "podCIDRs": False, "excludeCIDRs": ()},
    }


def test_defaults_of_the_managed_relay() -> None:
    managed = mesh(relay={"managed": {}}).spec.relay.managed
    assert managed is not None
    assert managed.model_dump(exclude_none=True) == {"replicas": 1, "serviceType": "LoadBalancer", "port": 3478}


def test_amounts_are_as_in_kubernetes() -> None:
    managed = mesh(relay={"managed": {"resources": {"limits": {"cpu": 2, "memory": "1.5Gi"}}}}).spec.relay.managed
    assert managed is not None
    assert managed.resources is not None
    assert managed.resources.model_dump(exclude_none=True) == {"limits": {"cpu": "2", "memory": "1.5Gi"}}
    for wrong in ("2 CPUs", "-1", True, {}):
        with pytest.raises(ValidationError):
            mesh(relay={"managed": {"resources": {"limits": {"cpu": wrong}}}})


@pytest.mark.parametrize(
    "spec",
    [
        {"listenPort": 0},
        {"listenPort": 65536},
        {"mtu": 1279},
        {"interfaceName": "sixteen_letters_"},
        {"interfaceName": "a/b"},
        {"stunServers": ["stun.example.com"]},
        {"stunServers": ["stun.example.com:0"]},
        {"relay": {"mode": "sometimes"}},
        {"relay": {"external": {}}},
        {"relay": {"external": {"endpoint": "relay:1", "transport": "udp"}}},
        {"relay": {"external": {"endpoint": "relay:1", "publicKey": "A" * 44}}},
        {"meshCIDR": "10.0.0.1/8"},
        {"meshCIDR": "0.0.0.0/0"},
    ],
)
def test_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mesh(**spec)


def test_unknown_fields_are_ignored_and_objects_are_frozen() -> None:
    peer = WireKubePeer.model_validate({"metadata": META, "spec": {"later": 1, "allowedIPs": ["10.0.0.0/24"]}})
    assert peer.spec.allowed_ips == ("10.0.0.0/24",)
    with pytest.raises(ValidationError):
        peer.spec.endpoint = "x:1"  # type: ignore[misc]


def nodes(schema: Any, path: str = "") -> Any:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


@pytest.mark.parametrize("crd", crds.definitions(), ids=lambda crd: crd["metadata"]["name"])
def test_schemas_are_structural_and_every_field_is_explained(crd: dict[str, Any]) -> None:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(schema):
        assert "type" in node or node["x-kubernetes-int-or-string"], path
        assert not {"$ref", "anyOf", "title", "const"} & node.keys(), path
        if path.startswith((".spec", ".status")) and not path.endswith("[]"):
            assert node.get("description"), path
        if node.get("type") == "array":
            assert "maxItems" in node, path
    assert not [path for path, node in nodes(schema) if path.startswith(".status") and "default" in node]


def test_a_union_of_types_is_refused() -> None:
    with pytest.raises(TypeError, match="union"):
        structural({"anyOf": [{"type": "string"}, {"type": "integer"}]})
