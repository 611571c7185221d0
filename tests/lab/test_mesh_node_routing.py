# SPDX-License-Identifier: Apache-2.0
"""spec.routing with real packets: Nodes' own addresses and pods through the mesh, and nothing left when it is off.

The hosts are made as hosts are: a second network at home-b looks like home-a's, a CNI has routed all pods through nodes'
addresses, and the neighbours home-a and home-a2 filter strictly by reverse path.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wirekube.lab import netns

TOPOLOGY = "routing"
A, A2, B, OFFICE = NODES = ("home-a", "home-a2", "home-b", "office")
INNER = dict(zip(NODES, ("192.168.10.2", "192.168.10.3", "192.168.12.2", "192.168.13.2"), strict=True))
PODS = {node: f"10.244.{number}.2" for number, node in enumerate(NODES, 1)}
PORT = 5201
LOOKS_ALIKE = "192.168.10.77/24"
SERVICE = f"""
table ip service {{
 chain cpre {{
  type nat hook prerouting priority dstnat;
  tcp dport {PORT} dnat to {PODS[A2]}
 }}
}}
"""
WATCHED = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
FILTER = Path("/proc/sys/net/ipv4/conf/eth0/rp_filter")

pytestmark = pytest.mark.timeout(180)


def before_agents(lab):
    """Make the hosts what a CNI and a home network make them; none of this is the agent's."""
    with netns.inside(lab.namespace(B)):
        netns.run(["ip", "address", "add", LOOKS_ALIKE, "dev", "eth0"])
    for node in NODES:
        with netns.inside(lab.namespace(node)):
            for other in NODES:
                if other != node:
                    pods = PODS[other].rpartition(".")[0] + ".0/24"
                    netns.run(["ip", "route", "add", pods, "via", INNER[other], "dev", "eth0", "onlink"])


def pod(node):
    return f"pod-{node}"


def route(mesh, routing):
    mesh.lab.kubectl("patch", "wkmesh", "default", "--type=merge", "-p", json.dumps({"spec": {"routing": routing}}))


def pings(mesh, box, address, *words):
    """Tell whether an address answers one ping from a box."""
    with netns.inside(mesh.lab.namespace(box)):
        done = subprocess.run(["ping", "-nqc1", "-W1", *words, address], capture_output=True, check=False)
    return done.returncode == 0


def allowed(mesh, node):
    return {network for peer in mesh.wg(node).peers.values() for network in peer.allowed_ips}


def rp_filter(mesh, node):
    with netns.inside(mesh.lab.namespace(node)):
        return FILTER.read_text().strip()


def sysctls(mesh, node):
    return {key: value for key, value in mesh.dump(node).items() if key.startswith("/proc/sys")}


def state(mesh, node):
    """Return what `routing` may change on a host."""
    chains = re.findall(r"chain (\w+)", mesh.net(node, "nft list table ip wirekube"))
    return mesh.dump(node, WATCHED), sysctls(mesh, node), allowed(mesh, node), chains


def transfer(mesh, source, target, address, megabytes, listen=""):
    """Send over TCP from box to box; return the seconds until all had arrived, and how many segments were sent again."""
    left = megabytes << 20
    with netns.inside(mesh.lab.namespace(target)):
        server = socket.create_server((listen or address, PORT))
    with ThreadPoolExecutor(1) as pool, server:
        server.settimeout(30)
        arrived = pool.submit(_drain, server)
        with netns.inside(mesh.lab.namespace(source)):
            client = socket.create_connection((address, PORT), 5)
        with client:
            client.settimeout(30)
            begin = time.monotonic()
            client.sendall(bytes(left))
            client.shutdown(socket.SHUT_WR)
            assert arrived.result(60) == left, (source, address)
            seconds = time.monotonic() - begin
            (again,) = struct.unpack_from("=I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    return seconds, again


def _drain(server):
    connection = server.accept()[0]
    with connection:
        connection.settimeout(30)
        return sum(map(len, iter(lambda: connection.recv(1 << 20), b"")))


def accepted(mesh, peer, kind):
    return lambda: mesh.condition(peer, kind).get("reason") == "Accepted"


@pytest.fixture
def off(mesh):
    """The mesh without `routing`, before and after."""
    before = {node: state(mesh, node) for node in NODES}
    yield before
    route(mesh, None)
    for node in NODES:
        mesh.until(lambda node=node: allowed(mesh, node) == before[node][2], 20, f"{node} lets nothing more in")
        mesh.until(lambda node=node: state(mesh, node) == before[node], 20, f"{node} is as before")


def test_a_host_is_reached_at_its_private_address_through_the_mesh(mesh, off):
    assert not pings(mesh, B, INNER[A])
    assert not pings(mesh, A, INNER[B])
    mesh.until(mesh.both(A, A2, "Direct"), 20, "the neighbours are direct")
    with mesh.pinging((A, A2), (A2, A), (A, B), (B, A)) as neighbours:
        route(mesh, {"nodeAddresses": "internal"})
        for node in NODES:
            mesh.until(accepted(mesh, node, "NodeAddressesAccepted"), 20, f"{node}'s address is accepted")
        for here in NODES:
            for there in NODES:
                if here != there:
                    mesh.until(lambda a=here, b=there: pings(mesh, a, INNER[b]), 20, f"{here} reaches {there}")
        assert f"dev wire_kube table 22348 src {mesh.addresses[B][0]}" in mesh.net(B, f"ip route get {INNER[A]}")
        # The neighbours' packets to each other's endpoint arrive although that is routed into the mesh by now.
        assert f"{INNER[A2]}/32" in allowed(mesh, A)
        assert "dev eth0" in mesh.net(A, f"ip route get {INNER[A2]} mark 0x574b")
        assert (rp_filter(mesh, A), rp_filter(mesh, A2), rp_filter(mesh, B)) == ("2", "2", "0")
        neighbours.more(50)
        assert mesh.states(A, A2) == ("Direct", "Direct")
        assert mesh.lab.report(A).pairs[A2].endpoint == f"{INNER[A2]}:51820"
        route(mesh, None)
        mesh.until(lambda: state(mesh, A) == off[A], 20, f"{A} is as before")
        neighbours.more(50)
    neighbours.assert_none_lost()
    assert rp_filter(mesh, A) == "1"
    mesh.until(
        lambda: mesh.condition(A, "NodeAddressesAccepted").get("reason") == "NotRequested", 10, "nothing is asked for"
    )


def test_tcp_to_a_private_address(mesh, off):
    route(mesh, {"nodeAddresses": "internal"})
    for source, target in ((B, A), (OFFICE, A2)):
        mesh.until(lambda s=source, t=target: pings(mesh, s, INNER[t]), 20, f"{source} reaches {target}")
        transfer(mesh, source, target, INNER[target], 4)


@pytest.mark.parametrize("bound", ["", "dev eth0 "])
def test_an_overlay_between_nodes_addresses_goes_through_the_mesh(mesh, off, bound):
    """flannel and Calico bind their VXLAN to the uplink, Cilium does not."""
    route(mesh, {"nodeAddresses": "internal"})
    ends = ((A, B, "10.77.0.1"), (B, A, "10.77.0.2"))
    for here, there, address in ends:
        vxlan = f"type vxlan id 7 {bound}local {INNER[here]} remote {INNER[there]} dstport 8472"
        mesh.net(here, f"ip link add vx0 mtu 1450 {vxlan}")
        mesh.net(here, f"ip address add {address}/24 dev vx0")
        mesh.net(here, "ip link set vx0 up")
    try:
        mesh.until(lambda: pings(mesh, A, "10.77.0.2") and pings(mesh, B, "10.77.0.1"), 20, "the overlay works")
        transfer(mesh, A, B, "10.77.0.2", 4)
    finally:
        for here, _, _ in ends:
            mesh.net(here, "ip link del vx0")


def test_pods_reach_pods_over_a_cni_that_routes_them_through_nodes(mesh, off):
    assert not pings(mesh, pod(B), PODS[A])
    route(mesh, {"podCIDRs": True})
    pairs = [(here, there) for here in NODES for there in NODES if here != there]
    for here, there in pairs:
        mesh.until(lambda a=here, b=there: pings(mesh, pod(a), PODS[b]), 20, f"pod of {here} reaches pod of {there}")
    mesh.until(lambda: pings(mesh, B, PODS[A]), 10, "a host reaches a pod elsewhere")
    assert "via 192.168.10.2 dev eth0 onlink" in mesh.net(B, "ip route show 10.244.1.0/24"), "the CNI's routes stay"
    assert not {f"{PODS[A].rpartition('.')[0]}.0/24"} & allowed(mesh, A), "never its own"
    assert mesh.states(A, A2) == ("Direct", "Direct")


@pytest.mark.parametrize(("source", "target"), [(A, B), (A, A2), (B, OFFICE)])
def test_large_transfers_between_pods_need_no_smaller_segments(mesh, off, source, target):
    """Pods send packets of 1500 bytes; the node tells them at once that 1420 fit, so nothing has to clamp their TCP."""
    route(mesh, {"podCIDRs": True})
    for here, there in ((source, target), (target, source)):
        mesh.until(
            lambda a=here, b=there: "dev wire_kube" in mesh.net(a, f"ip route get {PODS[b]}"), 20, "pods are routed"
        )
    seconds, again = transfer(mesh, pod(source), pod(target), PODS[target], 32)
    print(f"MEASURED {source} to {target}: 32 MiB in {seconds:.2f} s, {again} segments sent again")
    assert "mtu 1420" in mesh.net(pod(source), f"ip route get {PODS[target]}")
    assert seconds < 20


def test_what_is_sent_to_an_address_outside_of_the_mesh_is_answered_outside(mesh, off):
    """As to an API server's address in the same network: the neighbour's WireGuard would refuse the answer."""
    route(mesh, {"nodeAddresses": "internal", "podCIDRs": True, "excludeCIDRs": [f"{INNER[A2]}/32"]})
    mesh.until(lambda: f"{INNER[A]}/32" in allowed(mesh, A2), 20, "the neighbour's address is in the mesh")
    mesh.until(
        lambda: mesh.condition(A2, "NodeAddressesAccepted").get("reason") == "NodeAddressExcluded", 10, "it is said"
    )
    assert f"{INNER[A2]}/32" not in allowed(mesh, A)
    mesh.until(lambda: pings(mesh, A, INNER[A2]), 10, "the neighbour is reached as before")
    assert "dev eth0" in mesh.net(A2, f"ip route get {INNER[A]} from {INNER[A2]}")
    assert "dev wire_kube" in mesh.net(A2, f"ip route get {INNER[A]}")
    transfer(mesh, A, A2, INNER[A2], 1)
    # A Service's port at that address, served by a pod: its answers are forwarded.
    mesh.net(A2, "nft -f -", SERVICE)
    try:
        transfer(mesh, A, pod(A2), INNER[A2], 1, listen=PODS[A2])
    finally:
        mesh.net(A2, "nft delete table ip service")


@pytest.mark.parametrize("what", ["an address of this host", "this host's gateway", "this host's resolver"])
def test_what_a_host_needs_itself_it_does_not_give_away(mesh, off, what):
    route(mesh, {"nodeAddresses": "internal"})
    wanted = f"{INNER[OFFICE]}/32"
    mesh.until(lambda: wanted in allowed(mesh, B), 20, "the address is in the mesh")
    undo = _need(mesh, what)
    try:
        mesh.until(lambda: wanted not in allowed(mesh, B), 40, f"{B} leaves it out")
        mesh.until(lambda: INNER[OFFICE] not in mesh.net(B, "ip route show table 22347"), 10, "nor is it routed")
        assert wanted in allowed(mesh, A), "another host has no such reason"

        def said():
            found = mesh.condition(B, "NodeNetworksRouted")
            return found.get("reason") == "NeededByThisHost" and f"{wanted} of {OFFICE} is {what}" in found["message"]

        mesh.until(said, 20, "it is said")
    finally:
        undo()
    mesh.until(lambda: wanted in allowed(mesh, B), 40, "the address is in the mesh again")


def _need(mesh, what):
    if what == "this host's resolver":
        path = mesh.lab.root(B).folder / "resolv.conf"
        text = path.read_text()
        path.write_text(f"nameserver {INNER[OFFICE]}\n")
        return lambda: path.write_text(text)
    if what == "this host's gateway":
        words = f"172.31.0.0/24 via {INNER[OFFICE]} dev eth0 onlink"
        mesh.net(B, f"ip route add {words}")
        return lambda: mesh.net(B, f"ip route del {words}")
    mesh.net(B, f"ip address add {INNER[OFFICE]}/32 dev lo")
    return lambda: mesh.net(B, f"ip address del {INNER[OFFICE]}/32 dev lo")


def test_cleanup_takes_it_off_the_host(mesh):
    """The last one here: with a new interface the host is another than before."""
    route(mesh, {"nodeAddresses": "internal", "podCIDRs": True})
    mesh.until(lambda: rp_filter(mesh, A) == "2" and pings(mesh, pod(A), PODS[B]), 20, "all is routed")
    mesh.lab.stop_agent(A)
    try:
        assert mesh.changes(A)
        mesh.cleanup(A)
        assert mesh.changes(A) == {}
    finally:
        mesh.lab.start_agent(A)
    mesh.until(lambda: pings(mesh, pod(A), PODS[B]), 40, "the pod is reached again")
    route(mesh, None)
    mesh.until(lambda: rp_filter(mesh, A) == "1" and len(allowed(mesh, A)) == 6, 20, "all is off again")
