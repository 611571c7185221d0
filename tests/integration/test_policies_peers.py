# SPDX-License-Identifier: Apache-2.0
"""What config/policy and the CRDs say about a Peer and the Mesh, whoever writes them: here it is the administrator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
NAME = "pol-peer"
SERVER_SIDE = ("apply", "--server-side", "--force-conflicts", "-f", "-")
POLICIES = {"wirekube-agents", "wirekube-operator", "wirekube-operator-relay", "wirekube-peers"}

pytestmark = pytest.mark.timeout(120)


def peer(name: str, **parts: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}, **parts}


def dry(cluster: Any, verb: str, body: dict[str, Any]) -> str:
    """Return how kubectl refuses; empty when it does not."""
    refused: str = cluster.kubectl(verb, "--dry-run=server", "-f", "-", input=json.dumps(body), check=False).stderr
    return refused


@pytest.fixture(scope="module")
def cluster(installed: Any) -> Any:
    """A Peer; returned when the policy is in force."""
    installed.kubectl(*SERVER_SIDE, input=json.dumps(peer(NAME)))
    public = peer("pol-new", spec={"allowedIPs": ["8.8.8.0/24"]})
    eventually(lambda: "is not private" in dry(installed, "create", public))
    yield installed
    installed.kubectl("delete", "wkpeer", NAME)


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
def test_an_allowed_ip_is_refused_with_its_name_and_a_remedy(cluster: Any, text: str, words: str) -> None:
    for verb, name in (("create", "pol-new"), ("apply", NAME)):
        refused = dry(cluster, verb, peer(name, spec={"allowedIPs": ["10.1.0.0/16", text]}))
        assert words in refused
        assert text in refused
        assert "10.1.0.0/16" not in refused.partition("give networks inside")[0]
        assert words != "is not private" or "give networks inside 10.0.0.0/8, 172.16.0.0/12" in refused


def test_private_allowed_ips_are_taken(cluster: Any) -> None:
    networks = ["10.0.0.0/8", "10.1.2.3/32", "172.16.0.0/12", "172.31.255.0/24", "192.168.0.0/16", "100.64.0.0/10"]
    networks += ["fc00::/7", "fd12:3456::/48", "fd00::1/128", "203.0.113.0/24", "198.51.100.7/32", "192.0.2.0/25"]
    networks += ["198.18.0.0/15", "2001:db8::/48"]
    assert dry(cluster, "create", peer("pol-new", spec={"allowedIPs": networks})) == ""


def test_what_got_in_before_the_policy_hinders_nobody(cluster: Any) -> None:
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


def test_there_is_one_mesh_of_one_name(cluster: Any) -> None:
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


def test_nothing_passes_when_a_policy_cannot_be_evaluated(cluster: Any) -> None:
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(ROOT / "config/policy")).stdout))
    policies = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"}
    bindings = {each["spec"]["policyName"]: each for each in objects if each not in policies.values()}
    assert policies.keys() == bindings.keys() == POLICIES
    assert {each["spec"]["failurePolicy"] for each in policies.values()} == {"Fail"}
    assert [each["spec"]["validationActions"] for each in bindings.values()] == [["Deny"]] * len(POLICIES)
