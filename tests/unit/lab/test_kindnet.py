# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from wirekube.lab.kindnet import Router, facts, lan_commands, main, outside_addresses
from wirekube.lab.topology import Nat

NETWORK = IPv4Network("172.18.0.0/16")
ROUTER = Router("worker", Nat.SYMMETRIC, IPv4Address("172.18.0.4"), IPv4Interface("172.18.255.251/16"), "veth1")


def test_outside_addresses_are_hosts_of_the_network_far_from_those_that_docker_gives_out():
    found = outside_addresses(NETWORK)
    assert len(set(found)) == len(found)
    assert all(address in NETWORK and address != NETWORK.broadcast_address for address in found)
    assert min(found) > IPv4Address("172.18.128.0")


def test_only_the_node_itself_is_on_the_inside_of_its_router():
    routes = [line for line in lan_commands(ROUTER).splitlines() if line.startswith("route")]
    assert routes == ["route add 172.18.0.4 dev lan"]


def test_routers_are_not_taken_for_namespaces_of_a_lab():
    assert ROUTER.space == "wkkind.nat-worker"


def test_the_suite_is_told_the_stun_servers():
    assert facts([IPv4Address("172.18.255.254")])["data"] == {"stunServers": "172.18.255.254:3478"}


def test_an_unknown_kind_of_nat_is_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["up", "worker=cone"])
    assert refused.value.code == 2
    assert "symmetric" in capsys.readouterr().err
