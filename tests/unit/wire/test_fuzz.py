# SPDX-License-Identifier: Apache-2.0
"""Whatever comes off the network, the parsers answer as a slow reader of the specification would, or refuse."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.wire import relay, stun
from wirekube.wire.endpoint import Endpoint

TXID = b"0123456789ab"
KINDS = st.sampled_from([0x0001, 0x0003, 0x0005, 0x0020, 0x8022, 0x802C, 0x0006, 0xFFFF])
ADDRESS = st.builds(
    lambda family, port, raw: bytes((0, family)) + port + raw,
    st.sampled_from([0, 1, 2, 3]),
    st.binary(min_size=2, max_size=2),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
)
VALUES = st.one_of(ADDRESS, st.binary(max_size=24))
ATTRIBUTES = st.lists(st.tuples(KINDS, VALUES), max_size=6)


def message(attributes: list[tuple[int, bytes]], kind: int = 0x0101) -> bytes:
    body = b"".join(struct.pack("!HH", k, len(v)) + v + bytes(-len(v) % 4) for k, v in attributes)
    return stun.HEADER.pack(kind, len(body), stun.COOKIE, TXID) + body


def slow_address(value: bytes | None, xored: bool) -> Endpoint | None:
    if value is None or len(value) not in (8, 20) or value[1] != {8: 1, 20: 2}[len(value)]:
        return None
    mask = bytes.fromhex("2112a442") + TXID if xored else bytes(16)
    port = struct.unpack("!H", value[2:4])[0] ^ (0x2112 if xored else 0)
    raw = bytes(x ^ mask[i] for i, x in enumerate(value[4:]))
    return Endpoint(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw), port)


@given(ATTRIBUTES, st.sampled_from([0x0001, 0x0101, 0x0111, 0x0011]))
def test_stun_attributes_are_read_as_the_rfcs_say(attributes: list[tuple[int, bytes]], kind: int) -> None:
    first: dict[int, bytes] = {}
    for key, value in attributes:
        first.setdefault(key, value)
    found = stun.decode(message(attributes, kind))
    change = int.from_bytes(first.get(3, b""), "big") if len(first.get(3, b"")) == 4 else 0
    assert found == stun.Message(
        kind,
        TXID,
        slow_address(first.get(0x20), True) or slow_address(first.get(1), False),
        slow_address(first.get(0x802C), False) or slow_address(first.get(5), False),
        bool(change & 4),
        bool(change & 2),
    )


@given(ATTRIBUTES, st.data())
def test_stun_that_was_cut_or_lengthened_or_whose_bits_flipped_is_refused_or_read(
    attributes: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    whole = message(attributes)
    assert stun.decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert stun.decode(whole + data.draw(st.binary(min_size=1, max_size=9))) is None
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    found = stun.decode(bytes(flipped))
    assert found is None or isinstance(found, stun.Message)
    if 32 <= bit < 64:
        assert found is None, "the cookie"


def slow_frames(stream: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """Return all whole frames of a stream, and whether it then breaks a limit."""
    frames = []
    while len(stream) >= 5:
        length, kind = int.from_bytes(stream[:4], "big"), stream[4]
        if not 1 <= length <= relay.MAX_LENGTH:
            return frames, True
        if len(stream) < 4 + length:
            break
        low, high = relay._SIZES.get(kind, (0, relay.MAX_LENGTH))
        if not low <= length - 1 <= high:
            return frames, True
        frames.append((kind, stream[5 : 4 + length]))
        stream = stream[4 + length :]
    return frames, False


FRAMES = st.one_of(
    st.builds(
        lambda kind, body: struct.pack("!IB", 1 + len(body), kind) + body, st.integers(0, 255), st.binary(max_size=80)
    ),
    st.builds(lambda body: relay.frame(relay.SIGNAL, bytes(32) + body), st.binary(max_size=200)),
    st.builds(lambda train: relay.data_frame(bytes(32), 0, train), st.binary(max_size=3000)),
    st.sampled_from([relay.frame(relay.PING, bytes(8)), relay.text_frame(relay.CLOSE, "bye")]),
    st.binary(max_size=12),
)


@settings(max_examples=60)
@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_a_relay_stream_is_cut_into_frames_as_a_slow_reader_would(parts: list[bytes], steps: list[int]) -> None:
    stream = b"".join(parts)
    expected, breaks = slow_frames(stream)
    reader, found, position, broken = relay.Reader(1024), [], 0, False
    while position < len(stream) and not broken:
        space = reader.space()
        size = min(steps[position % len(steps)], len(space), len(stream) - position)
        assert size > 0
        space[:size] = stream[position : position + size]
        reader.filled(size)
        position += size
        try:
            found += [(kind, bytes(body)) for kind, body in reader.frames()]
        except relay.ProtocolError:
            broken = True
    # A stream that ends within a frame breaks no limit yet; one that breaks one does so wherever it was cut.
    assert broken == breaks
    assert found[: len(expected)] == expected if not broken else found == expected[: len(found)]


@given(st.binary(max_size=80))
def test_no_body_makes_a_parser_of_the_relay_raise_anything_else(body: bytes) -> None:
    for kind in range(256):
        try:
            relay.check(kind, len(body))
        except relay.ProtocolError:
            continue
        if kind == relay.HELLO:
            assert relay.parse_hello(body).body() == body
        elif kind == relay.CHALLENGE:
            assert relay.parse_challenge(body).body() == body
        elif kind == relay.DATA:
            data = relay.parse_data(memoryview(body))
            assert relay.data_frame(data.key, data.segment, data.train)[5:] == body
        elif kind in (relay.CLOSE, relay.ERROR):
            assert relay.parse_text(body).isprintable()


@given(st.text(max_size=300))
def test_any_text_makes_a_frame(text: str) -> None:
    made = relay.text_frame(relay.ERROR, text)
    assert len(made) <= relay.HEADER.size + relay.MAX_TEXT
    assert relay.parse_text(made[5:]).isprintable()


@pytest.mark.parametrize("text", ["\udcff", "broken name \udc80"])
def test_a_text_that_has_no_utf8_form_makes_a_frame(text: str) -> None:
    """Names of files that are not UTF-8 look so, and get into messages of errors."""
    assert relay.parse_text(relay.text_frame(relay.ERROR, text)[5:])


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_no_guess_is_a_proof(key: bytes, nonce: bytes, guess: bytes) -> None:
    handshake = relay.RelayHandshake(b"\x11" * 32, bytes(16))
    handshake.challenge(relay.Hello(relay.VERSION, key, nonce))
    with pytest.raises(relay.HandshakeError):
        handshake.welcome(guess)
