# SPDX-License-Identifier: Apache-2.0
"""A direct pair whose path breaks and heals, and a host whose parts of the mesh are taken away: pings go on."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
BLACKOUT = 2.0  # the design's bounds
RESTORED = 2.0
NOISE = 1.0  # what a busy machine may add

pytestmark = pytest.mark.timeout(120)


def one_way(mesh, *, blocked):
    """Lose what B sends to A, at A's router; what A sends goes on."""
    table = "table inet test-fault"
    rules = f"{table}\ndelete {table}\n"
    if blocked:
        remote = mesh.lab.plan.places[B].public
        drop = f"ip saddr {remote} meta l4proto udp drop"
        rules += f"{table} {{\n chain c {{\n  type filter hook forward priority -10\n  {drop}\n }}\n}}\n"
    mesh.net("nat-home-a", "nft -f -", rules)


def both_ways(mesh, *, blocked):
    (mesh.lab.block_udp if blocked else mesh.lab.unblock_udp)(A, B)


@pytest.mark.parametrize("lose", [both_ways, one_way])
def test_lost_udp_moves_the_pair_to_the_relay_and_back_and_no_endpoint_moves(mesh, measured, lose):
    before = {node: mesh.wg(node).identity for node in (A, B)}
    with mesh.pinging((A, B), (B, A)) as pings:
        try:
            lose(mesh, blocked=True)
            mesh.until(mesh.both(A, B, "Relayed"), 10, "both sides send by the relay")
            pings.more(50)
            blackout = pings.gap()
        finally:
            lose(mesh, blocked=False)
        healed = time.monotonic()
        back = mesh.until(mesh.both(A, B, "Direct"), 35, "both sides send directly again")
        pings.more(50)
    measured(f"blackout, {lose.__name__}", blackout, "2 s")
    measured(f"back to direct, {lose.__name__}", back, "the next retry, 5 s at first and 30 s at most")
    assert blackout < BLACKOUT + NOISE
    pings.assert_none_lost(healed)
    assert {node: mesh.wg(node).identity for node in (A, B)} == before


def wireguard_alone(mesh, *, blocked):
    """Lose WireGuard's packets at A's router, by their first word; probes and STUN go on."""
    table = "table inet test-fault"
    rules = f"{table}\ndelete {table}\n"
    if blocked:
        kinds = "0x01000000, 0x02000000, 0x03000000, 0x04000000"
        drop = f"meta l4proto udp @th,64,32 {{ {kinds} }} drop"
        rules += f"{table} {{\n chain c {{\n  type filter hook forward priority -10\n  {drop}\n }}\n}}\n"
    mesh.net("nat-home-a", "nft -f -", rules)


def test_a_path_that_carries_probes_and_no_wireguard_is_left_until_something_changes(mesh, measured):
    before = {node: mesh.wg(node).identity for node in (A, B)}
    with mesh.pinging((A, B), (B, A)) as pings:
        try:
            wireguard_alone(mesh, blocked=True)
            left = mesh.until(mesh.both(A, B, "Relayed"), 30, "both sides send by the relay")
            back = time.monotonic()
            pings.more(50)
            assert mesh.states(A, B) == ("Relayed", "Relayed"), "probes are answered still"
        finally:
            wireguard_alone(mesh, blocked=False)
        try:
            mesh.net(A, "ip addr add 192.168.77.77/32 dev eth0")
            mesh.until(mesh.both(A, B, "Direct"), 35, "a new address is news to both sides")
        finally:
            mesh.net(A, "ip addr del 192.168.77.77/32 dev eth0")
        pings.more(50)
    measured("WireGuard filtered, moved to the relay", left, "20 s")
    pings.assert_none_lost(back + NOISE)
    assert {node: mesh.wg(node).identity for node in (A, B)} == before


def delete_interface(mesh):
    mesh.net(A, "ip link del wire_kube")


def kill_wireguard(mesh):
    (pid,) = mesh.wireguard_pids(A)
    os.kill(pid, signal.SIGKILL)


def delete_route(mesh):
    mesh.net(A, f"ip route del {mesh.addresses[B][0]} table 22347")


def delete_route6(mesh):
    mesh.net(A, f"ip -6 route del {mesh.addresses[B][1]} table 22347")


def delete_rules(mesh):
    mesh.net(A, "ip rule del priority 200")
    mesh.net(A, "ip rule del priority 110")


def delete_address(mesh):
    mesh.net(A, f"ip addr del {mesh.addresses[A][0]} dev wire_kube")


def flush_nft(mesh):
    mesh.net(A, "nft flush ruleset")


def delete_table(mesh):
    mesh.net(A, "nft delete table ip wirekube")


def link_down(mesh):
    mesh.net(A, "ip link set wire_kube down")


FAULTS = [
    delete_interface, kill_wireguard, delete_route, delete_route6, delete_rules, delete_address, flush_nft,
    delete_table, link_down,
]  # fmt: skip


PARTS = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip -o addr", "ip -o link", "nft list ruleset")  # fmt: skip


def words(text):
    """Return a listing without what is no matter: order, indexes, and link-local addresses, which are random."""
    lines = [re.sub(r"^\d+: ", "", line) for line in text.splitlines() if "fe80:" not in line]
    return sorted(word for line in lines for word in line.replace(",", " ").split())


def host(mesh):
    return {part: words(text) for part, text in mesh.dump(A, PARTS).items()}


@pytest.mark.parametrize("damage", FAULTS)
def test_what_is_taken_away_is_restored(mesh, measured, damage):
    whole, identity, process = host(mesh), mesh.wg(A).identity, mesh.wireguard_pids(A)
    with mesh.pinging((A, B), (B, A)) as pings:
        begin = time.monotonic()
        damage(mesh)
        mesh.until(lambda: host(mesh) != whole, 2, f"{damage.__name__}: the damage is done")
        mesh.until(lambda: host(mesh) == whole, 10, f"{damage.__name__}: the host is whole again")
        took = time.monotonic() - begin
        pings.more(25)
        gap = pings.gap()
        mesh.until(lambda: mesh.wg_identity(A) == identity, 2, f"{damage.__name__}: WireGuard is configured as before")
    with mesh.pinging((A, B), (B, A), version=6) as pings:
        pings.more(5)
    measured(f"{damage.__name__}, restored", took, "2 s")
    measured(f"{damage.__name__}, longest gap", gap, "2 s and a handshake")
    assert took < RESTORED + NOISE
    assert gap < RESTORED + 2 * NOISE
    if damage not in (delete_interface, kill_wireguard):
        assert mesh.wireguard_pids(A) == process
