# SPDX-License-Identifier: Apache-2.0
"""The steering table beneath two wireguard-go nodes, under strict rp_filter, host firewalls and kube-proxy's rule.

a 10.95.0.1 ─────────── wire ─────────── 10.95.0.2 b
     :40001 <── the pump: what comes in at one goes out at the other ──> :40001

One more node has two networks: its default route and its proxies are in the other one than its peer.

r 10.95.9.254 ── 10.95.9.1 c 10.95.0.1 ───────── 10.95.0.2 d
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from wirekube.agent.nat.socket import ProbeSocket
from wirekube.agent.paths.probe import MAGIC
from wirekube.agent.routing.source import Sources
from wirekube.agent.steering import table
from wirekube.agent.steering.plan import PeerSteering, SteeringPlan, elements, plan_of
from wirekube.agent.steering.table import Steering, SteeringError
from wirekube.agent.wireguard.device import DeviceConfig, PeerConfig, diff, public_key_of
from wirekube.agent.wireguard.userspace import UserspaceBackend
from wirekube.api.constants import FWMARK, VIRTUAL_IPV4
from wirekube.lab import netns, prober
from wirekube.lab.controlplane.binaries import wireguard_go
from wirekube.lab.plan import Box, Cable, NetworkPlan, namespace
from wirekube.wire import stun
from wirekube.wire.endpoint import Endpoint

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LAB = f"steer{os.getpid()}"
LISTEN, PROXY, STUN = 51820, 40001, 3478
VIRTUAL_PORT = 7001
VIRTUAL = Endpoint.of(VIRTUAL_IPV4, VIRTUAL_PORT)
LEGS = [("direct", "direct"), ("relay", "direct"), ("relay", "relay"), ("direct", "relay")]
STRICT = {f"net/ipv4/conf/{name}/rp_filter": "1" for name in ("all", "default", "eth0")}

# A host firewall that keeps state. On `a` it opens no port: what comes in there answers what went out.
FIREWALL = """
table inet firewall {
 chain cin {
  type filter hook input priority filter; policy drop;
  ct state established,related accept
  iifname { "lo", "wk*" } accept
  %s
 }
}
"""
# What kube-proxy adds to every node: a packet with this bit in its mark is masqueraded, with a random port.
KUBE_PROXY = """
table ip kube-proxy {
 chain cpost {
  type nat hook postrouting priority srcnat; policy accept;
  meta mark & 0x4000 != 0x4000 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
 }
}
"""
# Notes the source port of everything that comes over the wire, before any other rule.
TAP = """
table ip tap {
 set sources {
  type inet_service
  flags dynamic
  size 1024
 }
 set addresses {
  type ipv4_addr
  flags dynamic
  size 1024
 }
 chain cpre {
  type filter hook prerouting priority -400; policy accept;
  iifname eth0 meta l4proto udp add @sources { udp sport } add @addresses { ip saddr }
 }
}
"""


@dataclass
class Node:
    """One node; `underlay` is the address of its default route, where that is another than its peer knows."""

    name: str
    address: str
    mesh: str
    underlay: str = ""
    lab: str = LAB
    private_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    backend: UserspaceBackend = field(default_factory=UserspaceBackend)
    steering: Steering = field(default_factory=Steering)
    probe_port: int = 40000
    plan: SteeringPlan = field(default_factory=lambda: plan_of(LISTEN, 40000, []))

    @property
    def interface(self) -> str:
        return f"wk{os.getpid() % 100000}{self.name}"  # wireguard-go's sockets lie in one folder for all namespaces

    @property
    def direct(self) -> Endpoint:
        return Endpoint.of(self.address, LISTEN)

    @property
    def proxy(self) -> Endpoint:
        return Endpoint.of(self.underlay or self.address, PROXY)

    def inside(self) -> contextlib.AbstractContextManager[None]:
        return netns.inside(namespace(self.lab, self.name))

    def run(self, words: str, text: str = "") -> str:
        with self.inside():
            return netns.run(words.split(), text)

    def udp(self, port: int) -> socket.socket:
        with self.inside():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((self.underlay or self.address, port))
        return made

    async def configure(self, peer: Node) -> None:
        key = public_key_of(peer.private_key)
        config = PeerConfig(key, VIRTUAL, frozenset({ip_network(peer.mesh)}), 1)
        wanted = DeviceConfig(self.private_key, LISTEN, FWMARK, {key: config})
        with self.inside():
            await self.backend.ensure(self.interface, 1420)
            await self.backend.apply(self.interface, diff(wanted, await self.backend.read(self.interface)))
        self.run(f"ip addr add {self.mesh}/32 dev {self.interface}")
        self.run(f"ip route add {peer.mesh}/32 dev {self.interface} src {self.mesh}")

    async def steer(self, leg: Endpoint | None, accept: frozenset[Endpoint]) -> None:
        with self.inside():
            source = self.proxy.ip if leg == self.proxy else Sources().of({leg.ip}).get(leg.ip) if leg else None
            self.plan = plan_of(LISTEN, self.probe_port, [PeerSteering(VIRTUAL_PORT, leg, source, accept)])
            await self.steering.apply(self.plan)

    def endpoint(self) -> str:
        return self.run(f"wg show {self.interface} endpoints").split()[-1]


@dataclass
class Mesh:
    """Both nodes; `relayed` counts the datagrams that the pump took from each."""

    a: Node
    b: Node
    relayed: dict[str, int]

    async def legs(self, a: str, b: str) -> None:
        """Choose each node's sending leg, `direct` or `relay`; both are always heard."""
        for node, other, leg in ((self.a, self.b, a), (self.b, self.a, b)):
            target = other.direct if leg == "direct" else node.proxy
            await node.steer(target, frozenset({other.direct, node.proxy}))

    def ping(self, count: int, interval: float = 0.02, patience: float = 5.0) -> asyncio.Task[int]:
        """Ping b from a; the result is how many were not answered in time."""
        with self.a.inside():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        return asyncio.create_task(pinged(raw, self.b.mesh, count, interval, patience))

    async def lost(self, count: int = 10) -> int:
        return await self.ping(count)

    def endpoints(self) -> set[str]:
        return {self.a.endpoint(), self.b.endpoint()}


async def pinged(raw: socket.socket, to: str, count: int, interval: float, patience: float) -> int:
    """Send echo requests, and wait for the answers; `ping` itself would wait for the last ones for two RTTs only."""
    loop, answered, done = asyncio.get_running_loop(), set[float](), asyncio.Event()
    identifier, sent = random.randrange(1, 65536), list[float]()

    def hear() -> None:
        with contextlib.suppress(BlockingIOError):
            while data := raw.recv(2048):
                answer = prober.decode(4, data)
                if answer is not None and answer[0] == identifier:
                    answered.add(answer[1])
                    if len(answered) == count:
                        done.set()

    loop.add_reader(raw, hear)
    try:
        for sequence in range(count):
            sent.append(loop.time())
            raw.sendto(prober.encode(4, identifier, sequence, sent[-1]), (to, 0))
            await asyncio.sleep(interval)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await done.wait()
        return len(set(sent) - answered)
    finally:
        loop.remove_reader(raw)
        raw.close()


def box(name: str, *addresses: str, opened: str = "", rules: str = "") -> Box:
    """Make a node's box: an interface for each address, the default route by the first one."""
    commands = ["link set lo up"]
    for number, address in enumerate(addresses):
        commands += [f"addr add {address}/24 dev eth{number}", f"link set eth{number} up"]
    commands.append(f"route add default via {addresses[0].rpartition('.')[0]}.254 dev eth0")
    return Box(name, tuple(commands), STRICT, FIREWALL % opened + rules)


OPENED = f"udp dport {{ {LISTEN}, {STUN} }} accept"


def network(a: Node, b: Node) -> NetworkPlan:
    boxes = (box("a", a.address, rules=KUBE_PROXY), box("b", b.address, opened=OPENED, rules=TAP))
    return NetworkPlan(boxes, (Cable(("a", "eth0"), ("b", "eth0")),), {})


def two_networks(c: Node, d: Node) -> NetworkPlan:
    boxes = (
        box("r", "10.95.9.254"),
        box("c", c.underlay, c.address, rules=KUBE_PROXY),
        box("d", d.address, opened=OPENED, rules=TAP),
    )
    return NetworkPlan(boxes, (Cable(("c", "eth0"), ("r", "eth0")), Cable(("c", "eth1"), ("d", "eth0"))), {})


@contextlib.contextmanager
def pump(mesh: Mesh) -> Iterator[None]:
    """Stand in for both nodes' relay proxies and the relay between them."""
    nodes = (mesh.a, mesh.b)
    sockets = [node.udp(PROXY) for node in nodes]
    loop = asyncio.get_running_loop()

    def move(one: int, other: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = sockets[one].recvfrom(65536)
                if source != (str(nodes[one].proxy.ip), LISTEN):
                    continue  # the real one refuses it too
                mesh.relayed[nodes[one].name] += 1
                sockets[other].sendto(data, (str(nodes[other].proxy.ip), LISTEN))

    try:
        for one, other in ((0, 1), (1, 0)):
            sockets[one].setblocking(False)
            loop.add_reader(sockets[one], move, one, other)
        yield
    finally:
        for opened in sockets:
            loop.remove_reader(opened)
            opened.close()


@contextlib.asynccontextmanager
async def connected(lab: str, mesh: Mesh, plan: NetworkPlan) -> AsyncIterator[Mesh]:
    """Two nodes that have pinged each other."""
    nodes = (mesh.a, mesh.b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WIREKUBE_WIREGUARD_GO", str(wireguard_go()))
        try:
            netns.build(lab, plan)
            with pump(mesh):
                await mesh.legs("direct", "direct")
                # First the one whose firewall is open: then the first initiation of the other is heard.
                await mesh.b.configure(mesh.a)
                await mesh.a.configure(mesh.b)
                async with asyncio.timeout(30):
                    while await mesh.ping(1, patience=1.0):
                        pass
                yield mesh
        finally:
            for node in nodes:
                with contextlib.suppress(netns.NetworkError), node.inside():
                    await node.backend.remove(node.interface)
            netns.remove(lab)


@pytest.fixture(scope="module")
async def joined() -> AsyncIterator[Mesh]:
    """Two nodes that have pinged each other, shared by the tests."""
    a, b = Node("a", "10.95.0.1", "10.77.0.1"), Node("b", "10.95.0.2", "10.77.0.2")
    async with connected(LAB, Mesh(a, b, {"a": 0, "b": 0}), network(a, b)) as mesh:
        yield mesh


@pytest.fixture
async def mesh(joined: Mesh) -> Mesh:
    """The two nodes as each test finds them: both send directly, WireGuard has its constant endpoints."""
    await joined.legs("direct", "direct")
    assert await joined.lost(2) == 0
    assert joined.endpoints() == {str(VIRTUAL)}
    return joined


def sources(node: Node) -> set[int]:
    """Return the source ports that came over the wire since the last call."""
    text = node.run("nft list set ip tap sources")
    node.run("nft flush set ip tap sources")
    found = re.search(r"elements = \{(.*?)\}", text, re.DOTALL)
    return {int(port) for port in re.findall(r"\d+", found[1])} if found else set()


@pytest.mark.parametrize("legs", LEGS, ids="-".join)
async def test_every_combination_of_legs_answers_every_ping(mesh: Mesh, legs: tuple[str, str]) -> None:
    await mesh.legs(*legs)
    before = dict(mesh.relayed)
    assert await mesh.lost(10) == 0
    for name, leg in zip("ab", legs, strict=True):
        went = mesh.relayed[name] - before[name]
        assert went >= 10 if leg == "relay" else went == 0
    assert mesh.endpoints() == {str(VIRTUAL)}


async def test_legs_that_change_lose_no_ping_and_move_no_endpoint(mesh: Mesh) -> None:
    ping = mesh.ping(200, 0.01)
    changes, endpoints = 0, set[str]()
    while not ping.done():
        changes += 1
        await mesh.legs(*LEGS[changes % len(LEGS)])
        endpoints |= mesh.endpoints()
    assert await ping == 0
    assert endpoints == {str(VIRTUAL)}
    assert changes > len(LEGS)
    assert min(mesh.relayed.values()) > 0


async def test_packets_that_have_no_leg_are_dropped_and_never_leave_the_host(mesh: Mesh) -> None:
    await mesh.a.steer(None, frozenset({mesh.b.direct, mesh.a.proxy}))
    sources(mesh.b)
    assert await mesh.ping(5, patience=0.3) == 5
    assert sources(mesh.b) == set()


async def test_an_address_that_the_table_does_not_know_is_followed_until_it_does(mesh: Mesh) -> None:
    await mesh.a.steer(mesh.b.direct, frozenset({mesh.a.proxy}))
    assert await mesh.lost(5) == 0
    assert mesh.a.endpoint() == str(mesh.b.direct), "WireGuard roams"
    await mesh.legs("direct", "direct")
    assert await mesh.lost(5) == 0
    assert mesh.a.endpoint() == str(VIRTUAL), "the next packet brings the constant endpoint back"


async def test_the_source_port_on_the_wire_stays_behind_kube_proxy(mesh: Mesh) -> None:
    mesh.a.run("conntrack -F")
    sources(mesh.b)
    assert await mesh.lost(5) == 0
    assert sources(mesh.b) == {LISTEN}
    mesh.a.run(f"nft flush chain ip {table.TABLE} unmark")
    mesh.a.run("conntrack -F")
    await mesh.lost(5)
    assert sources(mesh.b) - {LISTEN}, "without our chain kube-proxy's rule would have been felt"
    with mesh.a.inside():
        assert await mesh.a.steering.verify() is True
    mesh.a.run("conntrack -F")
    assert await mesh.lost(5) == 0
    sources(mesh.b)
    assert await mesh.lost(5) == 0
    assert sources(mesh.b) == {LISTEN}


async def test_a_flushed_ruleset_is_noticed_and_restored(mesh: Mesh) -> None:
    changed = asyncio.Event()
    with mesh.a.inside():
        notifications = table.watch(asyncio.get_running_loop(), changed.set)
    try:
        mesh.a.run("nft flush ruleset")
        async with asyncio.timeout(2):
            await changed.wait()
    finally:
        asyncio.get_running_loop().remove_reader(notifications)
        notifications.close()
    with mesh.a.inside():
        assert await table.read() is None
        assert await mesh.a.steering.verify() is True
        seen = await table.read()
        assert await mesh.a.steering.verify() is False
    assert seen is not None
    assert seen.maps == elements(mesh.a.plan)
    assert await mesh.lost(5) == 0
    mesh.a.run("nft -f -", FIREWALL % "" + KUBE_PROXY)


@pytest.mark.parametrize(
    "damage",
    [
        f"delete element ip wirekube leg_addr {{ {VIRTUAL_PORT} }}",
        "add element ip wirekube back { 10.9.9.9 . 9 : 9 }",
        "flush chain ip wirekube inp",
        "add rule ip wirekube out udp dport 9 drop",
        "delete table ip wirekube",
        "delete chain ip wirekube unmark",
    ],
)
async def test_any_damage_is_repaired(mesh: Mesh, damage: str) -> None:
    with mesh.a.inside():
        before = await table.read()
        netns.run(["nft", "-f", "-"], damage)
        assert await mesh.a.steering.verify() is True
        assert await table.read() == before


async def test_a_change_on_top_of_damage_gives_the_whole_table(mesh: Mesh) -> None:
    mesh.a.run("nft delete table ip wirekube")
    await mesh.legs("relay", "direct")
    with mesh.a.inside():
        seen = await table.read()
        assert seen is not None
        assert seen.maps == elements(mesh.a.plan)
        assert await mesh.a.steering.verify() is False
        assert await mesh.a.steering.apply(mesh.a.plan) is False


async def test_the_next_agent_adopts_the_table_and_loses_no_ping(mesh: Mesh) -> None:
    await mesh.legs("relay", "direct")
    ping = mesh.ping(100, 0.01)
    with mesh.a.inside():
        found = await table.read()
        assert found is not None
        entries = table.adopted(found)
        assert entries == mesh.a.plan.peers
        mesh.a.steering = Steering()
        await mesh.a.steering.apply(plan_of(LISTEN, mesh.a.probe_port, entries.values()))
        assert await table.read() == found
    assert await ping == 0
    assert mesh.endpoints() == {str(VIRTUAL)}


async def test_nothing_is_left_after_removal(mesh: Mesh) -> None:
    with mesh.a.inside():
        for _ in range(2):
            await table.remove()
            assert "wirekube" not in netns.run(["nft", "list", "tables"])
        await mesh.a.steering.verify()


async def test_stun_and_probes_share_the_port_of_wireguard_through_the_firewall(mesh: Mesh) -> None:
    heard = asyncio.Queue[tuple[bytes, Endpoint]]()
    with contextlib.ExitStack() as stack:
        ends = []
        for node in (mesh.a, mesh.b):
            with node.inside():
                made = ProbeSocket(lambda data, source: heard.put_nowait((data, source)), random.Random())
            stack.callback(made.close)
            stack.callback(setattr, node, "probe_port", node.probe_port)
            node.probe_port = made.port
            ends.append(made)
        await mesh.legs("direct", "direct")
        server = stack.enter_context(mesh.b.udp(STUN))
        server.setblocking(False)
        loop = asyncio.get_running_loop()

        def answer() -> None:
            data, source = server.recvfrom(2048)
            request = stun.decode(data)
            assert request is not None
            server.sendto(stun.encode_success(request.txid, Endpoint.of(*source)), source)

        loop.add_reader(server, answer)
        stack.callback(loop.remove_reader, server)
        sources(mesh.b)
        ping = mesh.ping(50, 0.01)
        answered = await ends[0].ask(Endpoint.of(mesh.b.address, STUN))
        assert answered is not None
        assert answered[0].mapped == mesh.a.direct
        async with asyncio.timeout(5):
            for one, other, to in ((0, mesh.a, mesh.b), (1, mesh.b, mesh.a)):
                ends[one].send(MAGIC + b"ping", to.direct)
                assert await heard.get() == (MAGIC + b"ping", other.direct)
        assert await ping == 0
        assert sources(mesh.b) == {LISTEN}


async def test_a_missing_nft_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SteeringError, match="install nftables"):
        await table.read()


async def test_what_nft_refuses_is_its_own_first_line(mesh: Mesh) -> None:
    with mesh.a.inside(), pytest.raises(SteeringError, match=r"Error: .*"):
        await Steering().apply(plan_of(70000, 40000, []))


async def test_packets_leave_with_the_address_of_their_own_interface_on_a_node_with_two() -> None:
    """WireGuard's socket chooses its source for 192.0.2.1: that of the default route, which `d` does not know."""
    lab = f"{LAB}n"
    c, d = Node("c", "10.95.0.1", "10.77.0.1", "10.95.9.1", lab), Node("d", "10.95.0.2", "10.77.0.2", lab=lab)
    async with connected(lab, Mesh(c, d, {"c": 0, "d": 0}), two_networks(c, d)) as mesh:
        for legs in LEGS:
            await mesh.legs(*legs)
            before = dict(mesh.relayed)
            assert await mesh.lost(10) == 0, legs
            assert (mesh.relayed["c"] > before["c"], mesh.relayed["d"] > before["d"]) == tuple(
                leg == "relay" for leg in legs
            )
        assert mesh.endpoints() == {str(VIRTUAL)}, "nobody roamed"
        assert addresses(d) == {c.address}
        with c.inside():
            seen = await table.read()
            assert seen is not None
            assert table.adopted(seen) == c.plan.peers
        c.run("conntrack -F")  # the firewall must let answers in that came by a new entry too
        await mesh.legs("direct", "direct")
        assert await mesh.lost(5) == 0


def addresses(node: Node) -> set[str]:
    """Return the source addresses of UDP that came over the wire."""
    return set(re.findall(r"\d+\.\d+\.\d+\.\d+", node.run("nft list set ip tap addresses").partition("elements")[2]))
