# SPDX-License-Identifier: Apache-2.0
"""Two nodes under a kernel with WireGuard: namespaces on one wire, the project's own parts in each, a stand-in relay.

    a 10.95.0.1 ──────── wire ──────── 10.95.0.2 b
         :40001 <── the pump: what comes in at one goes out at the other ──> :40001

The namespaces have no names: they end with the test's file descriptors, also when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path

import pytest

from wirekube.agent.routing.host import HostNetwork
from wirekube.agent.routing.model import HostPlan
from wirekube.agent.routing.source import Sources
from wirekube.agent.steering import table
from wirekube.agent.steering.plan import PeerSteering, SteeringPlan, plan_of
from wirekube.agent.steering.table import Steering
from wirekube.agent.wireguard.device import DeviceConfig, PeerConfig, diff, public_key_of
from wirekube.agent.wireguard.kernel import KernelBackend, kernel_has_wireguard
from wirekube.api.constants import DEFAULT_INTERFACE, DEFAULT_LISTEN_PORT, FWMARK, VIRTUAL_IPV4
from wirekube.wire.endpoint import Endpoint

CLONE_NEWNET = 0x40000000
PROBE_PORT = 40000
PROXY_PORT = 40001
STUN_PORT = 3478
VIRTUAL_PORT = 7001


LINKS = """
link set lo up
addr add {address}/24 dev eth0
link set eth0 addrgenmode none up
route add default via 10.95.0.254 dev eth0
"""

# A host firewall that keeps state and, on `a`, opens no port: what comes in there answers what went out.
FIREWALL = """
table inet firewall {
 chain host {
  type filter hook input priority filter; policy drop;
  ct state established,related accept
  iifname "lo" accept
  iifname "%(interface)s" accept
  meta l4proto { icmp, ipv6-icmp } accept
  %(open)s
 }
}
"""


def enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def new_namespace() -> int:
    """Return a descriptor of a new network namespace; this thread stays where it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(before)
    finally:
        os.close(before)
    return made


@dataclass
class Node:
    """One node: its namespace, and what the agent would hold."""

    name: str
    address: str
    mesh: tuple[str, str]
    namespace: int
    run: Path
    private_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    backend: KernelBackend = field(default_factory=KernelBackend)
    steering: Steering = field(default_factory=Steering)
    plan: SteeringPlan | None = None

    virtual = Endpoint.of(VIRTUAL_IPV4, VIRTUAL_PORT)

    @property
    def direct(self) -> Endpoint:
        return Endpoint.of(self.address, DEFAULT_LISTEN_PORT)

    @property
    def proxy(self) -> Endpoint:
        return Endpoint.of(self.address, PROXY_PORT)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have sockets and programs that start meanwhile in this node's namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            enter(self.namespace)
            yield
        finally:
            enter(before)
            os.close(before)

    def call(self, *words: str, text: str = "") -> str:
        with self.inside():
            done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stderr}"
        return done.stdout

    def udp(self, port: int, mark: int = 0) -> socket.socket:
        """Return a socket on the node's address that waits 5 s at most."""
        with self.inside():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.settimeout(5)
        made.bind((self.address, port))
        return made

    def host(self) -> HostNetwork:
        return HostNetwork(Path("/proc/sys/net"), self.run / f"{self.name}.json")

    async def configure(self, peer: Node) -> list[str]:
        """Make WireGuard's device, addresses and routes as the agent does, with `peer` as the only peer.

        Returns:
            what was changed in the host's routing.
        """
        networks = frozenset(map(ip_network, peer.mesh))
        key = public_key_of(peer.private_key)
        wanted = DeviceConfig(
            self.private_key, DEFAULT_LISTEN_PORT, FWMARK, {key: PeerConfig(key, self.virtual, networks, 1)}
        )
        addresses = tuple(map(ip_interface, self.mesh))
        four, six = (a.ip for a in addresses)
        assert isinstance(four, IPv4Address)
        assert isinstance(six, IPv6Address)
        with self.inside():
            await self.backend.ensure(DEFAULT_INTERFACE, 1420)
            await self.backend.apply(DEFAULT_INTERFACE, diff(wanted, await self.backend.read(DEFAULT_INTERFACE)))
            host = self.host()
            done = await host.reconcile(HostPlan(DEFAULT_INTERFACE, 1420, addresses, networks, four, six))
        assert host.problems == ()
        return done

    async def clean(self) -> None:
        """Take away all of ours."""
        host = self.host()
        with self.inside():
            await table.remove()
            await host.remove(DEFAULT_INTERFACE)
            await self.backend.remove(DEFAULT_INTERFACE)
        assert host.problems == ()

    def dump(self) -> dict[str, set[str]]:
        """Return rules, routes, nftables, links and sysctls by line, as they must be again after a clean-up."""
        routing = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
        commands = (*routing, "nft list ruleset", "ip -br link", "sysctl -a -r ^net.ipv4.conf")
        return {command: set(self.call(*command.split()).splitlines()) for command in commands}

    async def send_by(self, leg: Endpoint | None, accept: frozenset[Endpoint]) -> None:
        """Change the leg of the only peer by one transaction."""
        with self.inside():
            source = self.proxy.ip if leg == self.proxy else Sources().of({leg.ip}).get(leg.ip) if leg else None
            self.plan = plan_of(DEFAULT_LISTEN_PORT, PROBE_PORT, [PeerSteering(VIRTUAL_PORT, leg, source, accept)])
            await self.steering.apply(self.plan)

    def endpoint(self) -> str:
        """Return where WireGuard sends to, as `wg show` prints it."""
        return self.call("wg", "show", DEFAULT_INTERFACE, "endpoints").split()[-1]


@dataclass
class Mesh:
    """Both nodes and the pump."""

    a: Node
    b: Node
    relayed: dict[str, int]  # datagrams that the pump took from each node

    async def legs(self, a: str, b: str) -> None:
        """Choose each node's sending leg, `direct` or `relay`; both are always heard."""
        for node, other, leg in ((self.a, self.b, a), (self.b, self.a, b)):
            target = other.direct if leg == "direct" else node.proxy
            await node.send_by(target, frozenset((other.direct, node.proxy)))

    async def answered(self) -> None:
        """Wait for the first handshake: the first initiation can be lost, and WireGuard repeats it after 5 s."""
        async with asyncio.timeout(30):
            while await (await self.ping(1)).lost():
                pass

    async def ping(self, count: int, interval: float = 0.05, *, to: str = "10.77.0.2") -> Ping:
        """Start pings from a to b."""
        with self.a.inside():
            process = await asyncio.create_subprocess_exec(
                *("ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", "5", to),
                stdout=asyncio.subprocess.PIPE,
            )
        return Ping(process)


@dataclass
class Ping:
    """Pings on their way."""

    process: asyncio.subprocess.Process

    def running(self) -> bool:
        return self.process.returncode is None

    async def lost(self) -> int:
        """Wait for the end and return how many were not answered."""
        out = (await self.process.communicate())[0].decode()
        found = re.search(r"(\d+) packets transmitted, (\d+) received", out)
        assert found is not None, out
        return int(found[1]) - int(found[2])


@contextlib.contextmanager
def two_nodes(run: Path) -> Iterator[tuple[Node, Node]]:
    """Make two nodes on one wire, with strict rp_filter and a firewall, and nothing of ours yet.

    The wire has no IPv6 addresses: the kernel would add routes for them at a moment of its own.
    """
    a = Node("a", "10.95.0.1", ("10.77.0.1/32", "fd57::1/128"), new_namespace(), run)
    b = Node("b", "10.95.0.2", ("10.77.0.2/32", "fd57::2/128"), new_namespace(), run)
    try:
        there = f"/proc/{os.getpid()}/fd/{b.namespace}"
        a.call("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", there)
        for node, opened in ((a, ""), (b, f"udp dport {{ {DEFAULT_LISTEN_PORT}, {STUN_PORT} }} accept")):
            node.call("ip", "-batch", "-", text=LINKS.format(address=node.address))
            node.call("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1")
            node.call("nft", "-f", "-", text=FIREWALL % {"interface": DEFAULT_INTERFACE, "open": opened})
        yield a, b
    finally:
        for node in (a, b):
            os.close(node.namespace)


@contextlib.contextmanager
def relay_pump(mesh: Mesh) -> Iterator[None]:
    """Stand in for both nodes' relay proxies and the relay between them."""
    nodes = (mesh.a, mesh.b)
    sockets = [node.udp(PROXY_PORT) for node in nodes]
    loop = asyncio.get_running_loop()

    def pump(node: int, other: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := sockets[node].recv(65536):
                mesh.relayed[nodes[node].name] += 1
                sockets[other].sendto(data, nodes[other].direct.sockaddr())

    try:
        for node, other in ((0, 1), (1, 0)):
            sockets[node].setblocking(False)
            loop.add_reader(sockets[node], pump, node, other)
        yield
    finally:
        for opened in sockets:
            loop.remove_reader(opened)
            opened.close()


@pytest.fixture(scope="module")
def kernel_wireguard() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not asyncio.run(kernel_has_wireguard("wkvmprobe")):
        assert os.environ.get("WIREKUBE_TEST_KERNEL") != "1", "this kernel has no WireGuard"
        pytest.skip("this kernel has no WireGuard: make vm-test runs it in a virtual machine")


@pytest.fixture
def wire(kernel_wireguard: None, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes without anything of ours."""
    with two_nodes(tmp_path) as nodes:
        yield nodes


@pytest.fixture(scope="module")
async def joined(kernel_wireguard: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Two nodes that have pinged each other, shared by the tests: under emulation it takes seconds to make them."""
    with two_nodes(tmp_path_factory.mktemp("run")) as (a, b):
        made = Mesh(a, b, {"a": 0, "b": 0})
        with relay_pump(made):
            await made.legs("direct", "direct")
            # First the one whose firewall is open: then the first initiation of the other is heard.
            await b.configure(a)
            await a.configure(b)
            await made.answered()
            yield made


@pytest.fixture
async def mesh(joined: Mesh) -> Mesh:
    """The two nodes, both sending directly, as each test finds them."""
    await joined.legs("direct", "direct")
    for node, other in ((joined.a, joined.b), (joined.b, joined.a)):
        assert await node.configure(other) == []
    return joined
