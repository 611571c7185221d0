# SPDX-License-Identifier: Apache-2.0
"""Discovery through WireGuard's port, with coturn on two addresses behind real NATs, and pystun3 beside it.

a 192.168.1.2 ─┐
b 192.168.1.3 ─┴─ [lan] nat [wan] 203.0.113.10 ─┐
public 203.0.113.20 ────────────────────────────┴─ internet ── stun 203.0.113.1 .2, ports 3478 and 3479
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Interface, ip_address

import pytest

from wirekube.agent.nat import classic
from wirekube.agent.nat.discovery import NatWatcher, one_round
from wirekube.agent.nat.report import Behaviour, NatReport, Udp
from wirekube.agent.nat.socket import ProbeSocket
from wirekube.agent.steering.plan import plan_of
from wirekube.agent.steering.table import Steering
from wirekube.lab import netns, parts, wait
from wirekube.lab.plan import Box, Cable, NetworkPlan, namespace
from wirekube.lab.processes import Processes
from wirekube.lab.rules import router_rules
from wirekube.lab.topology import STUN_ADDRESSES, STUN_PORT, Nat
from wirekube.telemetry import noop
from wirekube.wire.endpoint import Endpoint

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LAB = f"stun{os.getpid()}"
LISTEN = 51820
OUTSIDE, PUBLIC = IPv4Address("203.0.113.10"), IPv4Address("203.0.113.20")
SERVERS = [Endpoint(address, STUN_PORT) for address in STUN_ADDRESSES]
EASY = Endpoint(OUTSIDE, LISTEN)

NO_UNASKED = """
table inet firewall {
 chain cin {
  type filter hook input priority 0; policy accept;
  iifname wan ct state new,invalid drop
 }
 chain cfwd {
  type filter hook forward priority 0; policy accept;
  iifname wan ct state established,related accept
  iifname wan drop
 }
}
"""
# An inside port may be answered by any port of an address that it has spoken to.
ADDRESS_FILTER = """
table ip filter {
 set seen {
  type ipv4_addr . inet_service . ipv4_addr
  flags dynamic,timeout
  timeout 300s
  size 65536
 }
 chain cfwd {
  type filter hook forward priority 0; policy accept;
  oifname wan meta l4proto udp update @seen { ip saddr . udp sport . ip daddr }
  iifname wan ct state established,related accept
  iifname wan meta l4proto udp ip daddr . udp dport . ip saddr @seen accept
  iifname wan drop
 }
}
"""
# The outside port is a hash of inside port and address: both ports of a server see one, two servers two.
ADDRESS_MAPPING = f"""
table ip nat {{
 chain cpost {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname wan meta l4proto udp snat to {OUTSIDE} : jhash udp sport . ip daddr mod 1024 seed 0xabcd map {{ {
    ", ".join(f"{number} : {40000 + number}" for number in range(1024))
} }}
 }}
}}
"""
RULES = {
    "eim-apdf": router_rules(Nat.EIM_APDF, OUTSIDE),
    "eim-eif": router_rules(Nat.EIM_EIF, OUTSIDE),
    "eim-adf": router_rules(Nat.EIM_EIF, OUTSIDE) + ADDRESS_FILTER,
    "adm-apdf": ADDRESS_MAPPING + NO_UNASKED,
    "symmetric": router_rules(Nat.SYMMETRIC, OUTSIDE),
    "udp-blocked": router_rules(Nat.UDP_BLOCKED, OUTSIDE),
}
ANY, ADDRESS, BOTH = (
    Behaviour.ENDPOINT_INDEPENDENT,
    Behaviour.ADDRESS_DEPENDENT,
    Behaviour.ADDRESS_AND_PORT_DEPENDENT,
)
EXPECTED = {
    "eim-apdf": (ANY, BOTH),
    "eim-eif": (ANY, ANY),
    "eim-adf": (ANY, ADDRESS),
    "adm-apdf": (ADDRESS, BOTH),
    "symmetric": (BOTH, BOTH),
}


def link(address: IPv4Interface | None, name: str, *more: str) -> tuple[str, ...]:
    addressed = (f"addr add {address} dev {name}",) if address else ()
    return (*addressed, f"link set {name} up", *more)


def host(name: str, last: int) -> Box:
    commands = link(IPv4Interface(f"192.168.1.{last}/24"), "eth0", "route add default via 192.168.1.1")
    return Box(name, ("link set lo up", *commands))


def network() -> NetworkPlan:
    def bridged(bridge: str, *ports: str) -> tuple[str, ...]:
        joined = [command for port in ports for command in (f"link set {port} master {bridge}", f"link set {port} up")]
        return (f"link add {bridge} type bridge", f"link set {bridge} up", *joined)

    servers = [f"addr add {address}/24 dev eth0" for address in STUN_ADDRESSES]
    nat = (*bridged("lan", "l0", "l1"), "addr add 192.168.1.1/24 dev lan", *link(IPv4Interface(f"{OUTSIDE}/24"), "wan"))
    boxes = (
        Box("internet", bridged("br0", "p0", "p1", "p2")),
        Box("stun", ("link set lo up", *servers, "link set eth0 up")),
        Box("nat", nat, {"net/ipv4/ip_forward": "1"}),
        Box("public", ("link set lo up", *link(IPv4Interface(f"{PUBLIC}/24"), "eth0"))),
        host("a", 2),
        host("b", 3),
    )
    cables = (
        Cable(("internet", "p0"), ("stun", "eth0")),
        Cable(("internet", "p1"), ("nat", "wan")),
        Cable(("internet", "p2"), ("public", "eth0")),
        Cable(("nat", "l0"), ("a", "eth0")),
        Cable(("nat", "l1"), ("b", "eth0")),
    )
    return NetworkPlan(boxes, cables, {})


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The network, and coturn on it."""
    processes = Processes(tmp_path_factory.mktemp("processes"))
    try:
        netns.build(LAB, network())
        with netns.inside(namespace(LAB, "stun")):
            processes.start("turnserver", parts.stun_server(tmp_path_factory.mktemp("coturn")))
        wait.until_stun_answers(namespace(LAB, "stun"), lambda: processes.tail("turnserver"))
        yield
    finally:
        netns.remove(LAB)  # with all processes in it


@pytest.fixture(params=[*RULES])
def nat(request: pytest.FixtureRequest, internet: None) -> str:
    """Make the router one of this kind, without any memory."""
    with netns.inside(namespace(LAB, "nat")):
        netns.run(["nft", "-f", "-"], "flush ruleset\n" + RULES[request.param])
        netns.run(["conntrack", "-F"])
    return str(request.param)


@contextlib.asynccontextmanager
async def node(box: str, own: str) -> AsyncIterator[ProbeSocket]:
    """Stand in a node with its steering table; its probe socket shares the listen port with a socket that has it."""
    with netns.inside(namespace(LAB, box)), contextlib.ExitStack() as stack:
        wireguard = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        wireguard.bind((own, LISTEN))
        probes = ProbeSocket(lambda _data, _source: None, random.Random())
        stack.callback(probes.close)
        steering = Steering()
        await steering.apply(plan_of(LISTEN, probes.port, []))
        yield probes


async def discovered(probes: ProbeSocket, own: str) -> NatReport:
    async def servers() -> list[Endpoint]:
        return SERVERS

    own_addresses = frozenset({ip_address(own)})
    watcher = NatWatcher(probes, servers, lambda: own_addresses, lambda _report: None, noop(), random.Random())
    return await watcher.discover(SERVERS)


async def test_each_kind_of_nat_is_told_for_what_it_is(nat: str) -> None:
    async with node("a", "192.168.1.2") as probes:
        report = await discovered(probes, "192.168.1.2")
    if nat == "udp-blocked":
        assert report == NatReport(udp=Udp.BLOCKED)
        return
    assert (report.mapping, report.filtering) == EXPECTED[nat]
    assert report.udp is Udp.OPEN
    assert not report.no_nat
    assert {mapped.ip for mapped in report.mapped} == {OUTSIDE}
    assert (report.mapped == (EASY,)) == (report.mapping is ANY)


@pytest.mark.parametrize("nat", ["eim-apdf"], indirect=True)
async def test_a_second_node_with_our_port_behind_our_nat_changes_our_port_once(nat: str) -> None:
    """It looks symmetric in the first round, and is not. What it publishes is the later port."""
    async with node("a", "192.168.1.2") as probes:
        assert (await discovered(probes, "192.168.1.2")).mapped == (EASY,)
        async with node("b", "192.168.1.3") as neighbour:
            report = await discovered(neighbour, "192.168.1.3")
            assert report.mapping is ANY
            (mapped,) = report.mapped
            assert (mapped.ip, mapped.port != LISTEN) == (OUTSIDE, True)
            again = await one_round(neighbour, SERVERS)
            assert again.answers == [mapped, mapped]


async def test_a_public_node_has_no_nat(internet: None) -> None:
    async with node("public", str(PUBLIC)) as probes:
        report = await discovered(probes, str(PUBLIC))
    assert report == NatReport(ANY, ANY, Udp.OPEN, (Endpoint(PUBLIC, LISTEN),), no_nat=True)


async def test_a_network_that_opens_and_closes_is_followed(internet: None) -> None:
    async with node("a", "192.168.1.2") as probes:
        found = []
        for kind in ("udp-blocked", "eim-apdf", "symmetric"):
            with netns.inside(namespace(LAB, "nat")):
                netns.run(["nft", "-f", "-"], "flush ruleset\n" + RULES[kind])
                netns.run(["conntrack", "-F"])
            found.append((await discovered(probes, "192.168.1.2")).summary())
    assert found == ["UDP blocked", "Easy", "Symmetric"]


@pytest.mark.parametrize("nat", ["eim-apdf", "eim-eif", "adm-apdf", "symmetric"], indirect=True)
async def test_pystun3_comes_to_the_same_verdict(nat: str) -> None:
    answers: list[dict[Endpoint, Endpoint | None]] = []

    def ask() -> None:
        with netns.inside(namespace(LAB, "a")):
            answers.append(asyncio.run(classic.mapped_addresses(SERVERS)))

    thread = threading.Thread(target=ask)  # its sockets are made in threads of its own, which inherit the namespace
    thread.start()
    await asyncio.to_thread(thread.join)
    (seen,) = answers
    async with node("a", "192.168.1.2") as probes:
        ours = await one_round(probes, SERVERS)
    theirs = [mapped for mapped in seen.values() if mapped is not None]
    assert len(theirs) == len(SERVERS)
    assert {mapped.ip for mapped in theirs} == {mapped.ip for mapped in ours.answers} == {OUTSIDE}
    assert (len(set(theirs)) == 1) == (len(set(ours.answers)) == 1) == nat.startswith("eim")
