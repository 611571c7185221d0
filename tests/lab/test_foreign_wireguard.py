# SPDX-License-Identifier: Apache-2.0
"""A person's own WireGuard is not ours, whatever name the Mesh gives: it is refused, and clean-up leaves it alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from wirekube.agent.dataplane import DataPlane
from wirekube.agent.routing.host import HostNetwork
from wirekube.agent.wireguard.backend import ForeignInterface
from wirekube.agent.wireguard.device import DeviceChange
from wirekube.agent.wireguard.userspace import UserspaceBackend
from wirekube.lab.controlplane.binaries import wireguard_go

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
NAME = f"wkf{os.getpid() % 100000}"


@pytest.fixture
def namespace(network_namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace of the test's own, and the wireguard-go that was built."""
    monkeypatch.setenv("WIREKUBE_WIREGUARD_GO", str(wireguard_go()))


def shown() -> str:
    return subprocess.run(["ip", "link", "show", NAME], check=True, capture_output=True, text=True).stdout


async def test_a_vpn_of_that_name_is_refused_and_left_alone(namespace: None, tmp_path: Path) -> None:
    backend = UserspaceBackend()
    await backend.ensure(NAME, 1420)
    try:
        await backend.apply(NAME, DeviceChange(private_key=b"\x42" * 32, listen_port=40123))
        before = await backend.read(NAME)
        plane = DataPlane(HostNetwork(None, tmp_path / "sysctls.json"))
        with pytest.raises(ForeignInterface, match=NAME):
            await plane.open(NAME, 1380)
        await plane.close(NAME)
        assert await backend.read(NAME) == before
        assert "mtu 1420" in shown()
    finally:
        await backend.remove(NAME)


async def test_our_own_is_adopted_and_removed(namespace: None, tmp_path: Path) -> None:
    backend = UserspaceBackend()
    await backend.ensure(NAME, 1420)
    try:
        await backend.apply(NAME, DeviceChange(private_key=b"\x42" * 32, fwmark=0x574B))
        plane = DataPlane(HostNetwork(None, tmp_path / "sysctls.json"))
        adopted = await plane.open(NAME, 1420)
        assert adopted.private_key is not None
        await plane.close()
        assert not await backend.answers(NAME)
    finally:
        await backend.remove(NAME)
