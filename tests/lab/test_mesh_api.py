# SPDX-License-Identifier: Apache-2.0
"""The API server goes, lies, or says less than it should; nodes leave: what happens to the tunnels."""

from __future__ import annotations

import json
import os
import time
from functools import partial

import pytest

from wirekube.lab import noderoot, parts

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
CATCH_UP = 10.0  # the design's bounds
LEAVE = 5.0
NOISE = 2.0  # what a busy machine may add

pytestmark = pytest.mark.timeout(120)


def direct(mesh):
    return lambda: mesh.phase(A) == mesh.phase(B) == "Running" and mesh.both(A, B, "Direct")()


def start_operator(mesh):
    env = noderoot.environment(parts.operator_environment(mesh.lab.root("api").folder / "kubeconfig"), dict(os.environ))
    mesh.lab.start("operator", "api", parts.operator(), env, own_root=True)


def saved(mesh, node):
    """Return the names of the peers whose keys the node knows on disk."""
    path = mesh.lab.root(node).state / "state.json"
    peers = json.loads(path.read_text())["peers"] if path.exists() else []
    return {peer["metadata"]["name"] for peer in peers if peer.get("status", {}).get("publicKey")}


@pytest.fixture(scope="class")
def api_away(mesh):
    """The API server is killed; it is back at the end."""
    mesh.until(direct(mesh), 30, "all is well before")
    mesh.until(lambda: saved(mesh, A) == {A, B}, 40, "the mesh is on disk")
    for name in ("kube-apiserver", "etcd"):
        mesh.lab.control_plane.processes.kill(name)
    yield
    mesh.lab.control_plane.launch()
    mesh.until(direct(mesh), 30, "all is well again")


def test_an_outage_of_the_api_server_loses_no_packet_and_agents_catch_up(mesh, measured):
    mesh.until(direct(mesh), 30, "all is well before")
    pids = {node: mesh.lab.agent_pid(node) for node in (A, B)}
    before = {node: mesh.wg(node).identity for node in (A, B)}
    news = "10.77.0.0/16"
    with mesh.pinging((A, B), (B, A)) as pings:
        mesh.lab.control_plane.processes.kill("kube-apiserver")
        mesh.lab.control_plane.stop()
        pings.more(400, seconds=60)
        assert {node: mesh.wg(node).identity for node in (A, B)} == before
        mesh.lab.control_plane.launch()
        begin = time.monotonic()
        assert mesh.patch(B, "spec", {"allowedIPs": [news]})
        mesh.until(lambda: news in mesh.net(A, "ip route show table 22347"), 40, "the new network is routed")
        took = time.monotonic() - begin
    measured("catching up after an outage", took, "10 s")
    assert any(news in peer.allowed_ips for peer in mesh.wg(A).peers.values())
    assert mesh.patch(B, "spec", {"allowedIPs": []})
    mesh.until(lambda: {node: mesh.wg(node).identity for node in (A, B)} == before, 10, "the network is gone again")
    assert took < CATCH_UP + NOISE
    pings.assert_none_lost()
    assert {node: mesh.lab.agent_pid(node) for node in (A, B)} == pids


@pytest.mark.usefixtures("api_away")
class TestWithoutApiServer:
    def test_a_restarted_agent_continues_with_what_it_knew(self, mesh):
        before = mesh.wg(A).identity
        with mesh.pinging((A, B), (B, A)) as pings:
            mesh.lab.kill_agent(A)
            mesh.lab.start_agent(A)
            took = mesh.until(lambda: mesh.phase(A) == "Cached", 10, "the agent runs from its cached state")
            mesh.until(mesh.both(A, B, "Direct"), 10, "the pair is direct")
            pings.more(100)
        print(f"MEASURED restart without API server: {took:.1f} s, {pings.lost()} of {pings.sent} pings lost")
        pings.assert_none_lost()
        assert mesh.wg(A).identity == before

    def test_a_cold_start_brings_the_last_known_mesh_up(self, mesh, measured):
        """As after a reboot: the run folder is empty and the host has nothing of ours, the state folder is there."""
        key = mesh.wg(A).public_key
        mesh.lab.stop_agent(A)
        (mesh.lab.run_dir(A) / "handover.json").unlink()
        mesh.cleanup(A, "--stale")
        assert mesh.changes(A) == {}
        begin = time.monotonic()
        mesh.lab.start_agent(A)
        with mesh.pinging((A, B), (B, A)):
            took = time.monotonic() - begin
        measured("cold start without API server, until pings are answered", took, "10 s")
        assert took < 10 + NOISE
        assert mesh.phase(A) == "Cached"
        assert mesh.wg(A).public_key == key

    def test_a_second_agent_takes_over(self, mesh, measured):
        argv, env = mesh.lab.command(A, [])
        mesh.lab.processes.start("agent-second", [*argv, *mesh.agent], env)
        try:
            mesh.until(lambda: "another agent" in mesh.log("agent-second"), 15, "the second agent waits")
            with mesh.pinging((A, B)) as pings:
                mesh.lab.kill_agent(A)
                took = mesh.until(lambda: mesh.answer(A) is not None, 5, "the second agent answers")
                mesh.until(lambda: mesh.phase(A) == "Cached", 10, "the second agent runs")
                pings.more(50)
            measured("take-over without API server", took, "1 s")
            assert took < 1 + NOISE
            pings.assert_none_lost()
        finally:
            mesh.lab.processes.stop("agent-second")
            mesh.lab.start_agent(A)
            mesh.until(lambda: mesh.phase(A) == "Cached", 15, "the usual agent runs again")


def come_back(mesh):
    """Install what was deleted, and run the operator."""
    if mesh.lab.processes.pid("operator") is None:
        mesh.apply_config()
        start_operator(mesh)


@pytest.fixture
def no_operator(mesh):
    """Nobody makes Peers; the operator and the CRDs are there again at the end."""
    mesh.until(direct(mesh), 30, "all is well before")
    mesh.lab.processes.stop("operator")
    yield
    come_back(mesh)


@pytest.mark.usefixtures("no_operator")
def test_deleting_the_crd_or_all_peers_by_accident_removes_nothing(mesh):
    def world():
        return {node: (mesh.wg(node).identity, mesh.net(node, "ip route show table 22347")) for node in (A, B)}

    before, uids = world(), mesh.uids()
    with mesh.pinging((A, B), (B, A)) as pings:
        mesh.lab.kubectl("delete", "wirekubepeer", A)
        pings.more(15)  # a mass deletion has no order, and takes its time
        mesh.lab.kubectl("delete", "wirekubepeers", "--all")
        pings.more(150)
        assert world() == before, "all Peers are deleted"
        mesh.lab.kubectl("delete", "crd", "wirekubepeers.wirekube.io")
        pings.more(250)
        assert world() == before, "the CRD is deleted"
        assert {mesh.phase(A), mesh.phase(B)} <= {"Running", "Offline"}
        come_back(mesh)
        mesh.until(lambda: set(mesh.uids()) == {A, B}, 20, "the Peers are made anew")
        mesh.until(lambda: mesh.all_ready(A, B), 30, "the Peers are ready")
        pings.more(100)
        assert world() == before, "the Peers are back"
    assert not set(uids.values()) & set(mesh.uids().values())
    pings.assert_none_lost()


def test_a_node_without_the_label_leaves_and_its_host_is_clean(mesh, measured):
    mesh.until(direct(mesh), 30, "all is well before")
    pid, key = mesh.lab.agent_pid(B), mesh.wg(B).public_key
    begin = time.monotonic()
    mesh.lab.kubectl("label", "node", B, "wirekube.io/vpn-enabled-")
    try:
        mesh.until(lambda: mesh.wg(A).peers == {}, 15, f"{B} has left {A}'s WireGuard")
        left = time.monotonic() - begin
        mesh.until(lambda: mesh.changes(B) == {}, 15, f"the host of {B} is clean")
        clean = time.monotonic() - begin
        measured("an unlabelled node leaves the others", left, "5 s")
        measured("an unlabelled node's host is clean", clean, "5 s")
        assert left < LEAVE + NOISE
        assert clean < LEAVE + NOISE
        assert mesh.addresses[B][0] not in mesh.net(A, "ip route show table 22347")
        assert mesh.phase(B) == "Idle"
        assert mesh.lab.agent_pid(B) == pid
    finally:
        mesh.lab.kubectl("label", "node", B, "wirekube.io/vpn-enabled=true")
    mesh.until(direct(mesh), 30, "the node is back")
    assert mesh.wg(B).public_key == key
    assert mesh.lab.mesh_addresses() == mesh.addresses
    with mesh.pinging((A, B), (B, A)) as pings:
        pings.more(25)


GARBAGE = [
    ("status", {"publicKey": "garbage", "candidates": 7, "conditions": "none"}),
    ("status", {"publicKey": ["list"], "nat": 5, "conditions": ["text", 1]}),
    # No allowedIPs: those the admission policy refuses, whatever the schema says.
    ("spec", {"addresses": ["300.1.2.3/32", 7], "podCIDRs": {"a": "b"}}),
]


def test_a_malformed_peer_that_got_in_harms_itself_alone(mesh):
    """The schema is taken away for a while, as an older CRD or a restore of etcd might."""
    mesh.until(direct(mesh), 30, "all is well before")
    before = {node: mesh.wg(node).identity for node in (A, B)}
    pids = {node: mesh.lab.agent_pid(node) for node in (A, B)}
    marks = {node: mesh.log_end(f"agent-{node}") for node in (A, B)}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "evil", "labels": {"wirekube.io/vpn-enabled": "true"}},
    }
    mesh.lab.kubectl("create", "-f", "-", input=json.dumps(node))
    mesh.lab.kubectl("wait", "--for=create", "--timeout=20s", "wirekubepeer/evil")
    try:
        with mesh.pinging((A, B), (B, A)) as pings:
            mesh.relax_schema("wirekubepeers.wirekube.io")
            for part, content in GARBAGE:
                mesh.until(partial(mesh.patch, "evil", part, content), 10, "the API server takes garbage")
                pings.more(25)
            mesh.until(
                lambda: mesh.condition("evil", "Ready").get("reason") == "Malformed", 10, "the Peer itself says so"
            )
            assert {node: mesh.wg(node).identity for node in (A, B)} == before
    finally:
        mesh.lab.kubectl("delete", "node", "evil")
        mesh.apply_config()
    mesh.until(lambda: "evil" not in mesh.uids(), 20, "the operator removes the Peer of a Node that went")
    pings.assert_none_lost()
    for node in (A, B):
        # The operator leaves it out of the slices; while it could be read it was a Peer without a key.
        assert '"reason": "Malformed"' not in mesh.log(f"agent-{node}", marks[node])
    assert {node: mesh.lab.agent_pid(node) for node in (A, B)} == pids


def test_a_status_that_somebody_takes_away_is_written_again(mesh):
    mesh.until(direct(mesh), 30, "all is well before")
    key = mesh.wg(B).public_key
    with mesh.pinging((A, B), (B, A)) as pings:
        assert mesh.patch(B, "status", {"publicKey": None, "candidates": None, "nat": None})
        mesh.until(lambda: mesh.status(B).get("publicKey") == key, 10, f"{B} has published again")
        mesh.until(lambda: mesh.all_ready(A, B), 10, "the Peers are ready")
        pings.more(50)
    pings.assert_none_lost()


def test_a_node_that_is_deleted_leaves_and_its_host_is_clean(mesh, measured):
    """The last test of this lab: with the Node goes the agent's token, which is bound to it."""
    mesh.until(direct(mesh), 30, "all is well before")
    begin = time.monotonic()
    mesh.lab.kubectl("delete", "node", B)
    mesh.until(lambda: mesh.wg(A).peers == {}, 15, f"{B} has left {A}'s WireGuard")
    left = time.monotonic() - begin
    mesh.until(lambda: mesh.changes(B) == {}, 30, f"the host of {B} is clean")
    clean = time.monotonic() - begin
    measured("a deleted node leaves the others", left, "5 s")
    measured("a deleted node's host is clean", clean, "5 s")
    assert left < LEAVE + NOISE
    assert clean < LEAVE + NOISE
    assert mesh.lab.agent_pid(B) is not None
