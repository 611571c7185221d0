# SPDX-License-Identifier: Apache-2.0
"""A real API server for the whole session, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wirekube.lab.controlplane import ControlPlane, find_or_build

ROOT = Path(__file__).resolve().parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    api, client = free_ports(2)
    folder = tmp_path_factory.mktemp("controlplane")
    plane = ControlPlane(folder, find_or_build(), port=api, etcd_port=_pair(client))
    plane.start()
    yield plane
    plane.stop()


def _pair(port: int) -> int:
    """Return a port whose successor is free too: etcd takes both."""
    while True:
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            port += 2
