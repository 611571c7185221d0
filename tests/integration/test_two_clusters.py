# SPDX-License-Identifier: Apache-2.0
"""One cluster's Peers and Mesh applied over another's: two real API servers, the operator of the second.

`kubectl get ... -o yaml | kubectl apply -f -` itself is refused object by object, but for Peers whose names are free. So
it is also tried with what people cut out to get past that: uid, resourceVersion, and owners too.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Operator

from wirekube.lab.controlplane import ControlPlane, find_or_build
from wirekube.lab.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
KEY, FOREIGN = (base64.b64encode(bytes([number]) * 32).decode() for number in (7, 8))
SERVER_SIDE = ("apply", "--server-side", "--force-conflicts", "-f", "-")
BOOKKEEPING = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")

pytestmark = pytest.mark.timeout(120)


class Side:
    """One cluster, with the Nodes `same` and one of its own."""

    def __init__(self, plane: ControlPlane, own: str, log: Path, spec: dict[str, Any]) -> None:
        self.plane, self.kubectl, self.log = plane, plane.kubectl, log
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "config/default/namespace.yaml"))
        self.kubectl("apply", "--server-side", "-k", str(ROOT / "config/crd"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        mesh = {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}, "spec": spec}
        self.kubectl("apply", "-f", "-", input=json.dumps(mesh))
        for name in ("same", own):
            label = {"wirekube.io/vpn-enabled": "true"}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": label}}
            self.kubectl("apply", "-f", "-", input=json.dumps(node))
        self.operator = Operator(plane.kubeconfig, log)
        for name in ("same", own):
            eventually(lambda name=name: self.peer(name))

    def stop_operator(self) -> None:
        if self.operator.process.poll() is None:
            self.operator.stop()

    def peer(self, name: str) -> Any:
        shown = self.kubectl("get", "wkpeer", name, "-o", "json", "--ignore-not-found").stdout
        return json.loads(shown) if shown else None

    def names(self) -> set[str]:
        return {
            each["metadata"]["name"] for each in json.loads(self.kubectl("get", "wkpeer", "-o", "json").stdout)["items"]
        }

    def condition(self, name: str, type: str) -> dict[str, Any]:
        found = ((self.peer(name) or {}).get("status") or {}).get("conditions", [])
        return next((each for each in found if each["type"] == type), {})

    def publish(self, name: str, key: str) -> None:
        """What an agent writes."""
        up = {"type": "DataPlaneReady", "status": "True", "reason": "Up", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        body = {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}}
        body["status"] = {"publicKey": key, "conditions": [up | {"message": ""}]}
        words = ("apply", "--server-side", "--subresource=status", "--field-manager=wirekube-agent", "-f", "-")
        self.kubectl(*words, input=json.dumps(body))

    def export(self, *without: str) -> str:
        """What `kubectl get wirekubepeers,wirekubemesh` shows, without some of its metadata."""
        shown = json.loads(self.kubectl("get", "wirekubepeers,wirekubemesh", "-o", "json").stdout)
        for each in shown["items"]:
            for field in without:
                each["metadata"].pop(field, None)
        return json.dumps(shown)

    def said(self, words: str) -> bool:
        return words in self.log.read_text()


@pytest.fixture(scope="module")
def sides(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    """The cluster whose objects are taken, its operator stopped, and the one that they are applied to."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as etcd:
        ports = api.getsockname()[1], etcd.getsockname()[1]
    plane = ControlPlane(folder, find_or_build(), port=ports[0], etcd_port=ports[1])
    plane.start()
    made: list[Side] = []
    try:
        made.append(Side(plane, "only-there", folder / "operator.log", {"listenPort": 50000}))
        made[0].publish("same", FOREIGN)
        made[0].publish("only-there", FOREIGN)
        made[0].stop_operator()
        made.append(Side(control_plane, "only-here", folder / "here.log", {}))
        yield made[0], made[1]
    finally:
        for side in made:
            side.stop_operator()
        plane.stop()
        control_plane.kubectl("delete", "node", "same", "only-here", "--ignore-not-found")
        control_plane.kubectl("delete", "wkpeer", "--all")
        control_plane.kubectl("delete", "wkmesh", "default", "--ignore-not-found")


@pytest.mark.parametrize(
    ("how", "without"),
    [
        (("apply", "-f", "-"), ()),
        (SERVER_SIDE, ()),
        (("apply", "-f", "-"), BOOKKEEPING),
        (SERVER_SIDE, BOOKKEEPING),
    ],
    ids=["as it is", "server-side as it is", "without bookkeeping", "server-side without bookkeeping"],
)
def test_what_another_cluster_owns_is_removed_and_ours_comes_back(
    sides: tuple[Side, Side], how: tuple[str, ...], without: tuple[str, ...]
) -> None:
    there, here = sides
    here.publish("same", KEY)
    eventually(lambda: here.condition("same", "Ready").get("status") == "True")
    before, node = here.peer("same"), json.loads(here.kubectl("get", "node", "same", "-o", "json").stdout)
    done = here.kubectl(*how, input=there.export(*without), check=False)
    assert (done.returncode == 0) == bool(without)
    eventually(lambda: here.names() == {"same", "only-here"})

    def ours() -> bool:
        after = here.peer("same")
        return bool(after["spec"]["addresses"] == before["spec"]["addresses"]) and node["metadata"]["uid"] in [
            each["uid"] for each in after["metadata"]["ownerReferences"]
        ]

    eventually(ours)
    # A main-resource write carries no status: keys and verdicts of elsewhere do not get in.
    assert here.peer("same")["status"]["publicKey"] == KEY
    assert here.condition("same", "Ready")["status"] == "True"
    mesh = json.loads(here.kubectl("get", "wkmesh", "default", "-o", "json").stdout)
    assert (
        mesh["status"]["meshCIDRs"]
        != json.loads(there.kubectl("get", "wkmesh", "default", "-o", "json").stdout)["status"]["meshCIDRs"]
    )
    if without:
        assert mesh["spec"]["listenPort"] == 50000, "the spec is a person's word, whoever wrote it"
        assert here.said("there is no such Node here")
        eventually(
            lambda: "this cluster has no Node only-there" in here.kubectl("get", "events", "-n", "default").stdout
        )
    here.kubectl("patch", "wkmesh", "default", "--type=merge", "-p", '{"spec": {"listenPort": 51820}}')


def test_one_that_nobody_owns_stays_flagged_and_out_of_the_mesh(sides: tuple[Side, Side]) -> None:
    there, here = sides
    here.kubectl(*SERVER_SIDE, input=there.export(*BOOKKEEPING, "ownerReferences"))
    here.publish("only-there", FOREIGN)  # somebody restores even the status
    eventually(lambda: here.condition("only-there", "KeyAccepted").get("reason") == "NoNode")
    ready = eventually(lambda: here.condition("only-there", "Ready"))
    assert (ready["status"], ready["reason"]) == ("False", "NoNode")
    assert "kubectl delete wkpeer only-there" in ready["message"]
    eventually(lambda: "if the Peer came from another cluster" in here.kubectl("get", "events", "-n", "default").stdout)
    here.kubectl("delete", "wkpeer", "only-there")


def test_a_label_where_no_agent_runs_says_where_to_look(sides: tuple[Side, Side]) -> None:
    _, here = sides
    eventually(lambda: here.condition("only-here", "Ready").get("status") == "False", 30)
    ready = here.condition("only-here", "Ready")
    assert ready["reason"] == "AgentNotReported"
    assert "kubectl -n wirekube-system get pods --field-selector spec.nodeName=only-here" in ready["message"]
    eventually(lambda: "AgentNotReported" in here.kubectl("get", "events", "-n", "default").stdout)
    assert "only-here" in here.kubectl("get", "wkpeer", "-o", "wide").stdout
