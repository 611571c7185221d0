# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.wire import relay as wire

NONCES = (bytes(16), bytes(range(16)))


def run_handshake(expected: bytes | None) -> tuple[wire.ClientHandshake, wire.RelayHandshake, wire.Challenge, bytes]:
    private = os.urandom(32)
    relay = wire.RelayHandshake(private, NONCES[0])
    client = wire.ClientHandshake(os.urandom(32), NONCES[1], expected)
    return client, relay, relay.challenge(client.hello), wire.public_key(private)


def test_both_sides_prove_their_keys() -> None:
    client, relay, challenge, relay_key = run_handshake(None)
    key, welcome = relay.welcome(client.proof(challenge))
    client.accept(welcome)
    assert key == client.hello.key
    assert client.seen == relay_key


def test_a_proof_by_another_key_is_refused() -> None:
    client, relay, challenge, _ = run_handshake(None)
    thief = wire.ClientHandshake(os.urandom(32), client.hello.nonce, None)
    thief.hello = client.hello
    with pytest.raises(wire.HandshakeError, match="wrong proof"):
        relay.welcome(thief.proof(challenge))


def test_a_recorded_proof_is_refused_by_the_next_challenge() -> None:
    private, client = os.urandom(32), wire.ClientHandshake(os.urandom(32), NONCES[1], None)
    first, second = (wire.RelayHandshake(private, nonce) for nonce in NONCES)
    proof = client.proof(first.challenge(client.hello))
    second.challenge(client.hello)
    with pytest.raises(wire.HandshakeError):
        second.welcome(proof)


def test_an_unexpected_relay_key_is_refused() -> None:
    client, _, challenge, _ = run_handshake(os.urandom(32))
    with pytest.raises(wire.HandshakeError, match="another key"):
        client.proof(challenge)


def test_a_relay_without_the_private_key_is_refused() -> None:
    client, relay, challenge, _ = run_handshake(None)
    proof = client.proof(challenge)
    _, welcome = relay.welcome(proof)
    for false in (proof, bytes(32), welcome[:-1] + bytes([welcome[-1] ^ 1])):
        with pytest.raises(wire.HandshakeError):
            client.accept(false)


def test_a_low_order_key_a_second_hello_and_another_version_are_refused() -> None:
    relay = wire.RelayHandshake(os.urandom(32), NONCES[0])
    with pytest.raises(wire.HandshakeError, match="version 9"):
        relay.challenge(wire.Hello(9, bytes(32), NONCES[1]))
    relay.challenge(wire.Hello(wire.VERSION, bytes(32), NONCES[1]))
    with pytest.raises(wire.HandshakeError, match="unusable"):
        relay.welcome(bytes(32))
    with pytest.raises(wire.HandshakeError, match="second"):
        relay.challenge(wire.Hello(wire.VERSION, bytes(32), NONCES[1]))


def test_a_process_is_told_from_another_of_the_same_relay_and_a_relay_without_names_is_one() -> None:
    key, other = os.urandom(32), os.urandom(32)
    one, two = (wire.process_name(os.urandom(5)) for _ in range(2))
    assert len(one) == wire.PROCESS

    def process(key: bytes, name: bytes) -> bytes:
        return wire.parse_challenge(key + name + os.urandom(8)).process

    assert process(key, one) == process(key, one)
    assert len({process(key, one), process(key, two), process(other, one)}) == 3
    assert process(key, bytes(8)) == process(key, b"8 random") != process(other, b"8 random")


def test_bytes_on_the_wire() -> None:
    key = bytes(range(32))
    assert wire.data_frame(key, 1420, b"xy") == b"\x00\x00\x00\x25\x05" + key + b"\x05\x8cxy"
    buffer = bytearray(41)
    buffer[39:] = b"xy"
    wire.put_data_header(buffer, 0, key, 1420, 2)
    assert bytes(buffer) == wire.data_frame(key, 1420, b"xy")
    assert wire.frame(wire.PING, b"12345678") == b"\x00\x00\x00\x09\x0b12345678"


@given(st.lists(st.tuples(st.sampled_from([wire.PING, wire.WATCH, wire.SIGNAL, wire.DATA]), st.binary(max_size=99))))
def test_frames_come_back_however_the_stream_is_cut(sent: list[tuple[int, bytes]]) -> None:
    sizes = {wire.PING: 8, wire.WATCH: 32}
    frames = [(kind, (body + bytes(34))[: sizes.get(kind, len(body) + 34)]) for kind, body in sent]
    stream = b"".join(wire.frame(kind, body) for kind, body in frames)
    reader, got = wire.Reader(read=7), []
    while stream:
        space = reader.space()
        size = min(len(space), len(stream))
        space[:size], stream = stream[:size], stream[size:]
        reader.filled(size)
        got += [(kind, bytes(body)) for kind, body in reader.frames()]
    assert got == frames


@given(st.binary(max_size=300))
def test_garbage_gives_frames_or_a_protocol_error(garbage: bytes) -> None:
    reader = wire.Reader()
    reader.space()[: len(garbage)] = garbage
    reader.filled(len(garbage))
    try:
        for kind, body in reader.frames():
            if kind in {wire.CLOSE, wire.ERROR}:
                assert wire.parse_text(bytes(body)).isprintable()
            if kind == wire.DATA:
                assert len(wire.parse_data(body).key) == 32
    except wire.ProtocolError:
        pass


def test_a_body_of_the_wrong_size_is_refused() -> None:
    for kind, size in ((wire.HELLO, 48), (wire.DATA, 33), (wire.SIGNAL, 1233), (wire.PING, 7), (wire.ERROR, 201)):
        with pytest.raises(wire.ProtocolError):
            wire.frame(kind, bytes(size))
