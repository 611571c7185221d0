# SPDX-License-Identifier: Apache-2.0
"""Nodes whose Service network is reachable through the mesh alone, and whose STUN servers and relay have names."""

from __future__ import annotations

import ssl

import pytest

TOPOLOGY = "bootstrap"
FAR = ("home-a", "home-b", "cloudnat-a")
GET = "import sys, urllib.request, ssl\nprint(urllib.request.urlopen(sys.argv[1], timeout=5, context=ssl.create_default_context(cafile=sys.argv[2])).read().decode())"
ASK = "import sys, dns.resolver\nprint(dns.resolver.Resolver(filename=sys.argv[1]).resolve(sys.argv[2], lifetime=5)[0])"

pytestmark = pytest.mark.timeout(120)


def before_agents(lab):
    """Neither the Service address nor cluster DNS answers before there is a mesh."""
    for node in FAR:
        assert lab.exec(node, "ping", "-n", "-c1", "-W1", "10.96.0.10", check=False).returncode != 0


@pytest.mark.parametrize("node", FAR)
def test_the_service_network_is_reached_through_the_mesh(mesh, node):
    python = mesh.agent[0]
    for address in ("10.96.0.1", "10.96.0.10"):
        assert "dev wire_kube" in mesh.lab.exec(node, "ip", "route", "get", address).stdout
    ask = (python, "-c", ASK, "/etc/resolv.conf")
    assert mesh.lab.exec(node, *ask, "kubernetes.default.svc.cluster.local").stdout == "10.96.0.1\n"
    ca = str(mesh.lab.folder.control_plane / "pki" / "ca.crt")
    assert ssl.create_default_context(cafile=ca).cert_store_stats()["x509_ca"] == 1
    assert mesh.lab.exec(node, python, "-c", GET, "https://10.96.0.1/healthz", ca).stdout == "ok\n"


def test_agents_use_the_public_address_and_the_hosts_resolver(mesh):
    for node in mesh.lab.nodes:
        answer = mesh.answer(node)
        assert answer["apiServer"] == "https://203.0.113.5:6443"
        assert answer["relay"] == "relay.lab.example:3478"
        assert answer["phase"] == "Running"
