# SPDX-License-Identifier: Apache-2.0
"""Two nodes with the kernel's WireGuard ping through the steering table, under strict rp_filter and host firewalls."""

import contextlib
import socket
import struct

import pytest

from wirekube.agent.paths.probe import MAGIC
from wirekube.agent.steering import table
from wirekube.agent.steering.plan import elements
from wirekube.agent.wireguard.device import DeviceChange, PeerChange, public_key_of
from wirekube.api.constants import DEFAULT_INTERFACE, FWMARK, VIRTUAL_IPV4

PROBE_PORT, STUN_PORT, LISTEN_PORT = 40000, 3478, 51820
VIRTUAL = f"{VIRTUAL_IPV4}:7001"
LEGS = [("direct", "direct"), ("relay", "direct"), ("relay", "relay"), ("direct", "relay")]

# What kube-proxy adds to every node: a packet with this bit in its mark is masqueraded, with a random port.
KUBE_PROXY = """
table ip nat {
 chain KUBE-POSTROUTING {
  meta mark & 0x4000 != 0x4000 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
 }
 chain POSTROUTING {
  type nat hook postrouting priority srcnat; policy accept;
  jump KUBE-POSTROUTING
 }
}
"""
ETH_P_IP = 0x0800


class Tap:
    """What arrives at a node's wire, before any rule of its own sees it."""

    def __init__(self, node):
        with node.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._socket.bind(("eth0", ETH_P_IP))
        self._socket.setblocking(False)

    def sources(self, address, port):
        """Return the source ports of the UDP packets from `address` to `port` that came in since the last call."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(65536)
                if packet[9] != socket.IPPROTO_UDP or packet[12:16] != socket.inet_aton(address):
                    continue
                source, target = struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
                if target == port:
                    found.add(source)
        return found

    def close(self):
        self._socket.close()


@pytest.fixture
def tap(mesh):
    """What comes from `a` over the wire."""
    with contextlib.closing(Tap(mesh.b)) as made:
        yield made


@pytest.fixture
def kube_proxy(mesh):
    """kube-proxy's rules on `a`; what conntrack has decided before is forgotten."""
    mesh.a.call("nft", "-f", "-", text=KUBE_PROXY)
    mesh.a.call("conntrack", "-F")
    yield
    mesh.a.call("nft", "delete", "table", "ip", "nat")
    mesh.a.call("conntrack", "-F")


async def test_the_kernel_takes_the_table_and_what_is_deleted_comes_back(mesh):
    with mesh.a.inside():
        seen = await table.read()
        assert seen.maps == elements(mesh.a.plan)
        assert table.adopted(seen) == mesh.a.plan.peers
        assert await mesh.a.steering.verify() is False
        mesh.a.call("nft", "delete", "table", "ip", table.TABLE)
        assert await mesh.a.steering.verify() is True
        assert await table.read() == seen
        assert await mesh.a.steering.verify() is False


@pytest.mark.parametrize("to", ["10.77.0.2", "fd57::2"])
async def test_every_combination_of_legs_answers_every_ping(mesh, to):
    for a, b in LEGS:
        await mesh.legs(a, b)
        before = dict(mesh.relayed)
        assert await (await mesh.ping(10, to=to)).lost() == 0, (a, b)
        went = {name: mesh.relayed[name] - before[name] for name in mesh.relayed}
        assert all((went[name] >= 10) if leg == "relay" else went[name] == 0 for name, leg in (("a", a), ("b", b)))
        assert (mesh.a.endpoint(), mesh.b.endpoint()) == (VIRTUAL, VIRTUAL)


async def test_legs_that_change_lose_no_ping_and_move_no_endpoint(mesh, record_property):
    ping = await mesh.ping(250, 0.02)
    changes, endpoints = 0, set()
    while ping.running():
        changes += 1
        await mesh.legs(*LEGS[changes % len(LEGS)])
        for node in (mesh.a, mesh.b):
            with node.inside():
                endpoints |= {str(peer.endpoint) for peer in (await node.backend.stats(DEFAULT_INTERFACE)).values()}
    assert await ping.lost() == 0
    assert endpoints | {mesh.a.endpoint(), mesh.b.endpoint()} == {VIRTUAL}
    assert changes >= len(LEGS)
    assert min(mesh.relayed.values()) > 0
    record_property("changes of legs during 250 pings", changes)


async def test_a_packet_from_an_unknown_address_is_followed_until_it_is_known(mesh):
    a, b = mesh.a, mesh.b
    await a.send_by(b.direct, frozenset((a.proxy,)))
    assert await (await mesh.ping(5)).lost() == 0
    assert a.endpoint() == str(b.direct)
    await mesh.legs("direct", "direct")
    assert await a.configure(b) == []
    assert await (await mesh.ping(5)).lost() == 0
    assert a.endpoint() == VIRTUAL


async def test_the_source_port_on_the_wire_stays_behind_kube_proxy(mesh, kube_proxy, tap):
    a, b = mesh.a, mesh.b
    assert await (await mesh.ping(5)).lost() == 0
    assert tap.sources(a.address, LISTEN_PORT) == {LISTEN_PORT}

    def ports(first):
        """Send from three ports, marked as ours, and return whether they came out as they were."""
        for port in range(first, first + 3):
            with contextlib.closing(a.udp(port, FWMARK)) as sock:
                sock.sendto(b"?", (b.address, 9))
        return tap.sources(a.address, 9) == set(range(first, first + 3))

    assert ports(52000)
    a.call("nft", "flush", "chain", "ip", table.TABLE, "unmark")
    assert not ports(52010), "without our chain kube-proxy's rule would have been felt"
    with a.inside():
        assert await a.steering.verify() is True
    assert ports(52020)


async def test_packets_leave_with_the_address_of_their_own_interface_on_a_node_with_two(mesh, tap):
    """WireGuard chooses its source for 192.0.2.1: that of the default route, which the peer does not know."""
    a, b = mesh.a, mesh.b
    for words in (
        "link add w0 type veth peer name w1",
        "addr add 10.95.9.1/24 dev w0",
        "link set w1 up",
        "link set w0 up",
        "route replace default via 10.95.9.254 dev w0",
    ):
        a.call("ip", *words.split())
    try:
        assert "src 10.95.9.1" in a.call("ip", "route", "get", VIRTUAL_IPV4)
        for legs in LEGS:
            await mesh.legs(*legs)
            with a.inside():  # without the source that it learned from what it received
                same = PeerChange(public_key_of(b.private_key), update_only=True, endpoint=a.virtual)
                await a.backend.apply(DEFAULT_INTERFACE, DeviceChange(peers=(same,)))
            assert await (await mesh.ping(5)).lost() == 0, legs
            assert (a.endpoint(), b.endpoint()) == (VIRTUAL, VIRTUAL), "nobody roamed"
        assert tap.sources("10.95.9.1", LISTEN_PORT) == set()
    finally:
        a.call("ip", "link", "del", "w0")
        a.call("ip", "route", "replace", "default", "via", "10.95.0.254", "dev", "eth0")


async def test_probes_and_stun_share_the_port_of_wireguard(mesh, tap):
    a, b = mesh.a, mesh.b
    with contextlib.ExitStack() as stack:
        probe_a, probe_b, stun = (
            stack.enter_context(contextlib.closing(node.udp(port, FWMARK)))
            for node, port in ((a, PROBE_PORT), (b, PROBE_PORT), (b, STUN_PORT))
        )
        probe_a.sendto(MAGIC + b"ping", b.direct.sockaddr())
        assert probe_b.recvfrom(100) == (MAGIC + b"ping", a.direct.sockaddr())
        probe_b.sendto(MAGIC + b"pong", a.direct.sockaddr())
        assert probe_a.recvfrom(100) == (MAGIC + b"pong", b.direct.sockaddr())
        probe_a.sendto(b"request", (b.address, STUN_PORT))
        assert stun.recvfrom(100) == (b"request", a.direct.sockaddr())
        answer = struct.pack("!HHI", 0x0101, 0, 0x2112A442) + bytes(12)
        stun.sendto(answer, a.direct.sockaddr())
        assert probe_a.recvfrom(100) == (answer, (b.address, STUN_PORT))
    assert await (await mesh.ping(5)).lost() == 0
    assert tap.sources(a.address, LISTEN_PORT) == {LISTEN_PORT}


async def test_what_the_backend_reads_agrees_with_wg(mesh):
    def shown():
        line = mesh.a.call("wg", "show", DEFAULT_INTERFACE, "dump").splitlines()[1].split("\t")
        return line[2], *map(int, line[4:7])

    assert await (await mesh.ping(5)).lost() == 0
    before = shown()
    with mesh.a.inside():
        stats = (await mesh.a.backend.stats(DEFAULT_INTERFACE))[public_key_of(mesh.b.private_key)]
    after = shown()
    assert before[0] == str(stats.endpoint) == after[0]
    assert before[1] <= int(stats.last_handshake) <= after[1]
    assert 0 < before[2] <= stats.rx_bytes <= after[2]
    assert 0 < before[3] <= stats.tx_bytes <= after[3]


async def test_a_second_pass_changes_nothing_and_keeps_the_session(mesh):
    a, b = mesh.a, mesh.b
    key = public_key_of(b.private_key)
    with a.inside():
        before = (await a.backend.stats(DEFAULT_INTERFACE))[key].last_handshake
        # An agent that starts anew sets the same endpoint again: that is no reason for a new handshake.
        same = PeerChange(key, update_only=True, endpoint=a.virtual, keepalive=1)
        await a.backend.apply(DEFAULT_INTERFACE, DeviceChange(peers=(same,)))
        assert await a.steering.apply(a.plan) is False
    assert await a.configure(b) == []
    assert await (await mesh.ping(3)).lost() == 0
    with a.inside():
        assert (await a.backend.stats(DEFAULT_INTERFACE))[key].last_handshake == before


async def test_a_clean_up_leaves_the_host_as_it_was(wire):
    a, b = wire
    before = a.dump()
    await a.send_by(b.direct, frozenset((b.direct,)))
    assert await a.configure(b)
    during = a.dump()
    assert [command for command in before if before[command] == during[command]] == []
    await a.clean()
    after = a.dump()
    assert {c: before[c] ^ after[c] for c in before if before[c] != after[c]} == {}
