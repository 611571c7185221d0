# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.wire import stun
from wirekube.wire.endpoint import Endpoint

TXID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
ENDPOINTS = st.builds(
    Endpoint,
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 65535),
)


def test_rfc5769_ipv4_response_is_read() -> None:
    """The sample of RFC 5769 section 2.2, up to XOR-MAPPED-ADDRESS."""
    software = struct.pack("!HH", 0x8022, 11) + b"test vector "
    mapped = bytes.fromhex("002000080001a147e112a643")
    body = software + mapped
    message = stun.decode(stun.HEADER.pack(0x0101, len(body), stun.COOKIE, TXID) + body)
    assert message is not None
    assert message.mapped == Endpoint.parse("192.0.2.1:32853")


@given(ENDPOINTS, st.binary(min_size=12, max_size=12))
def test_what_a_server_says_is_what_a_client_reads(source: Endpoint, txid: bytes) -> None:
    message = stun.decode(stun.encode_success(txid, source))
    assert message is not None
    assert (message.kind, message.txid, message.mapped) == (stun.BINDING_SUCCESS, txid, source)


@pytest.mark.parametrize(("ip", "port"), [(False, False), (True, False), (False, True), (True, True)])
def test_change_request_survives(ip: bool, port: bool) -> None:
    message = stun.decode(stun.encode_request(TXID, change_ip=ip, change_port=port))
    assert message is not None
    assert (message.kind, message.change_ip, message.change_port) == (stun.BINDING_REQUEST, ip, port)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_parsed_but_never_raises(data: bytes) -> None:
    stun.decode(data)
    stun.decode(stun.HEADER.pack(0x0101, len(data) & 0xFFFC, stun.COOKIE, TXID) + data[: len(data) & ~3])


def test_the_first_of_a_repeated_attribute_counts() -> None:
    first, second = (stun.encode_success(TXID, Endpoint.of("203.0.113.9", p))[20:] for p in (1, 2))
    message = stun.decode(stun.HEADER.pack(0x0101, 24, stun.COOKIE, TXID) + first + second)
    assert message is not None
    assert message.mapped == Endpoint.of("203.0.113.9", 1)


@pytest.mark.parametrize("cut", range(20))
def test_short_datagrams_are_not_stun(cut: int) -> None:
    assert stun.decode(stun.encode_request(TXID)[:cut]) is None
