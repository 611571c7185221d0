# SPDX-License-Identifier: Apache-2.0
"""Mesh addresses, as the operator's process gives them out on a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from operators import Operator, World

from wirekube.lab.controlplane import ControlPlane
from wirekube.lab.wait import eventually

NODES = [f"addr-{letter}" for letter in "abcdefgh"]  # eight, and a /29 has room for six


class Cluster:
    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self.plane, self.kubectl, self._log = plane, plane.kubectl, log
        self.start()

    def start(self) -> None:
        self.operator = Operator(self.plane.kubeconfig, self._log)

    def nodes(self, names: list[str]) -> None:
        label = {"wirekube.io/vpn-enabled": "true"}
        items = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": each, "labels": label}} for each in names]
        self.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def range(self, text: str | None) -> None:
        spec = {"spec": {"meshCIDR": text}}
        self.kubectl("patch", "wkmesh", "default", "--type=merge", "-p", json.dumps(spec))

    def addresses(self) -> dict[str, str]:
        """The IPv4 address of each Peer."""
        items = json.loads(self.kubectl("get", "wkpeer", "-o", "json").stdout)["items"]
        return {
            each["metadata"]["name"]: each["spec"]["addresses"][0] for each in items if each["spec"].get("addresses")
        }

    def all_in(self, text: str, count: int) -> bool:
        found = list(self.addresses().values())
        inside = [each for each in found if ip_address(each.partition("/")[0]) in ip_network(text)]
        return len(found) == len(inside) == len(set(inside)) == count

    def verdict(self) -> tuple[str, str, str]:
        path = "jsonpath={.status.conditions[?(@.type=='AddressesReady')]}"
        found: Any = json.loads(self.kubectl("get", "wkmesh", "default", "-o", path).stdout or "{}")
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")


@pytest.fixture
def cluster(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Cluster]:
    World(control_plane).install()
    found = Cluster(control_plane, tmp_path / "log")
    yield found
    control_plane.kubectl("delete", "nodes", *NODES, "--ignore-not-found")
    eventually(lambda: found.addresses() == {})
    found.operator.stop()
    control_plane.kubectl("delete", "wkmesh", "default", "--ignore-not-found")


def test_a_node_keeps_its_address_over_restarts_of_the_operator_and_its_own_return(cluster: Cluster) -> None:
    cluster.nodes(NODES)
    eventually(lambda: cluster.all_in("198.18.0.0/16", len(NODES)))
    before = cluster.addresses()
    cluster.operator.stop()
    cluster.kubectl("delete", "node", "addr-a")
    cluster.start()
    eventually(lambda: "addr-a" not in cluster.addresses())
    cluster.nodes(["addr-a"])
    eventually(lambda: len(cluster.addresses()) == len(NODES))
    assert cluster.addresses() == before


def test_a_range_that_is_full_is_said_and_a_larger_one_is_taken_while_the_mesh_runs(cluster: Cluster) -> None:
    cluster.range("10.213.0.0/29")
    eventually(lambda: cluster.verdict()[0] == "True")
    cluster.nodes(NODES)
    eventually(lambda: cluster.verdict()[:2] == ("False", "RangeExhausted"))
    eventually(lambda: cluster.all_in("10.213.0.0/29", 6))
    _, _, message = cluster.verdict()
    assert "8 nodes are in the mesh" in message
    assert "6 addresses" in message
    waiting = sorted(set(NODES) - cluster.addresses().keys())
    eventually(lambda: all(name in cluster.verdict()[2] for name in waiting))
    eventually(lambda: "NoMeshAddress" in cluster.kubectl("get", "events", "-n", "default").stdout)

    cluster.range("10.213.0.0/24")
    eventually(lambda: cluster.all_in("10.213.0.0/24", 8))
    eventually(lambda: cluster.verdict()[0] == "True")


def test_a_range_that_the_cluster_uses_is_refused_with_its_reason_and_the_old_one_stays(cluster: Cluster) -> None:
    cluster.nodes(NODES[:2])
    eventually(lambda: cluster.all_in("198.18.0.0/16", 2))
    before = cluster.addresses()
    cluster.range("10.96.128.0/24")  # of the Services
    eventually(lambda: cluster.verdict()[:2] == ("False", "RangeRefused"))
    assert "10.96.128.0/24 overlaps 10.96.0.0/16" in cluster.verdict()[2]
    assert "in force: 198.18.0.0/16" in cluster.verdict()[2]
    assert cluster.addresses() == before
    cluster.range(None)
    eventually(lambda: cluster.verdict()[0] == "True")
    assert cluster.addresses() == before
