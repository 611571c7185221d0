# SPDX-License-Identifier: Apache-2.0
"""Nodes whose Service network is reachable through the mesh alone: they come up all the same, and then it works."""

from __future__ import annotations

import json
import sys

import pytest

from wirekube.lab import netns
from wirekube.lab.topology import API_SERVICE, DNS_SERVICE

TOPOLOGY = "bootstrap"
CLOUD, HOME, FIREWALLED, SYMMETRIC = "cloud", "home-a", "home-b", "cloudnat-a"

pytestmark = pytest.mark.timeout(120)

ASK = """
import socket, ssl, sys, urllib.request, json, base64
names = sys.argv[1].split(",")
print([socket.gethostbyname(name) for name in names])
cluster = json.load(open(sys.argv[2]))["clusters"][0]["cluster"]
context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
with urllib.request.urlopen("https://kubernetes.default.svc:443/version", context=context, timeout=10) as answer:
    print(json.load(answer)["gitVersion"])
"""

UNREACHABLE_BEFORE = {}


def before_agents(lab):
    """See with the node's own eyes that the Service network leads nowhere yet."""
    with netns.inside(lab.namespace(HOME)):
        for address in (API_SERVICE, DNS_SERVICE):
            try:
                netns.run(["ping", "-c", "1", "-W", "0.3", str(address)])
            except netns.NetworkError:
                UNREACHABLE_BEFORE[str(address)] = True


def test_every_node_joined_without_service_address_and_cluster_dns(mesh):
    assert set(UNREACHABLE_BEFORE) == {str(API_SERVICE), str(DNS_SERVICE)}
    for node in mesh.lab.nodes:
        kubeconfig = json.loads((mesh.lab.root(node).folder / "kubeconfig").read_text())
        assert kubeconfig["clusters"][0]["cluster"]["server"] == f"https://{API_SERVICE}:443"
    with mesh.pinging((HOME, CLOUD), (FIREWALLED, HOME), (SYMMETRIC, CLOUD), (SYMMETRIC, FIREWALLED)) as pings:
        pings.more(25)


@pytest.mark.parametrize("node", [HOME, FIREWALLED, SYMMETRIC])
def test_dns_and_https_to_services_work_through_the_mesh(mesh, node):
    assert "dev wire_kube" in mesh.net(node, f"ip route get {API_SERVICE}")
    (cloud,) = [key for key, peer in mesh.wg(node).peers.items() if "10.96.0.0/16" in peer.allowed_ips]
    before = mesh.wg(node).peers[cloud]
    names = "kubernetes.default.svc.cluster.local,kube-dns.kube-system.svc.cluster.local,api.lab.example"
    folder = mesh.lab.root(node).folder
    addresses, version = mesh.lab.exec(
        node, sys.executable, "-c", ASK, names, f"{folder}/kubeconfig"
    ).stdout.splitlines()
    assert addresses == str([str(API_SERVICE), str(DNS_SERVICE), "203.0.113.5"])
    assert version.startswith("v1.")
    after = mesh.wg(node).peers[cloud]
    assert after.rx - before.rx > 1000, "the certificates came through the tunnel"


def test_an_agent_that_starts_while_the_mesh_is_down_needs_nothing_of_it(mesh):
    """The node that carries the services is away: what leads there is dead, and the others start all the same."""
    mesh.lab.kill_agent(CLOUD)
    mesh.net(CLOUD, "ip link set eth0 down")
    try:
        mesh.lab.stop_agent(HOME)
        mesh.cleanup(HOME)
        mesh.lab.start_agent(HOME)
        mesh.until(
            lambda: mesh.phase(HOME) == "Running" and mesh.both(HOME, FIREWALLED, "Direct")(), 30, "it has joined"
        )
        with mesh.pinging((HOME, FIREWALLED), (FIREWALLED, HOME)) as pings:
            pings.more(25)
    finally:
        mesh.net(CLOUD, "ip link set eth0 up")
        mesh.net(CLOUD, "ip route replace default via 203.0.113.5")
        mesh.lab.start_agent(CLOUD)
    mesh.until(mesh.both(HOME, CLOUD, "Direct"), 45, "the services are back")
