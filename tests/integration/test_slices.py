# SPDX-License-Identifier: Apache-2.0
"""Peers reach agents through slices: the operator's process, the agents' door and a real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Operator, World

from wirekube.agent.peersource import WatchedSlices
from wirekube.lab.controlplane import ControlPlane
from wirekube.lab.wait import eventually
from wirekube.telemetry import noop

API = "wirekube.io/v1alpha1"
NODES = [f"slice-{letter}" for letter in "abc"]
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="marks its sockets: needs root")]


class Cluster:
    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.folder, self.kubectl = plane, folder, plane.kubectl
        self.start()

    def start(self) -> None:
        self.operator = Operator(self.plane.kubeconfig, self.folder / "operator.log")

    def publish(self, name: str, key: int, **status: Any) -> None:
        """What an agent writes."""
        status = {"publicKey": base64.b64encode(bytes([key]) * 32).decode()} | status
        body = {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}, "status": status}
        arguments = ("apply", "--server-side", "--subresource=status", "--field-manager=wirekube-agent", "-f", "-")
        self.kubectl(*arguments, input=json.dumps(body))

    def slices(self) -> list[Any]:
        return list(json.loads(self.kubectl("get", "wkslice", "-o", "json").stdout)["items"])

    def entries(self) -> dict[str, Any]:
        return {entry["name"]: entry for found in self.slices() for entry in found.get("peers", [])}

    def accepted(self) -> set[str]:
        return {name for name, entry in self.entries().items() if entry["status"].get("keyAccepted")}

    def versions(self) -> dict[str, str]:
        return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in self.slices()}


@pytest.fixture
def cluster(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Cluster]:
    World(control_plane).install()
    nodes = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": n, "labels": {"wirekube.io/vpn-enabled": "true"}}}
        for n in NODES
    ]
    control_plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes}))
    found = Cluster(control_plane, tmp_path)
    eventually(lambda: found.entries().keys() >= set(NODES))
    for number, name in enumerate(NODES):
        found.publish(name, number + 1)
    eventually(lambda: found.accepted() >= set(NODES))
    yield found
    control_plane.kubectl("delete", "nodes", *NODES, "--ignore-not-found")
    control_plane.kubectl("delete", "wkpeer", *NODES, "--ignore-not-found")
    if found.operator.process.poll() is not None:
        found.start()
    eventually(lambda: not found.slices())
    found.operator.stop()
    control_plane.kubectl("delete", "wkmesh", "default", "--ignore-not-found")


def test_only_what_others_act_on_is_written_and_what_others_damage_is_repaired(cluster: Cluster) -> None:
    before = cluster.versions()
    cluster.publish("slice-a", 1, peers={"direct": 2}, relay="relay.example.com:3478", listenPort=51820)
    # A later change that does matter has come through: so has the one before, which left no trace.
    cluster.publish("slice-b", 2, candidates=[{"endpoint": "203.0.113.7:51820", "type": "host"}])
    eventually(lambda: "candidates" in cluster.entries()["slice-b"]["status"])
    changed = {name for name, version in cluster.versions().items() if before.get(name) != version}
    assert [
        [entry["name"] for entry in found["peers"]]
        for found in cluster.slices()
        if found["metadata"]["name"] in changed
    ] == [["slice-b"]]

    wanted = cluster.entries()
    name = next(iter(before))
    cluster.kubectl("patch", "wkslice", name, "--type=merge", "-p", '{"peers": [{"name": "evil"}]}')
    eventually(lambda: cluster.entries() == wanted)
    cluster.kubectl("delete", "wkslice", name)
    eventually(lambda: cluster.entries() == wanted)


def test_a_peer_that_somebody_deletes_is_made_anew_and_never_leaves_the_slices(cluster: Cluster) -> None:
    uid = cluster.entries()["slice-c"]["uid"]
    cluster.kubectl("delete", "wkpeer", "slice-c")
    seen = set()

    def another() -> bool:
        entry = cluster.entries().get("slice-c")
        seen.add(entry is not None)
        return entry is not None and entry["uid"] != uid

    eventually(another)
    assert seen == {True}


async def test_an_agent_reads_its_mesh_from_slices_with_an_agents_rights_and_keeps_it_without_an_operator(
    cluster: Cluster, tmp_path: Path
) -> None:
    node = json.loads(cluster.kubectl("get", "node", "slice-a", "-o", "json").stdout)
    kubeconfig = tmp_path / "agent"
    cluster.plane.service_account_kubeconfig("wirekube-system", "wirekube-agent", node, kubeconfig)
    source = WatchedSlices("slice-a", str(kubeconfig), (None,), noop(), lambda: None)
    task = asyncio.create_task(source.run())

    def known() -> bool:
        own = source.snapshot().own or {}
        return len(source.snapshot().peers) == 3 and "conditions" in own.get("status", {})

    try:
        async with asyncio.timeout(20):
            while not known():  # noqa: ASYNC110 - the world outside has no event to wait for
                await asyncio.sleep(0.05)
        own = source.snapshot().own
        assert own is not None
        assert own["metadata"]["name"] == "slice-a"
        assert {each["type"] for each in own["status"]["conditions"]} >= {"Ready", "KeyAccepted"}, "its whole status"
        assert await source.publish({"publicKey": own["status"]["publicKey"], "listenPort": 4711})
        assert (source.snapshot().own or {})["status"]["listenPort"] == 4711
        await asyncio.to_thread(cluster.operator.stop)
        assert source.unhealthy() is None
        assert {each["metadata"]["name"] for each in source.snapshot().peers} == set(NODES)
    finally:
        task.cancel()
        await asyncio.wait([task])
