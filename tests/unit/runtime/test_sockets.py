# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from wirekube.runtime.sockets import SHORT, min_rtt, unpaced_if_short


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours


def control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def test_a_short_connection_is_not_paced(connection: socket.socket) -> None:
    rtt = min_rtt(connection)
    assert rtt is not None
    assert rtt < 1_000_000
    before = control(connection)
    unpaced_if_short(connection)
    assert control(connection) == (b"reno" if rtt < SHORT else before)


def test_a_socket_without_a_round_trip_stays_as_it_is() -> None:
    with socket.socket() as alone, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert min_rtt(alone) is None
        before = control(alone)
        unpaced_if_short(alone)
        assert control(alone) == before
        unpaced_if_short(other)
