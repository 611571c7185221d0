# SPDX-License-Identifier: Apache-2.0
"""The UAPI codec: exact lines, and a parser that answers any input with a value or UapiError."""

import errno
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.wireguard.device import DeviceChange, PeerChange, PeerStats, public_key_of
from wirekube.agent.wireguard.uapi import UapiError, check, decode_get, decode_stats, encode_set
from wirekube.wire.endpoint import Endpoint

ONE, TWO = b"\1" * 32, b"\2" * 32
KEYS = (
    *("private_key", "public_key", "listen_port", "fwmark", "endpoint", "allowed_ip", "rx_bytes", "preshared_key"),
    *("last_handshake_time_sec", "errno", "unknown", ""),
)
VALUES = (
    "0",
    "1",
    "-22",
    "01" * 32,
    "00" * 32,
    "192.0.2.1:7",
    "[2001:db8::1]:7",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "²",
    "9" * 5000,
)


def test_set_request_has_exactly_these_lines():
    change = DeviceChange(
        b"\xaa" * 32,
        51820,
        0x574B,
        (
            PeerChange(ONE, endpoint=Endpoint.parse("[2001:db8::1]:7"), keepalive=25, preshared_key=TWO),
            PeerChange(
                TWO,
                update_only=True,
                replace_allowed_ips=True,
                allowed_ips=frozenset((ip_network("fd00::/64"), ip_network("10.0.0.0/8"))),
            ),
            PeerChange(ONE, remove=True),
        ),
    )
    assert encode_set(change).decode().split("\n") == [
        "set=1",
        "private_key=" + "aa" * 32,
        "listen_port=51820",
        "fwmark=22347",
        "public_key=" + "01" * 32,
        "preshared_key=" + "02" * 32,
        "endpoint=[2001:db8::1]:7",
        "persistent_keepalive_interval=25",
        "public_key=" + "02" * 32,
        "update_only=true",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=fd00::/64",
        "public_key=" + "01" * 32,
        "remove=true",
        "",
        "",
    ]


def test_get_answer():
    text = (
        f"private_key={'42' * 32}\nlisten_port=7\nfwmark=9\npublic_key={'01' * 32}\npreshared_key={'00' * 32}\n"
        "endpoint=192.0.2.1:5\nlast_handshake_time_sec=10\nlast_handshake_time_nsec=500000000\ntx_bytes=3\nrx_bytes=4\n"
        "persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/64\nprotocol_version=1\nerrno=0\n\n"
    )
    device = decode_get(text.encode())
    assert (device.private_key, device.public_key) == (b"\x42" * 32, public_key_of(b"\x42" * 32))
    assert (device.listen_port, device.fwmark) == (7, 9)
    peer = device.peers[ONE]
    assert peer.allowed_ips == {ip_network("10.0.0.0/8"), ip_network("fd00::/64")}
    assert (peer.keepalive, peer.preshared_key) == (25, None)
    assert device.stats[ONE] == PeerStats(Endpoint.parse("192.0.2.1:5"), 10.5, 4, 3)
    assert decode_stats(text.encode()) == device.stats


def test_an_error_number_is_raised_without_its_sign():
    with pytest.raises(UapiError) as caught:
        check(b"errno=-22\n\n")
    assert caught.value.errno == errno.EINVAL


def test_a_malformed_key_is_not_shown():
    with pytest.raises(UapiError) as caught:
        decode_get(b"private_key=5ec2e7\nerrno=0\n\n")
    assert "5ec2e7" not in str(caught.value)
    assert caught.value.__suppress_context__


def taken(raw):
    """Whether both decoders are total, and the quick one says what the whole one says."""
    try:
        device = decode_get(raw)
    except UapiError:
        device = None
    try:
        stats = decode_stats(raw)
    except UapiError:
        return device is None
    return device is None or device.stats == stats


@given(st.binary(max_size=300))
def test_any_bytes_give_a_device_or_the_one_error(raw):
    assert taken(raw)
    assert taken(raw + b"\nerrno=0\n\n")


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=20)), max_size=12))
def test_any_lines_give_a_device_or_the_one_error(lines):
    assert taken("".join(f"{key}={value}\n" for key, value in lines).encode() + b"errno=0\n\n")


networks = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda bits: ip_network(f"{ip}/{bits}", strict=False))
)
changes = st.builds(
    PeerChange,
    st.binary(min_size=32, max_size=32),
    endpoint=st.none() | st.builds(Endpoint.of, st.ip_addresses().map(str), st.integers(0, 65535)),
    keepalive=st.none() | st.integers(0, 65535),
    preshared_key=st.none() | st.binary(min_size=32, max_size=32),
    allowed_ips=st.frozensets(networks, max_size=5),
)


@given(st.lists(changes, max_size=5, unique_by=lambda c: c.public_key), st.binary(min_size=32, max_size=32))
def test_what_was_set_is_what_is_read(peers, private_key):
    request = encode_set(DeviceChange(private_key, 1, 2, tuple(peers)))
    device = decode_get(request.removeprefix(b"set=1\n")[:-1] + b"errno=0\n\n")
    assert device.private_key == private_key
    assert device.peers.keys() == {peer.public_key for peer in peers}
    for change in peers:
        peer = device.peers[change.public_key]
        assert (peer.endpoint, peer.allowed_ips) == (change.endpoint, change.allowed_ips)
        assert peer.keepalive == (change.keepalive or 0)
        assert (peer.preshared_key or bytes(32)) == (change.preshared_key or bytes(32))
