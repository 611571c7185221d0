# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wirekube.lab.topology import Nat, TopologyError, available, load, parse

PUBLIC = {"name": "a"}
HOME = {"name": "home", "nat": "eim-apdf"}


def nodes(*each: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"nodes": list(each), **others}


def test_the_package_has_its_topologies() -> None:
    assert {"bootstrap", "default", "pair"} <= set(available())
    for name in available():
        assert load(name).description


def test_default_covers_what_hosts_do_to_packets() -> None:
    topology = load("default")
    assert [(node.name, node.nat.value) for node in topology.nodes] == [
        ("cloud", "none"),
        ("home-a", "eim-apdf"),
        ("home-b", "eim-apdf"),
        ("cloudnat-a", "symmetric"),
        ("cloudnat-b", "symmetric"),
        ("office", "udp-blocked"),
    ]
    assert sum(node.kube_proxy for node in topology.nodes) == 1
    assert sum(node.input_drop for node in topology.nodes) == 1
    assert sum(node.rp_filter == 1 for node in topology.nodes) == 1


def test_bootstrap_names_services_and_has_no_address_of_stun_or_relay() -> None:
    topology = load("bootstrap")
    assert all(node.api_server == "service" and node.cluster_resolver and node.host_resolver for node in topology.nodes)
    assert all(":3478" in name and name[0].isalpha() for name in topology.mesh["stunServers"])
    assert topology.mesh["relay"]["external"]["endpoint"].split(":")[0] in topology.names


def test_defaults_hold_unless_a_node_says_otherwise() -> None:
    topology = parse(nodes(PUBLIC, {"name": "b", "rpFilter": 2}, defaults={"rpFilter": 1, "kubeProxy": True}), "x")
    assert [(node.rp_filter, node.kube_proxy) for node in topology.nodes] == [(1, True), (2, True)]


def test_neighbours_share_a_router() -> None:
    topology = parse(nodes(HOME, {"name": "other", "behind": "home"}, PUBLIC), "x")
    assert [topology.router_of(node) for node in topology.nodes] == ["home", "home", None]
    assert topology.nat_of(topology.node("other")) is Nat.EIM_APDF


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "a topology is a mapping with the keys nodes"),
        ({}, "nodes: Field required"),
        (nodes(), "nodes: Tuple should have at least 1 item"),
        (nodes({"name": "Upper"}), "nodes[0].name: 'Upper' does not match"),
        (nodes(PUBLIC, {"name": "b", "nat": "cone"}), "nodes[1].nat: Input should be 'none', 'eim-apdf'"),
        (nodes({"name": "a", "natt": "none"}), "nodes[0].natt: there is no such field"),
        (nodes(PUBLIC, PUBLIC), "two nodes are named a"),
        (nodes({"name": "relay"}), "a node is named relay, which is a name of the lab's own parts"),
        (nodes({"name": "nat-a"}), "a node is named nat-a, which is a name of the lab's own parts"),
        (nodes({"name": "b", "behind": "gone"}), "node b is behind gone, which is no node with a nat"),
        (nodes(PUBLIC, {"name": "b", "behind": "a"}), "node b is behind a, which is no node with a nat"),
        (nodes(HOME, {"name": "b", "behind": "home", "nat": "symmetric"}), "node b has both nat and behind"),
        (nodes({"name": "a", "services": True}, {"name": "b", "services": True}), "more than one node has services"),
        (nodes({"name": "a", "endpoint": "nowhere"}), "nodes[0].endpoint: 'nowhere' does not match"),
        (nodes(PUBLIC, mesh={"listenPort": 0}), "mesh: listenPort: Input should be greater than or equal to 1"),
        (nodes(PUBLIC, names={"x": "here"}), "names.x: Input is not a valid IPv4 address"),
    ],
)
def test_a_fault_is_one_line_with_source_and_field(data: Any, words: str) -> None:
    with pytest.raises(TopologyError) as raised:
        parse(data, "lab.yaml")
    assert str(raised.value).startswith(f"lab.yaml: {words}")
    assert "\n" not in str(raised.value)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"no topology nowhere; give one of .*pair, .*or the path"):
        load("nowhere")
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: [{name: a}, {name: b]")
    with pytest.raises(TopologyError, match=r"mine\.yaml"):
        load(str(path))
    path.write_text("nodes: [{name: a}, {name: b}]")
    assert [node.name for node in load(str(path)).nodes] == ["a", "b"]


def test_an_unknown_node_is_named_with_those_that_exist() -> None:
    with pytest.raises(TopologyError, match="no node x; there are home-a, home-b"):
        load("pair").node("x")
