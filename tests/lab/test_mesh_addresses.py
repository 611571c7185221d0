# SPDX-License-Identifier: Apache-2.0
"""Another range of mesh addresses for a mesh that runs."""

from __future__ import annotations

import json

import pytest

from wirekube.lab.netns import NetworkError

TOPOLOGY = "pair"
A, B = "home-a", "home-b"

pytestmark = pytest.mark.timeout(120)


def set_range(mesh, text):
    body = json.dumps({"spec": {"meshCIDR": text}})
    mesh.lab.kubectl("patch", "wirekubemesh", "default", "--type=merge", "-p", body)


def ranges(mesh):
    return json.loads(mesh.lab.kubectl("get", "wirekubemesh", "default", "-o", "jsonpath={.status.meshCIDRs}"))


def inside(mesh, prefix):
    return lambda: all(found[0].startswith(prefix) for found in mesh.lab.mesh_addresses().values())


def test_the_mesh_moves_into_another_range_and_back_and_one_that_is_taken_is_refused(mesh, measured):
    keys = {node: mesh.wg(node).public_key for node in (A, B)}
    first = mesh.lab.mesh_addresses()
    set_range(mesh, "10.213.0.0/24")
    mesh.until(inside(mesh, "10.213.0."), 20, "every Peer has an address of the new range")
    seconds = mesh.until(lambda: _reached(mesh), 30, "both hosts reach each other at the new addresses")
    measured("another range is in force", seconds, "30 s")
    for node in (A, B):
        own = mesh.net(node, "ip -o -4 addr show dev wire_kube")
        assert mesh.lab.mesh_addresses()[node][0] in own
        assert first[node][0] not in own
        assert first[B if node == A else A][0] not in mesh.net(node, "ip route show table all")
    assert {node: mesh.wg(node).public_key for node in (A, B)} == keys

    # The API server's Service range: nothing moves, and the Mesh says why.
    in_force = ranges(mesh)
    set_range(mesh, "10.96.0.0/24")
    mesh.until(lambda: _condition(mesh)["status"] == "False", 20, "the range is refused")
    assert _condition(mesh)["reason"] == "RangeRefused"
    assert "10.96.0.0/24" in _condition(mesh)["message"]
    assert ranges(mesh) == in_force
    assert _reached(mesh)

    set_range(mesh, "198.18.0.0/16")
    mesh.until(inside(mesh, "198.18."), 20, "every Peer has an address of the first range again")
    mesh.until(lambda: _reached(mesh), 30, "both hosts reach each other")


def _condition(mesh):
    path = "jsonpath={.status.conditions[?(@.type=='AddressesReady')]}"
    return json.loads(mesh.lab.kubectl("get", "wirekubemesh", "default", "-o", path))


def _reached(mesh):
    addresses = mesh.lab.mesh_addresses()
    try:
        for node, other in ((A, B), (B, A)):
            mesh.net(node, f"ping -c 1 -W 1 {addresses[other][0].partition('/')[0]}")
    except NetworkError:
        return False
    return True
