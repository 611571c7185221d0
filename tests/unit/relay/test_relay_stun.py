# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.relay.counters import Counters
from wirekube.relay.stun import StunSocket, respond
from wirekube.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from .conftest import MakeRelay

HEAD = bytes.fromhex("0001 0000 2112a442")
TRANSACTION = bytes(range(12))
SOURCE = Endpoint.parse("192.0.2.1:32853")


def test_xor_mapped_address_like_rfc_5769() -> None:
    transaction = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    v4 = respond(HEAD + transaction, SOURCE)
    assert v4 == bytes.fromhex("0101000c2112a442b7e7a701bc34d686fa87dfae 00200008 0001a147 e112a643")
    v6 = respond(HEAD + transaction, Endpoint.parse("[2001:db8:1234:5678:11:2233:4455:6677]:32853"))
    assert v6 is not None
    assert v6[20:] == bytes.fromhex("00200014 0002a147 0113a9faa5d3f179bc25f4b5bed2b9d9")


def test_an_unknown_required_attribute_is_answered_by_420() -> None:
    request = bytes.fromhex("0001 0008 2112a442") + TRANSACTION + bytes.fromhex("0003 0004 00000006")
    answer = respond(request, SOURCE)
    assert answer == bytes.fromhex("01110010 2112a442") + TRANSACTION + bytes.fromhex(
        "00090004 00000414 000a0002 00030000"
    )


@given(st.binary(max_size=200), st.booleans())
def test_total_and_small(garbage: bytes, plausible: bool) -> None:
    if plausible:
        garbage = b"\x00\x01" + (len(garbage) & ~3).to_bytes(2, "big") + HEAD[4:] + TRANSACTION + garbage
        garbage = garbage[: len(garbage) & ~3]
    answer = respond(garbage, SOURCE)
    assert answer is None or len(answer) <= 2 * len(garbage)


@pytest.mark.parametrize("request_", [b"", HEAD, b"\x01\x01" + HEAD[2:] + TRANSACTION, HEAD[:4] + bytes(16)])
def test_others_get_no_answer(request_: bytes) -> None:
    assert respond(request_, SOURCE) is None


def test_over_the_servers_socket_from_the_address_that_was_asked(make_relay: MakeRelay) -> None:
    stun = make_relay().server.stun_address
    assert stun is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(stun.sockaddr())
        client.send(b"noise")
        client.send(HEAD + TRANSACTION)
        assert client.recv(100) == respond(HEAD + TRANSACTION, Endpoint.of(*client.getsockname()))


def test_ipv6_and_another_loopback_address() -> None:
    for bind, ask, family in (("0.0.0.0:0", "127.0.0.7", socket.AF_INET), ("[::]:0", "::1", socket.AF_INET6)):
        responder = StunSocket(Endpoint.parse(bind), Counters())
        with responder.sock, socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect((ask, responder.address.port))  # so that an answer from another address would be lost
            client.send(HEAD + TRANSACTION)
            responder.drain()
            assert client.recv(100) == respond(HEAD + TRANSACTION, Endpoint.of(*client.getsockname()[:2]))
