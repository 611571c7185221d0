# SPDX-License-Identifier: Apache-2.0
"""Candidate addresses, the sysctl record, and the kinds of a notification."""

import json
import struct
from ipaddress import ip_interface

import pytest

from wirekube.agent.routing.candidates import candidate_interfaces, is_candidate_link
from wirekube.agent.routing.kernel import AddressRow, LinkRow
from wirekube.agent.routing.sysctl import Sysctls
from wirekube.agent.routing.watch import kinds


def link(name, kind="", index=1, running=True, loopback=False):
    return LinkRow(index, name, kind, 1500, True, running, loopback)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("eth0", "", True),
        ("eth0", "veth", True),
        ("br0", "bridge", True),
        ("docker0", "", True),
        ("docker0", "bridge", False),
        ("br-0123456789ab", "bridge", False),
        ("br-ex", "bridge", True),
        ("vethab12", "veth", False),
        ("cali1", "veth", False),
        ("flannel.1", "vxlan", False),
        ("cilium_host", "veth", False),
        ("kube-ipvs0", "dummy", False),
        ("lxc1", "veth", False),
        ("virbr0", "bridge", False),
        ("cni0", "bridge", False),
        ("mesh", "tun", False),
        ("overlay", "vxlan", False),
        ("tunl0", "ipip", False),
        ("tun0", "tun", True),
    ],
)
def test_links_that_other_nodes_may_use(name, kind, expected):
    assert is_candidate_link(link(name, kind), "mesh") is expected


def test_links_that_are_down_or_loopback_are_not_used():
    assert not is_candidate_link(link("eth0", running=False), "mesh")
    assert not is_candidate_link(link("lo", loopback=True), "mesh")


def test_addresses_are_global_unicast_and_in_order():
    texts = ("fd00::9/64", "10.0.0.9/8", "127.0.0.9/8", "169.254.0.9/16", "224.0.0.9/32", "fe80::9/64", "8.8.8.8/32")
    rows = [AddressRow(1, ip_interface(text), usable=True) for text in texts]
    rows += [
        AddressRow(1, ip_interface("10.0.0.1/8"), usable=False),
        AddressRow(2, ip_interface("10.0.0.2/8"), usable=True),
    ]
    assert [str(a.ip) for a in candidate_interfaces([link("eth0")], rows, "mesh")] == ["8.8.8.8", "10.0.0.9", "fd00::9"]


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "net/ipv4/conf/wk"
    folder.mkdir(parents=True)
    (folder / "rp_filter").write_text("1\n")
    return tmp_path


def test_the_first_old_value_is_kept_over_restarts_and_restored(tree):
    record, value = tree / "run/old.json", tree / "net/ipv4/conf/wk/rp_filter"
    Sysctls(tree / "net", record).write("wk", "rp_filter", "2", "1")
    value.write_text("0")
    Sysctls(tree / "net", record).write("wk", "rp_filter", "2", "0")
    assert value.read_text() == "2"
    assert json.loads(record.read_text()) == {"wk/rp_filter": "1"}
    assert Sysctls(tree / "net", record).restore("wk") == ["sysctl net.ipv4.conf.wk.rp_filter back to 1"]
    assert value.read_text() == "1"
    assert list(record.parent.iterdir()) == []


def test_all_interfaces_are_restored_or_one(tree):
    sysctls, other = Sysctls(tree / "net", tree / "old.json"), tree / "net/ipv4/conf/eth0.7"
    other.mkdir()
    (other / "rp_filter").write_text("1\n")
    for name in ("wk", "eth0.7"):
        sysctls.write(name, "rp_filter", "2", "1")
    assert sysctls.changed() == {"wk", "eth0.7"}
    assert sysctls.restore("eth0.7") == ["sysctl net.ipv4.conf.eth0.7.rp_filter back to 1"]
    assert sysctls.changed() == {"wk"}
    assert sysctls.restore() == ["sysctl net.ipv4.conf.wk.rp_filter back to 1"]
    assert sysctls.changed() == set()


def test_restoring_without_the_interface_or_with_a_damaged_record_is_no_error(tree):
    record = tree / "old.json"
    for text in ('{"gone/rp_filter": "1", "../../../x": "1"}', "[", '["a"]'):
        record.write_text(text)
        assert Sysctls(tree / "net", record).restore("gone") == []


def test_ipv6_needs_the_host_and_the_interface(tree):
    sysctls = Sysctls(tree / "net", tree / "old.json")
    assert not sysctls.ipv6("wk")
    for scope in ("all", "wk"):
        (tree / "net/ipv6/conf" / scope).mkdir(parents=True)
        (tree / "net/ipv6/conf" / scope / "disable_ipv6").write_text("0\n")
    assert sysctls.ipv6("wk")
    (tree / "net/ipv6/conf/all/disable_ipv6").write_text("1\n")
    assert not sysctls.ipv6("wk")


def message(kind):
    return struct.pack("=IHHII", 16, kind, 0, 0, 0)


def test_kinds_of_a_notification():
    assert kinds(message(24) + message(33) + message(28)) == {"route", "rule"}
    assert kinds(b"\0" * 40) == frozenset()
    assert kinds(b"short") == frozenset()
