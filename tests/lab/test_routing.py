# SPDX-License-Identifier: Apache-2.0
"""HostNetwork against a real kernel, in a network namespace of the test's own."""

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from pathlib import Path

import anyio
import pytest

from wirekube.agent.routing.host import HostNetwork, Underlay
from wirekube.agent.routing.model import HostPlan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MESH, LAN = "wkrtmesh", "wkrtlan"
PROC = Path("/proc/sys/net")
PLAN = HostPlan(
    MESH,
    1380,
    (ip_interface("10.200.0.1/32"), ip_interface("fd57::1/128")),
    frozenset(map(ip_network, ("10.200.0.2/32", "10.50.0.0/16", "fd57::2/128", "0.0.0.0/0"))),
    IPv4Address("10.200.0.1"),
    IPv6Address("fd57::1"),
)


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def namespace(network_namespace):
    """A LAN, and a link that stands for WireGuard's."""
    ip("link", "set", "lo", "up")
    ip("link", "add", LAN, "type", "veth", "peer", "name", "wkrtpeer")
    ip("link", "set", "wkrtpeer", "up")
    ip("link", "set", LAN, "up")
    ip("addr", "add", "10.9.0.1/24", "dev", LAN)
    ip("addr", "add", "fd09::1/64", "dev", LAN, "nodad")
    ip("link", "add", MESH, "type", "veth", "peer", "name", "wkrtfar")
    ip("link", "set", "wkrtfar", "up")


@pytest.fixture
def host(namespace, tmp_path):
    return HostNetwork(PROC, tmp_path / "run" / "sysctls.json")


def dump():
    """Everything that a clean-up must leave as it was; the kernel's own routes of the mesh's two links are not ours."""
    words = (["rule"], ["-6", "rule"], ["route", "show", "table", "all"], ["-6", "route", "show", "table", "all"])
    routes = [
        [line for line in ip(*w).splitlines() if f"dev {MESH}" not in line and "dev wkrtfar" not in line] for w in words
    ]
    names = sorted(PROC.glob("ipv4/conf/*/*")) + sorted(PROC.glob("ipv4/ip_forward"))
    values = {str(name): name.read_text() for name in names if os.access(name, os.R_OK) and name.stat().st_mode & 0o400}
    return routes, values


async def reconciled(host, plan=PLAN):
    done = await host.reconcile(plan)
    assert host.problems == ()
    return done


async def test_remove_leaves_the_host_as_it_was(host, tmp_path):
    before = dump()
    assert await reconciled(host)
    assert dump() != before
    assert json.loads((tmp_path / "run" / "sysctls.json").read_text())[f"{MESH}/disable_xfrm"] == "0"
    assert await host.remove(MESH)
    assert dump() == before
    assert not (tmp_path / "run" / "sysctls.json").exists()
    assert await host.remove(MESH) == []
    assert host.problems == ()


async def test_removing_what_was_never_installed_changes_nothing(host):
    before = dump()
    assert await host.remove(MESH) == []
    assert dump() == before


async def test_the_second_reconcile_changes_nothing(host):
    assert await reconciled(host)
    assert await reconciled(host) == []


async def test_what_is_installed(host):
    await reconciled(host)
    for family in ("-4", "-6"):
        rules = [" ".join(line.split()[1:]) for line in ip("-N", family, "rule").splitlines()]
        assert rules[1:4] == [
            "from all fwmark 0x574b lookup 254 proto 187",
            "from all lookup 254 suppress_prefixlength 0 proto 187",
            "from all lookup 22347 suppress_prefixlength 0 proto 187",
        ]
    routes = ip("-N", "route", "show", "table", "22347").splitlines()
    assert [line.split(" dev ")[0] for line in routes] == ["10.50.0.0/16", "10.200.0.2"]
    assert all("proto 187" in line and "src 10.200.0.1" in line for line in routes)
    assert "src fd57::1" in ip("-6", "route", "show", "table", "22347")
    assert (PROC / f"ipv4/conf/{MESH}/rp_filter").read_text().strip() == "2"
    assert "mtu 1380" in ip("link", "show", MESH)
    assert ip("addr", "show", MESH).count("noprefixroute") == 2
    assert MESH not in ip("route", "show", "table", "main")


async def test_where_packets_go(host):
    ip("route", "add", "default", "via", "10.9.0.254")
    ip("route", "add", "10.50.7.0/24", "via", "10.9.0.253")
    await reconciled(host)
    assert f"dev {MESH}" in ip("route", "get", "10.50.1.1")
    assert "src 10.200.0.1" in ip("route", "get", "10.50.1.1")
    assert "via 10.9.0.254" in ip("route", "get", "10.50.1.1", "mark", "0x574b")
    assert "via 10.9.0.253" in ip("route", "get", "10.50.7.1"), "main's more exact route wins"
    assert "via 10.9.0.254" in ip("route", "get", "203.0.113.1")


async def test_what_is_preferred_goes_through_the_mesh_although_main_knows_it(host):
    for name in ("all", LAN):
        (PROC / f"ipv4/conf/{name}/rp_filter").write_text("1")
    ip("route", "add", "10.244.2.0/24", "via", "10.9.0.5")
    ip("route", "add", "10.66.0.0/16", "nexthop", "via", "10.9.0.6", "nexthop", "via", "10.9.0.7")
    before = dump()
    preferred = frozenset(map(ip_network, ("10.9.0.5/32", "10.244.2.0/24", "fd09::5/128")))
    outside, loose = frozenset(map(ip_address, ("10.9.0.1", "fd09::1"))), frozenset({ip_address("10.9.0.1")})
    plan = replace(PLAN, routes=PLAN.routes | preferred, preferred=preferred, outside=outside, loose=loose)
    await reconciled(host, plan)
    assert await reconciled(host, plan) == []
    assert f"dev {MESH} table 22348 src 10.200.0.1" in ip("route", "get", "10.9.0.5")
    assert f"dev {MESH} table 22348" in ip("route", "get", "10.244.2.9")
    assert f"dev {MESH} table 22348" in " ".join(ip("-6", "route", "get", "fd09::5").split())
    for words in (("10.9.0.5", "from", "10.9.0.1"), ("10.9.0.5", "mark", "0x574b"), ("10.9.0.6",)):
        assert f"dev {LAN}" in ip("route", "get", *words)
    assert "via 10.9.0.5" in ip("route", "get", "10.244.2.9", "from", "10.9.0.1"), "answered as it came"
    assert (PROC / f"ipv4/conf/{LAN}/rp_filter").read_text().strip() == "2"
    own, hops = await host.surroundings()
    assert ip_address("10.9.0.1") in own
    assert ip_address("10.200.0.1") not in own
    shown = {(str(destination), str(hop)) for destination, hop in hops}
    assert {("10.244.2.0/24", "10.9.0.5"), ("10.66.0.0/16", "10.9.0.6"), ("10.66.0.0/16", "10.9.0.7")} <= shown
    # Without it there is nothing left of it, whether by the next plan or by a clean-up.
    await reconciled(host)
    assert (PROC / f"ipv4/conf/{LAN}/rp_filter").read_text().strip() == "1"
    assert "22348" not in ip("-N", "rule") + ip("-N", "-6", "rule") + ip("-N", "route", "show", "table", "all")
    await reconciled(host, plan)
    await host.remove(MESH)
    assert dump() == before


async def test_what_was_deleted_comes_back_and_what_is_stale_goes(host):
    await reconciled(host)
    ip("route", "del", "10.50.0.0/16", "table", "22347")
    ip("-6", "rule", "del", "priority", "200")
    ip("addr", "add", "10.200.0.9/32", "dev", MESH)
    ip("route", "add", "10.66.0.0/16", "dev", LAN, "table", "22347")
    ip("rule", "add", "fwmark", "0x574b", "lookup", "main", "priority", "100")
    assert len(await reconciled(host)) == 5
    assert await reconciled(host) == []
    assert "10.50.0.0/16" in ip("route", "show", "table", "22347")
    assert "10.66" not in ip("route", "show", "table", "22347")


async def test_a_moved_rule_for_local_moves_ours(host):
    await reconciled(host)
    ip("rule", "add", "from", "all", "lookup", "local", "priority", "150")
    await reconciled(host)
    assert "160:" in ip("rule")
    assert "110:" not in ip("rule")
    assert await reconciled(host) == []


async def test_the_documentation_address_has_a_route_while_there_is_no_default(host):
    await reconciled(host)
    assert "192.0.2.1" in ip("route", "show", "table", "main", "proto", "187")
    assert "2001:db8::1" in ip("-6", "route", "show", "table", "main", "proto", "187")
    assert await host.underlay() == Underlay(IPv4Address("10.9.0.1"), LAN)
    ip("route", "add", "default", "via", "10.9.0.254")
    ip("-6", "route", "add", "default", "via", "fd09::2")
    assert len(await reconciled(host)) == 2
    assert ip("route", "show", "table", "main", "proto", "187") == ""
    assert ip("-6", "route", "show", "table", "main", "proto", "187") == ""
    assert await host.underlay() == Underlay(IPv4Address("10.9.0.1"), LAN)


async def test_no_underlay_without_a_route(host):
    assert await host.underlay() is None


async def test_without_ipv6_only_ipv4_is_touched(host):
    (PROC / "ipv6/conf/all/disable_ipv6").write_text("1")
    before = ip("-6", "rule")
    await reconciled(host)
    assert ip("-6", "rule") == before
    assert await reconciled(host) == []


async def test_an_absent_interface_is_a_problem_and_nothing_is_changed(host):
    ip("link", "del", MESH)
    before = dump()
    assert await host.reconcile(PLAN) == []
    assert MESH in host.problems[0]
    assert dump() == before


async def test_candidate_addresses(host):
    await reconciled(host)
    for name in ("eth0", "cni0", "veth77"):
        ip("link", "add", name, "type", "veth", "peer", "name", f"p{name}")
        ip("link", "set", f"p{name}", "up")
        ip("link", "set", name, "up")
    ip("addr", "add", "10.1.0.1/24", "dev", "eth0")
    ip("addr", "add", "169.254.1.1/16", "dev", "eth0")
    ip("addr", "add", "10.2.0.1/24", "dev", "cni0")
    ip("addr", "add", "10.3.0.1/24", "dev", "veth77")
    assert [str(a.ip) for a in await host.attached()] == ["10.1.0.1", "10.9.0.1", "fd09::1"]


async def test_changes_are_reported_together(host):
    seen = asyncio.Queue()
    task = asyncio.create_task(host.changes(seen.put))
    await asyncio.sleep(0)
    ip("addr", "add", "10.77.0.1/24", "dev", LAN)
    ip("rule", "add", "lookup", "main", "priority", "5000")
    try:
        with anyio.fail_after(5):
            assert {"address", "route", "rule"} <= await seen.get()
        assert seen.empty()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
