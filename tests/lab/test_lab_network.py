# SPDX-License-Identifier: Apache-2.0
"""The lab's NATs and hosts behave as their names say: measured with our own classifier against coturn."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import pytest

from wirekube.agent.nat.discovery import measure_filtering, one_round
from wirekube.agent.nat.report import Behaviour, Udp, classify, needs_second_round
from wirekube.agent.nat.socket import ProbeSocket
from wirekube.lab import netns, parts, wait
from wirekube.lab.plan import namespace, plan_network
from wirekube.lab.processes import Processes
from wirekube.lab.rules import KUBE_PROXY_MARK
from wirekube.lab.topology import STUN_ADDRESSES, STUN_PORT, parse
from wirekube.wire import stun
from wirekube.wire.endpoint import Endpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")

EASY, SYMMETRIC = Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT
SERVERS = [Endpoint(address, STUN_PORT) for address in STUN_ADDRESSES]
SO_MARK = 36
TOPOLOGY = parse(
    {
        "nodes": [
            {"name": "open"},
            {"name": "proxied", "kubeProxy": True},
            {"name": "home", "nat": "eim-apdf", "inputDrop": True},
            {"name": "cone", "nat": "eim-eif", "rpFilter": 1},
            {"name": "cloudnat", "nat": "symmetric"},
            {"name": "office", "nat": "udp-blocked"},
            {"name": "neighbour", "behind": "home"},
        ]
    },
    "test",
)
PLAN = plan_network(TOPOLOGY)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """The network, with STUN servers; returns the name of a box's namespace."""
    lab, folder = f"t{os.getpid()}-net", tmp_path_factory.mktemp("stun")
    processes, mount_point = Processes(folder), netns.RUN_NETNS.exists()
    try:
        netns.build(lab, PLAN)
        processes.start("stun", ["ip", "netns", "exec", namespace(lab, "stun"), *parts.stun_server(folder)])
        wait.until_stun_answers(namespace(lab, "stun"), lambda: processes.tail("stun"))
        yield lambda name: namespace(lab, name)
    finally:
        netns.remove(lab)
        if not mount_point:
            netns.remove_mount_point()


async def behaviour(own):
    rng = random.Random(1)
    probes = ProbeSocket(lambda _data, _source: None, rng, mark=None)
    try:
        filtering = await measure_filtering(SERVERS, rng)
        rounds = [await one_round(probes, SERVERS)]
        if needs_second_round(rounds[0]):
            rounds.append(await one_round(probes, SERVERS))
        return classify(rounds, own, filtering)
    finally:
        probes.close()


@pytest.mark.parametrize(
    ("node", "mapping", "filtering"),
    [
        ("open", EASY, EASY),
        ("home", EASY, SYMMETRIC),
        ("cone", EASY, EASY),
        ("cloudnat", SYMMETRIC, SYMMETRIC),
    ],
)
def test_a_nat_is_of_its_kind(box, node, mapping, filtering):
    with netns.inside(box(node)):
        report = asyncio.run(behaviour(frozenset([PLAN.places[node].address])))
    assert (report.mapping, report.filtering, report.udp) == (mapping, filtering, Udp.OPEN)
    assert report.no_nat == (node == "open")
    assert {mapped.ip for mapped in report.mapped} == {PLAN.places[node].public}


def test_the_office_loses_udp_and_passes_tcp(box):
    with netns.inside(box("office")):
        report = asyncio.run(behaviour(frozenset()))
        with socket.create_connection((str(STUN_ADDRESSES[0]), STUN_PORT), timeout=5) as passed:
            assert passed.getpeername()[0] == str(STUN_ADDRESSES[0])
    assert report.udp is Udp.BLOCKED


def mapped_port(source_port, mark):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        asker.bind(("", source_port))
        asker.settimeout(5)
        asker.sendto(stun.encode_request(os.urandom(stun.TXID_BYTES)), SERVERS[0].sockaddr())
        message = stun.decode(asker.recv(2048))
    assert message is not None
    assert message.mapped is not None
    return message.mapped.port


def test_kube_proxys_rules_give_a_marked_packet_another_port(box):
    with netns.inside(box("proxied")):
        assert mapped_port(51820, 0) == 51820
        # Random ports may hit the same one, though not thrice.
        marked = {mapped_port(port, KUBE_PROXY_MARK | 0x1) - port for port in (51821, 51822, 51823)}
    assert marked != {0}


def heard(box, sender, receiver, port, *, send=b"hello"):
    """Tell whether a datagram to a port of a node arrives within half a second."""
    with netns.inside(box(receiver)):
        waiting = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.inside(box(sender)):
        sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with waiting, sending:
        waiting.bind(("", port))
        waiting.settimeout(0.5)
        sending.sendto(send, (str(PLAN.places[receiver].address), port))
        try:
            return waiting.recv(100) == send
        except TimeoutError:
            return False


def test_a_host_firewall_drops_all_but_what_the_mesh_needs(box):
    assert heard(box, "neighbour", "home", 51820)
    assert not heard(box, "neighbour", "home", 51821)
    assert heard(box, "home", "neighbour", 51821)
    with netns.inside(box("neighbour")):
        netns.run(["ping", "-n", "-c1", "-W2", str(PLAN.places["home"].address)])


def test_rp_filter_is_set_where_it_should_be(box):
    for node, value in (("cone", "1"), ("home", "0")):
        with netns.inside(box(node)):
            assert netns.run(["sysctl", "-n", "net.ipv4.conf.eth0.rp_filter"]).strip() == value


def test_there_is_no_way_out_of_the_machine(box):
    for name in (each.name for each in PLAN.boxes):
        with netns.inside(box(name)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            links = {line.split(": ")[1].split("@")[0] for line in netns.run(["ip", "-o", "link"]).splitlines()}
            assert links <= {"lo", "eth0", "wan", "lan", "br0", *(f"{end}{at}" for end in "pl" for at in range(20))}
            asker.settimeout(0.05)
            try:
                asker.sendto(b"x", ("198.51.100.1", 9))
                assert not asker.recv(10)
            except OSError:  # no route, no answer, or refused
                continue
