# SPDX-License-Identifier: Apache-2.0
"""The objects of the managed relay, where its pods may run, and when an object differs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from wirekube.api.v1alpha1.mesh import ManagedRelay
from wirekube.controllers.kinds import DEPLOYMENT, SERVICE
from wirekube.controllers.relay.difference import difference, signed
from wirekube.controllers.relay.objects import KINDS, desired, secret
from wirekube.controllers.relay.placement import CONTROL_PLANE, Placement, named_nodes, place
from wirekube.controllers.relay.settings import Image, Settings, image_of, resources_of

SETTINGS = Settings(
    namespace="wirekube-system",
    owner="mesh-uid",
    replicas=2,
    service_type="LoadBalancer",
    port=3478,
    image=Image("wirekube:dev"),
    resources={"requests": {"cpu": "50m"}},
    placement=Placement({}, True, False),
    api_ports=(443, 6443),
)


def of(kind: Any, settings: Settings = SETTINGS) -> Any:
    return dict(desired(settings))[kind]


def test_everything_has_one_name_our_label_and_goes_with_the_mesh() -> None:
    for _, obj in [*desired(SETTINGS), (None, secret(SETTINGS))]:
        metadata = obj["metadata"]
        assert metadata["name"] == "wirekube-relay"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "wirekube-operator"
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("WireKubeMesh", "default", "mesh-uid")
    assert "data" not in secret(SETTINGS)
    assert [kind for kind, _ in desired(SETTINGS)] == list(KINDS)


@pytest.mark.parametrize(("kind", "policy"), [("LoadBalancer", "Local"), ("NodePort", "Local"), ("ClusterIP", None)])
def test_the_service(kind: str, policy: str | None) -> None:
    spec = of(SERVICE, replace(SETTINGS, service_type=kind, port=443))["spec"]
    assert (spec["type"], spec.get("externalTrafficPolicy")) == (kind, policy)
    assert [(each["port"], each["targetPort"], each["protocol"]) for each in spec["ports"]] == [(443, "relay", "TCP")]


def container(settings: Settings) -> Any:
    return of(DEPLOYMENT, settings)["spec"]["template"]["spec"]["containers"][0]


def test_how_the_image_is_pulled_is_the_operators() -> None:
    image = Image("registry.example.com/wirekube:1", "Always", ("registry",))
    pod = of(DEPLOYMENT, replace(SETTINGS, image=image))["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert container(replace(SETTINGS, image=image))["imagePullPolicy"] == "Always"
    assert "imagePullPolicy" not in container(SETTINGS)


OWN = {
    "spec": {
        "template": {
            "spec": {
                "imagePullSecrets": [{"name": "s"}],
                "containers": [{"name": "other", "image": "no"}, {"name": "operator", "image": "own:1"}],
            }
        }
    }
}


@pytest.mark.parametrize(
    ("mesh", "override", "operator", "image"),
    [
        ("mesh:1", "env:1", OWN, Image("mesh:1", "", ("s",))),
        (None, "env:1", OWN, Image("env:1", "", ("s",))),
        (None, "", OWN, Image("own:1", "", ("s",))),
        (None, "env:1", None, Image("env:1")),
        (None, "", None, None),
    ],
)
def test_which_image(mesh: str | None, override: str, operator: Any, image: Image | None) -> None:
    assert image_of(ManagedRelay(image=mesh), override, operator) == image


def test_resources_are_those_of_the_mesh_and_no_others() -> None:
    assert resources_of(ManagedRelay())["limits"] == {"memory": "512Mi"}
    said = ManagedRelay.model_validate({"resources": {"requests": {"cpu": 1}}})
    assert resources_of(said) == {"requests": {"cpu": "1"}}


# Placement.


def node(name: str, made: int, *labels: str, external: str = "") -> Any:
    addresses = [{"type": "ExternalIP", "address": external}] if external else []
    metadata = {
        "name": name,
        "labels": dict.fromkeys(labels, "true"),
        "creationTimestamp": f"2026-01-01T00:00:{made:02}Z",
    }
    return {"metadata": metadata, "status": {"addresses": addresses}}


def terms(placement: Placement) -> list[str]:
    found = placement.affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [
        each["matchFields"][0]["values"][0] if "matchFields" in each else each["matchExpressions"][0]["key"]
        for each in found
    ]


RELAY = "wirekube.io/relay"


@pytest.mark.parametrize(
    ("nodes", "found", "possible"),
    [
        ([], [RELAY], False),
        ([node("a", 1)], [RELAY], False),
        ([node("a", 1, CONTROL_PLANE), node("b", 2)], [CONTROL_PLANE], True),
        ([node("b", 2, external="203.0.113.2"), node("a", 1, external="203.0.113.1")], ["a", "b"], True),
        ([node("a", 1, CONTROL_PLANE), node("b", 2, external="203.0.113.2")], [CONTROL_PLANE, "b"], True),
        ([node("a", 1, CONTROL_PLANE, external="203.0.113.1")], [CONTROL_PLANE], True),
        ([node("a", 1, CONTROL_PLANE), node("b", 2, RELAY)], [RELAY], True),
    ],
)
def test_a_node_port_needs_nodes_that_are_reached(nodes: Any, found: list[str], possible: bool) -> None:
    placement = place(nodes, "NodePort", 1)
    assert (terms(placement), placement.possible, placement.spread) == (found, possible, True)


def test_behind_a_load_balancer_the_label_is_a_wish() -> None:
    placement = place([node("a", 1)], "LoadBalancer", 1)
    assert (list(placement.affinity), placement.spread) == (["preferredDuringSchedulingIgnoredDuringExecution"], False)


def publics(*numbers: int) -> list[Any]:
    return [node(f"n{number:02}", number, external=f"203.0.113.{number}") for number in numbers]


def test_new_nodes_change_nothing_and_lost_ones_only_when_too_few_are_left() -> None:
    first = terms(place(publics(1, 2, 3), "NodePort", 1))
    assert first == ["n01", "n02", "n03"]
    assert terms(place(publics(1, 2, 3, 4, 5), "NodePort", 1, tuple(first))) == first
    assert terms(place(publics(2, 3, 4), "NodePort", 1, tuple(first))) == first
    assert terms(place(publics(3, 4, 5), "NodePort", 1, tuple(first))) == ["n03", "n04", "n05"]
    assert terms(place(publics(1, 2, 3, 4, 5), "NodePort", 3, tuple(first))) == ["n01", "n02", "n03", "n04", "n05"]
    assert len(terms(place(publics(*range(1, 40)), "NodePort", 1))) == 16


def test_the_names_are_read_back_from_the_deployment() -> None:
    settings = replace(SETTINGS, placement=place([node("c", 1, CONTROL_PLANE), *publics(2, 3)], "NodePort", 1))
    assert named_nodes(of(DEPLOYMENT, settings)) == ("n02", "n03")
    assert named_nodes(None) == named_nodes(of(DEPLOYMENT)) == ()


# Differences.


def live(kind: Any) -> Any:
    """What an API server makes of an object: the same with defaults, and with fields of others."""
    obj = copy.deepcopy(signed(of(kind)))
    obj["metadata"] |= {"uid": "x", "resourceVersion": "7"}
    obj["status"] = {"observedGeneration": 3}
    if kind == DEPLOYMENT:
        obj["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
        pod = obj["spec"]["template"]["spec"]
        pod["dnsPolicy"] = "ClusterFirst"
        pod["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
        pod["containers"][0]["resources"]["requests"]["cpu"] = "0.05"
        pod["containers"].insert(0, {"name": "injected"})
    else:
        obj["spec"] |= {"clusterIP": "10.96.0.7"}
        obj["spec"]["ports"][0]["nodePort"] = 31000
    return obj


@pytest.mark.parametrize("kind", [DEPLOYMENT, SERVICE], ids=lambda kind: kind.kind)
def test_defaults_and_what_others_own_is_no_difference(kind: Any) -> None:
    assert difference(signed(of(kind)), live(kind)) == ""


def test_what_is_gone_or_another_is_a_difference() -> None:
    wanted, shown = signed(of(DEPLOYMENT)), live(DEPLOYMENT)
    assert difference(wanted, None) == "metadata.name"
    del shown["spec"]["template"]["spec"]["containers"][1]
    assert difference(wanted, shown) == "spec.template.spec.containers.name"
    shown = live(DEPLOYMENT)
    shown["spec"]["template"]["spec"]["containers"][1]["args"].append("--open")
    assert difference(wanted, shown) == "spec.template.spec.containers.args"
    shown = live(DEPLOYMENT)
    shown["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    assert difference(wanted, shown) == "metadata.labels.app.kubernetes.io/managed-by"


def test_what_is_not_wanted_any_more_is_a_difference() -> None:
    less = replace(SETTINGS, resources={})
    assert difference(signed(of(DEPLOYMENT, less)), live(DEPLOYMENT)) == "metadata.annotations.wirekube.io/applied"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1000m", "1", True), ("1024Mi", "1Gi", True), ("0.5", "500m", True), ("1G", "1Gi", False), ("1", "x", False)],
)
def test_amounts(one: str, other: str, same: bool) -> None:
    assert (difference({"cpu": one}, {"cpu": other}) == "") is same
