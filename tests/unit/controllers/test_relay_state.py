# SPDX-License-Identifier: Apache-2.0
"""What people read when the managed relay does not work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wirekube.controllers.cluster import tcp_ports
from wirekube.controllers.relay.reconciler import node_to_relay
from wirekube.controllers.relay.state import managed, no_node, nothing_seen, public_key
from wirekube.runtime.store import Event

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PORT = {"name": "relay", "port": 3478, "nodePort": 30478}


def service(kind: str, **spec: Any) -> Any:
    return {"metadata": {}, "spec": {"type": kind, "ports": [PORT], **spec}}


def deployment(**conditions: tuple[str, str, str]) -> Any:
    listed = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        for kind, (status, reason, message) in conditions.items()
    ]
    return {"metadata": {}, "status": {"conditions": listed}}


READY = [{"endpoints": [{"addresses": ["10.244.0.5"], "nodeName": "a", "conditions": {"ready": True}}]}]
NODE = {"metadata": {"name": "a"}, "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"}]}}
SEEN = replace(
    nothing_seen(),
    deployment=deployment(),
    service=service("NodePort"),
    config_map={"data": {"publicKey": KEY}},
    slices=READY,
    node={"a": NODE}.get,
)
PRIVATE = {"metadata": {"name": "a"}, "status": {}}


def test_all_is_well() -> None:
    state = managed(SEEN, [])
    assert (state.problem, state.key, state.reach.endpoints) == (None, KEY, ("203.0.113.1:30478",))


@pytest.mark.parametrize(
    ("changed", "reason", "words"),
    [
        ({"deployment": None}, "RelayStarting", "being installed"),
        (
            {"slices": []},
            "RelayStarting",
            "kubectl describe pod -n wirekube-system -l app.kubernetes.io/name=wirekube-relay",
        ),
        ({"config_map": {}}, "RelayStarting", "ConfigMap wirekube-system/wirekube-relay"),
        (
            {"slices": [], "deployment": deployment(Progressing=("True", "NewReplicaSetAvailable", ""))},
            "NoReadyReplica",
            "none of the relays is ready; see kubectl describe pod",
        ),
        (
            {"slices": [], "deployment": deployment(Progressing=("False", "ProgressDeadlineExceeded", ""))},
            "NoReadyReplica",
            "none of the relays is ready",
        ),
        (
            {"slices": [], "deployment": deployment(ReplicaFailure=("True", "FailedCreate", "exceeded quota"))},
            "NoReadyReplica",
            "exceeded quota",
        ),
        ({"service": service("LoadBalancer"), "node": {}.get}, "NoRelayAddress", "serviceType to NodePort"),
        ({"service": service("ClusterIP", ports=[])}, "NoRelayAddress", "externalIPs"),
        ({"node": {"a": PRIVATE}.get}, "NoRelayAddress", "kubectl annotate node a wirekube.io/endpoint=IP:PORT"),
        ({"trouble": no_node(), "slices": []}, "NoRelayNode", "kubectl label node NODE wirekube.io/relay=true"),
    ],
)
def test_what_is_missing_is_said(changed: Any, reason: str, words: str) -> None:
    problem = managed(replace(SEEN, **changed), []).problem
    assert problem is not None
    assert (problem.status, problem.reason) == ("False", reason)
    assert words in problem.message


def test_a_config_map_that_was_lost_does_not_take_the_key_away() -> None:
    lost = replace(SEEN, config_map={})
    assert managed(lost, [{"name": "wirekube-relay", "publicKey": KEY}]).key == KEY
    assert managed(lost, [{"name": "relay.example.com:3478", "publicKey": KEY}]).key is None


@pytest.mark.parametrize("data", [None, {}, {"publicKey": "short"}, {"publicKey": KEY + "\n"}, {"publicKey": 7}])
def test_what_is_no_key_is_not_published(data: Any) -> None:
    assert public_key({"data": data}) is None


def test_ports_of_the_api_server() -> None:
    found = {"spec": {"ports": [{"port": 443, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}
    assert tcp_ports(found, {"ports": [{"port": 6443}, {"port": None}]}) == (443, 6443)
    assert tcp_ports(None, None) == (443,)


def test_a_node_concerns_the_relay_as_a_place_alone() -> None:
    heard = NODE | {"status": NODE["status"] | {"conditions": [{"type": "Ready"}]}}  # type: ignore[operator]
    assert node_to_relay(Event("MODIFIED", ("", "a"), NODE, heard)) == ()
    assert node_to_relay(Event("MODIFIED", ("", "a"), NODE, PRIVATE)) == (("", "default"),)
    labelled = NODE | {"metadata": {"name": "a", "labels": {"wirekube.io/relay": "true"}}}
    assert node_to_relay(Event("MODIFIED", ("", "a"), NODE, labelled)) == (("", "default"),)
