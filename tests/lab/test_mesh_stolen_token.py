# SPDX-License-Identifier: Apache-2.0
"""Somebody has the token of B's agent, and B's agent is gone: A and C do not notice, and B alone is out."""

from __future__ import annotations

import json
import subprocess

import pytest

TOPOLOGY = "bench"
A, B, C = "one", "home", "two"
SITE = "10.66.0.0/24"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def thief(mesh):
    """Apply the status of a Peer with the token of B's agent; returns what kubectl says against it."""
    mesh.lab.kubectl("patch", "wkpeer", A, "--type=merge", "-p", json.dumps({"spec": {"allowedIPs": [SITE]}}))
    mesh.until(lambda: SITE in networks(mesh, C, key_of(mesh, A)), 20, "A has a network behind it")
    mesh.lab.kill_agent(B)

    def write(peer, status):
        body = {
            "apiVersion": "wirekube.io/v1alpha1",
            "kind": "WireKubePeer",
            "metadata": {"name": peer},
            "status": status,
        }
        words = ["apply", "--server-side", "--force-conflicts", "--field-manager=wirekube-agent", "-f", "-"]
        token = f"--kubeconfig={mesh.lab.root(B).folder / 'kubeconfig'}"
        argv = mesh.lab.kubectl_command([*words, "--subresource=status", token])
        return subprocess.run(argv, input=json.dumps(body), capture_output=True, text=True, check=False).stderr

    return write


def key_of(mesh, node):
    return mesh.wg(node).public_key


def networks(mesh, node, key):
    peer = mesh.wg(node).peers.get(key)
    return peer.allowed_ips if peer is not None else frozenset()


def test_the_token_writes_neither_anothers_status_nor_the_operators_verdict(mesh, thief):
    key, verdicts = key_of(mesh, A), [mesh.condition(B, each) for each in ("KeyAccepted", "Ready")]
    assert f"the agent of node {B} may not write wirekubepeers of node {A}" in thief(A, {"publicKey": key_of(mesh, B)})
    forged = [each | {"message": key} for each in verdicts]
    assert "they are the operator's" in thief(B, {"conditions": forged})
    invented = [verdicts[0] | {"type": "InventedAccepted"}]
    assert "they are the operator's" in thief(B, {"conditions": invented})
    assert mesh.status(A)["publicKey"] == mesh.condition(A, "KeyAccepted")["message"] == key
    assert [mesh.condition(B, each) for each in ("KeyAccepted", "Ready")] == verdicts


def test_with_anothers_key_it_puts_its_own_node_out_and_nobody_else(mesh, thief):
    key, own = key_of(mesh, A), key_of(mesh, B)
    wanted = networks(mesh, C, key)
    assert wanted == {f"{mesh.addresses[A][0]}/32", f"{mesh.addresses[A][1]}/128", SITE}
    with mesh.pinging((A, C), (C, A)) as pings:
        claimed = {"publicKey": key, "candidates": mesh.status(A)["candidates"], "endpoint": mesh.status(A)["endpoint"]}
        assert thief(B, claimed) == ""
        mesh.until(lambda: mesh.condition(B, "KeyAccepted").get("reason") == "DuplicateKey", 10, "the operator refuses")
        assert mesh.condition(B, "KeyAccepted")["status"] == mesh.condition(B, "Ready")["status"] == "False"
        assert A in mesh.condition(B, "KeyAccepted")["message"]
        for node in (A, C):
            mesh.until(lambda node=node: own not in mesh.wg(node).peers, 10, f"B is out on {node}")
        pings.more(50)
        assert mesh.wg(C).peers.keys() == {key}
        assert networks(mesh, C, key) == wanted
    pings.assert_none_lost()
    assert mesh.status(B)["publicKey"] == key, "nobody has put it right meanwhile"
    assert (mesh.condition(A, "KeyAccepted")["message"], mesh.condition(A, "Ready")["status"]) == (key, "True")


def test_its_own_agent_puts_it_right(mesh, thief):
    key = key_of(mesh, A)
    with mesh.pinging((A, C), (C, A)) as pings:
        mesh.lab.start_agent(B)
        mesh.until(lambda: mesh.all_ready(A, B, C), 30, "all are Ready")
        for node in (A, C):
            mesh.until(mesh.both(node, B, "Direct"), 30, f"B is back on {node}")
    pings.assert_none_lost()
    assert key_of(mesh, A) == key
    assert {mesh.status(each)["publicKey"] for each in (A, B, C)} == {key_of(mesh, each) for each in (A, B, C)}
