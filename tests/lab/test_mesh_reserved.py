# SPDX-License-Identifier: Apache-2.0
"""What a Peer may not announce: where the API server and other nodes are. Told to the user, refused on every node."""

from __future__ import annotations

import json

import pytest

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
INTERNET, SITE = "203.0.113.0/24", "10.77.0.0/16"

pytestmark = pytest.mark.timeout(120)


def found(mesh, what, name):
    return json.loads(mesh.lab.kubectl("get", what, name, "-o", "json"))["status"]


def test_the_operator_tells_where_no_node_is_and_where_the_api_server_is(mesh):
    status = found(mesh, "wkmesh", "default")
    assert status["apiServers"] == ["203.0.113.5"]
    assert status["clusterCIDRs"] == ["10.96.0.0/16"]


def test_a_network_that_covers_nodes_and_api_server_is_left_out_everywhere(mesh):
    assert mesh.patch(B, "spec", {"allowedIPs": [INTERNET, SITE]})
    mesh.until(lambda: SITE in mesh.net(A, "ip route show table 22347"), 20, "the other network is routed")
    assert INTERNET not in mesh.net(A, "ip route show table 22347")
    assert not any(INTERNET in peer.allowed_ips for peer in mesh.wg(A).peers.values())
    assert "wire_kube" not in mesh.net(A, "ip route get 203.0.113.5")

    def verdict():
        return next((c for c in found(mesh, "wkpeer", B)["conditions"] if c["type"] == "AllowedIPsAccepted"), {})

    mesh.until(lambda: verdict().get("status") == "False", 10, "the user is told")
    assert verdict()["reason"] == "AllowedIPOverlaps"
    assert INTERNET in verdict()["message"]
    assert "an address of the API server" in verdict()["message"]
    assert mesh.patch(B, "spec", {"allowedIPs": []})
    mesh.until(lambda: SITE not in mesh.net(A, "ip route show table 22347"), 20, "the network is gone again")
