# SPDX-License-Identifier: Apache-2.0
"""One suite for both WireGuard backends, with real devices in a network namespace of the test's own.

WIREKUBE_WIREGUARD_GO names the userspace program. WIREKUBE_TEST_KERNEL=1 makes a kernel without WireGuard a failure
instead of a skip.
"""

import asyncio
import base64
import os
import secrets
import socket
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from wirekube.agent.wireguard import helper
from wirekube.agent.wireguard.backend import BackendError, ForeignInterface
from wirekube.agent.wireguard.choose import choose_backend
from wirekube.agent.wireguard.device import (
    DeviceChange,
    DeviceConfig,
    PeerChange,
    PeerConfig,
    PeerStats,
    diff,
    public_key_of,
)
from wirekube.agent.wireguard.kernel import KernelBackend, kernel_has_wireguard
from wirekube.agent.wireguard.userspace import SOCKET_DIR, UserspaceBackend, find_binary
from wirekube.wire.endpoint import Endpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NAME = f"wkc{os.getpid() % 100000}"


@pytest.fixture(params=["kernel", "userspace"])
async def backend(request, network_namespace):
    if request.param == "kernel":
        if not await kernel_has_wireguard("wkcprobe"):
            assert os.environ.get("WIREKUBE_TEST_KERNEL") != "1", "the kernel has no WireGuard"
            pytest.skip("the kernel has no WireGuard")
        made = KernelBackend()
    else:
        if find_binary() is None:
            pytest.skip("no wireguard-go (WIREKUBE_WIREGUARD_GO)")
        made = UserspaceBackend()
    yield made
    await made.remove(NAME)


def config(count=3, private=b"\x42" * 32):
    peers = {}
    for number in range(count):
        key = public_key_of(number.to_bytes(4, "big") * 8) if number else public_key_of(b"\7" * 32)
        endpoint = Endpoint.of("192.0.2.1", 1000 + number) if number % 2 else Endpoint.of("2001:db8::1", 1000 + number)
        networks = {ip_network((0x0A000000 + number, 32)), ip_network(f"fd00::{number:x}/128")}
        peers[key] = PeerConfig(key, endpoint, frozenset(networks), 25, secrets.token_bytes(32) if number % 3 else None)
    return DeviceConfig(private, 0, 0x574B, peers)


async def configure(backend, wanted):
    await backend.apply(NAME, diff(wanted, await backend.read(NAME)))
    return await backend.read(NAME)


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def ip(*words):
    return run("ip", *words)


def text(key):
    return base64.b64encode(key).decode()


async def test_an_interface_is_created_once_and_then_adopted(backend):
    assert await backend.ensure(NAME, 1380) is True
    assert await backend.ensure(NAME, 1400) is False
    shown = ip("link", "show", NAME)
    assert "mtu 1400" in shown
    assert "UP" in shown.split(">")[0]


async def test_the_host_is_left_as_it_is(backend):
    """Kernel WireGuard would switch off ICMP redirects for all interfaces when one of its own comes up."""
    before = run("sysctl", "-a", "-r", "^net.ipv4.conf.all.")
    assert "net.ipv4.conf.all.send_redirects = 1" in before
    await backend.ensure(NAME, 1420)
    assert "UP" in ip("link", "show", NAME).split(">")[0]
    assert run("sysctl", "-a", "-r", "^net.ipv4.conf.all.") == before
    await backend.ensure(NAME, 1420)
    await backend.remove(NAME)
    assert run("sysctl", "-a", "-r", "^net.ipv4.conf.all.") == before


async def test_a_configured_device_is_as_desired_and_the_next_change_is_empty(backend):
    await backend.ensure(NAME, 1420)
    wanted = config()
    device = await configure(backend, wanted)
    assert device.peers == wanted.peers
    assert (device.fwmark, device.public_key) == (0x574B, public_key_of(wanted.private_key))
    assert device.listen_port
    assert not diff(wanted, device)
    stats = await backend.stats(NAME)
    assert stats == device.stats
    assert stats == {key: PeerStats(peer.endpoint, 0, 0, 0) for key, peer in wanted.peers.items()}


async def test_a_change_applied_twice_is_as_once(backend):
    await backend.ensure(NAME, 1420)
    change = diff(config(), await backend.read(NAME))
    await backend.apply(NAME, change)
    device = await backend.read(NAME)
    await backend.apply(NAME, change)
    assert await backend.read(NAME) == device


async def test_what_was_configured_is_what_wg_shows(backend):
    await backend.ensure(NAME, 1420)
    wanted = replace(config(), listen_port=51820)
    await configure(backend, wanted)
    own, *lines = [line.split("\t") for line in run("wg", "show", NAME, "dump").splitlines()]
    device = await backend.read(NAME)
    assert own == [text(device.private_key), text(public_key_of(wanted.private_key)), "51820", "0x574b"]
    assert {line[0]: (line[1], line[2], set(line[3].split(",")), *line[4:]) for line in lines} == {
        text(key): (
            text(peer.preshared_key) if peer.preshared_key else "(none)",
            str(peer.endpoint),
            set(map(str, peer.allowed_ips)),
            *("0", "0", "0", "25"),
        )
        for key, peer in wanted.peers.items()
    }


async def test_an_adopted_device_keeps_its_configuration(backend):
    await backend.ensure(NAME, 1420)
    device = await configure(backend, config())
    other = type(backend)()
    assert await other.ensure(NAME, 1420) is False
    assert await other.read(NAME) == device


async def test_peers_change_move_and_go(backend):
    await backend.ensure(NAME, 1420)
    wanted = config(4)
    await configure(backend, wanted)
    first, second, third, fourth = wanted.peers
    peers = dict(wanted.peers)
    gone = peers.pop(fourth)
    swapped = peers[first].allowed_ips, peers[second].allowed_ips
    peers[first] = replace(peers[first], allowed_ips=swapped[1] | gone.allowed_ips, keepalive=0)
    peers[second] = replace(peers[second], allowed_ips=swapped[0], endpoint=Endpoint.of("192.0.2.9", 9))
    peers[third] = replace(peers[third], allowed_ips=frozenset(), preshared_key=None)
    wanted = replace(wanted, peers=peers, fwmark=7, private_key=b"\x43" * 32)
    device = await configure(backend, wanted)
    assert device.peers == peers
    assert not diff(wanted, device)


async def test_an_endpoint_that_is_not_desired_stays(backend):
    await backend.ensure(NAME, 1420)
    wanted = config(2)
    await configure(backend, wanted)
    silent = replace(wanted, peers={key: replace(peer, endpoint=None) for key, peer in wanted.peers.items()})
    assert (await configure(backend, silent)).peers == wanted.peers


async def test_a_thousand_peers(backend):
    await backend.ensure(NAME, 1420)
    wanted = config(1000)
    device = await configure(backend, wanted)
    assert device.peers == wanted.peers
    assert not diff(wanted, device)
    assert (await backend.stats(NAME)).keys() == wanted.peers.keys()


async def test_a_peer_with_very_many_networks_and_its_neighbours(backend):
    """More than fit in one message of the kernel's, in both directions."""
    await backend.ensure(NAME, 1420)
    wanted = config(3)
    middle = sorted(wanted.peers)[1]
    networks = frozenset(ip_network((0xFD57 << 112 | number, 128)) for number in range(3000))
    wanted = replace(wanted, peers={**wanted.peers, middle: replace(wanted.peers[middle], allowed_ips=networks)})
    device = await configure(backend, wanted)
    assert device.peers == wanted.peers
    assert (await backend.stats(NAME)).keys() == wanted.peers.keys()


async def test_many_peers_go_and_the_others_stay(backend):
    await backend.ensure(NAME, 1420)
    wanted = config(205)
    await configure(backend, wanted)
    kept = dict(list(wanted.peers.items())[:2])
    assert (await configure(backend, replace(wanted, peers=kept))).peers == kept


async def test_a_peer_that_has_vanished_is_not_made_of_half_its_fields(backend):
    await backend.ensure(NAME, 1420)
    key = next(iter((await configure(backend, config(1))).peers))
    await backend.apply(NAME, DeviceChange(peers=(PeerChange(key, remove=True),)))
    await backend.apply(NAME, DeviceChange(peers=(PeerChange(key, remove=True),)))
    await backend.apply(NAME, DeviceChange(peers=(PeerChange(key, update_only=True, keepalive=5),)))
    assert (await backend.read(NAME)).peers == {}


async def test_the_own_key_among_the_peers_is_left_out(backend):
    await backend.ensure(NAME, 1420)
    wanted = config(2)
    own = public_key_of(wanted.private_key)
    device = await configure(backend, replace(wanted, peers={**wanted.peers, own: PeerConfig(own, None, frozenset())}))
    assert device.peers == wanted.peers


async def test_a_listen_port_that_is_taken_is_an_error(backend):
    await backend.ensure(NAME, 1420)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=NAME):
            await backend.apply(NAME, DeviceChange(listen_port=port))
    await backend.apply(NAME, DeviceChange(listen_port=port))
    assert (await backend.read(NAME)).listen_port == port


async def test_a_removed_interface_is_gone_and_removing_again_is_no_error(backend):
    await backend.ensure(NAME, 1420)
    await backend.remove(NAME)
    await backend.remove(NAME)
    assert NAME not in ip("link", "show")
    assert not (SOCKET_DIR / f"{NAME}.sock").exists()
    with pytest.raises(BackendError):
        await backend.read(NAME)
    assert await backend.ensure(NAME, 1420) is True


@pytest.mark.parametrize("words", [("link", "add", NAME, "type", "veth"), ("tuntap", "add", NAME, "mode", "tun")])
async def test_a_foreign_interface_is_refused_and_left_alone(backend, words):
    ip(*words)
    with pytest.raises(ForeignInterface, match=NAME):
        await backend.ensure(NAME, 1420)
    await backend.remove(NAME)
    assert NAME in ip("link", "show")


async def test_an_interface_of_the_kernel_is_foreign_to_userspace(network_namespace):
    if not await kernel_has_wireguard("wkcprobe"):
        pytest.skip("the kernel has no WireGuard")
    await KernelBackend().ensure(NAME, 1420)
    with pytest.raises(ForeignInterface, match="kind wireguard"):
        await UserspaceBackend().ensure(NAME, 1420)
    await UserspaceBackend().remove(NAME)
    assert await KernelBackend().ensure(NAME, 1420) is False


async def test_the_chosen_backend_adopts_what_exists(backend):
    await backend.ensure(NAME, 1420)
    assert (await choose_backend(NAME)).kind == backend.kind


async def test_a_stale_socket_is_removed(network_namespace):
    if find_binary() is None:
        pytest.skip("no wireguard-go (WIREKUBE_WIREGUARD_GO)")
    userspace = UserspaceBackend()
    await userspace.ensure(NAME, 1420)
    await userspace.remove(NAME)
    path = SOCKET_DIR / f"{NAME}.sock"
    server = await asyncio.start_unix_server(lambda *_: None, path)
    server.close()
    await server.wait_closed()
    assert path.exists()
    assert await userspace.ensure(NAME, 1420) is True
    await userspace.remove(NAME)
    assert not path.exists()


async def test_without_a_program_the_error_says_so(network_namespace, monkeypatch, tmp_path):
    if await kernel_has_wireguard("wkcprobe"):
        pytest.skip("the kernel has WireGuard")
    monkeypatch.setenv("WIREKUBE_WIREGUARD_GO", str(Path("/nonexistent/program")))
    monkeypatch.setattr(helper, "PATIENCE", 0.1)
    with pytest.raises(BackendError, match="no wireguard-go"):
        await (await choose_backend(NAME, tmp_path / "userspace")).ensure(NAME, 1420)
