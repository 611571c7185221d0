# SPDX-License-Identifier: Apache-2.0
"""Probes and sealed signals: total over garbage, and nothing forged, reflected or played again is taken."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.paths import seal
from wirekube.agent.paths.keys import PairKeys
from wirekube.agent.paths.probe import (
    MAGIC,
    PROBE_BYTES,
    TXID_BYTES,
    Ping,
    Pong,
    decode,
    encode_ping,
    encode_pong,
    parts_of,
    txid_of,
)
from wirekube.agent.paths.replay import REMEMBERED_SESSIONS, Replays
from wirekube.agent.paths.seal import MAX_ENDPOINTS, CallMeMaybe, Known, Sealer, Signal, Unheard
from wirekube.agent.steering.plan import PROBE_MAGIC
from wirekube.wire.endpoint import Endpoint

A, B, C = (PairKeys(bytes([number]) * 32) for number in (1, 2, 3))
EVERYBODY = {A.public, B.public, C.public}
TXIDS = st.binary(min_size=TXID_BYTES, max_size=TXID_BYTES)
TXID = txid_of(b"session1", 7)
ENDPOINTS = st.builds(
    Endpoint.of, st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 65535)
)
SIGNALS = st.one_of(
    st.builds(Known, st.booleans()),
    st.just(Unheard()),
    st.builds(CallMeMaybe, st.lists(ENDPOINTS, max_size=MAX_ENDPOINTS).map(tuple), st.booleans()),
)
LOW_ORDER = bytes(32)  # RFC 7748 section 6.1: everybody has the same secret with it


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


def ping(mapped: bool = False) -> bytes:
    made = encode_ping(A, B.public, TXID, mapped=mapped)
    assert made is not None
    return made


def sealers() -> tuple[Sealer, Sealer]:
    return Sealer(A, b"session1"), Sealer(B, b"session2")


def sealed(sender: Sealer, signal: Signal, to: PairKeys = B) -> bytes:
    made = sender.seal(to.public, signal)
    assert made is not None
    return made


# Probes.


@given(TXIDS, st.booleans())
def test_a_ping_arrives_as_it_was_sent(txid: bytes, mapped: bool) -> None:
    data = encode_ping(A, B.public, txid, mapped=mapped)
    assert data is not None
    assert len(data) == PROBE_BYTES
    assert decode(data, B, {A.public}) == Ping(A.public, txid, mapped)


@given(TXIDS, st.booleans(), ENDPOINTS)
def test_a_pong_arrives_as_it_was_sent_and_is_no_longer_than_a_ping(txid: bytes, mapped: bool, seen: Endpoint) -> None:
    data = encode_pong(A, B.public, txid, mapped=mapped, seen=seen)
    assert data is not None
    assert len(data) == PROBE_BYTES
    assert decode(data, B, {A.public}) == Pong(A.public, txid, mapped, seen)


def test_the_steering_table_looks_for_the_same_magic() -> None:
    assert PROBE_MAGIC.to_bytes(4, "big") == MAGIC
    assert MAGIC[0] > 4, "a WireGuard message starts with 1, 2, 3 or 4"


@given(st.binary(max_size=2 * PROBE_BYTES))
def test_garbage_is_no_probe(data: bytes) -> None:
    assert decode(data, B, EVERYBODY) is None
    assert decode(MAGIC + data[4:], B, EVERYBODY) is None
    assert decode((MAGIC + b"\1\0\0\0" + A.public + data).ljust(PROBE_BYTES, b"\0")[:PROBE_BYTES], B, EVERYBODY) is None


@given(st.integers(0, PROBE_BYTES * 8 - 1), st.booleans())
def test_no_bit_can_be_changed(bit: int, pong: bool) -> None:
    data = encode_pong(A, B.public, TXID, mapped=False, seen=Endpoint.of("10.0.0.1", 5)) if pong else ping()
    assert data is not None
    assert decode(flip(data, bit), B, EVERYBODY) is None


@pytest.mark.parametrize("size", range(PROBE_BYTES))
def test_a_probe_that_was_cut_is_none(size: int) -> None:
    assert decode(ping()[:size], B, EVERYBODY) is None
    assert decode(ping() + bytes(size + 1), B, EVERYBODY) is None


def test_a_probe_is_for_its_receiver_alone() -> None:
    assert decode(ping(), C, EVERYBODY) is None
    assert decode(ping(), A, EVERYBODY) is None, "sent back to its sender it proves nothing"
    assert decode(ping(), B, {C.public}) is None, "its sender is no peer"


def test_a_key_of_low_order_neither_sends_nor_receives() -> None:
    assert encode_ping(A, LOW_ORDER, TXID, mapped=False) is None
    forged = ping()[:8] + LOW_ORDER + ping()[40:]
    assert decode(forged, B, {LOW_ORDER}) is None
    assert Sealer(A, b"session1").seal(LOW_ORDER, Known()) is None
    assert Sealer(A, b"session1").open(LOW_ORDER, bytes(100)) is None


def test_a_transaction_id_says_session_and_counter() -> None:
    data = ping()
    assert data[40:56] == b"session1" + bytes(7) + b"\x07" == TXID, "as probe.py documents it"
    assert parts_of(TXID) == (b"session1", 7)


# Replays.


@given(
    st.integers(1, 70),
    st.lists(st.tuples(st.sampled_from([b"A", b"B"]), st.sampled_from([b"s", b"t"]), st.integers(1, 150))),
)
def test_each_counter_is_taken_once_within_the_window(window: int, heard: list[tuple[bytes, bytes, int]]) -> None:
    replays, taken = Replays(window), set[tuple[bytes, bytes, int]]()
    for each in heard:
        top = max((counter for *of, counter in taken if tuple(of) == each[:2]), default=0)
        expected = each not in taken and each[2] > top - window
        assert replays.is_new(*each) is expected
        if expected:
            taken.add(each)


# Signals.


@given(st.lists(SIGNALS, min_size=1, max_size=5))
def test_signals_arrive_as_they_were_sent(signals: list[Signal]) -> None:
    a, b = sealers()
    assert [b.open(A.public, sealed(a, each)) for each in signals] == signals


def test_more_than_eight_endpoints_are_cut() -> None:
    a, b = sealers()
    many = tuple(Endpoint.of(f"10.0.0.{number}", 1) for number in range(20))
    assert b.open(A.public, sealed(a, CallMeMaybe(many))) == CallMeMaybe(many[:MAX_ENDPOINTS])


@given(st.binary(max_size=300))
def test_garbage_is_no_signal(data: bytes) -> None:
    _, b = sealers()
    assert b.open(A.public, data) is None
    assert b.open(A.public, b"\1session1" + data) is None


@given(st.binary(max_size=200))
def test_a_body_of_another_form_is_none_though_it_is_authentic(body: bytes) -> None:
    decoded = seal._decode(body)
    assert decoded is None or seal._encode(decoded)[:1] == body[:1]


@given(st.integers(0, 2000))
def test_no_bit_of_a_signal_can_be_changed(bit: int) -> None:
    a, b = sealers()
    data = sealed(a, CallMeMaybe((Endpoint.of("10.0.0.1", 5),), answer=True))
    assert b.open(A.public, flip(data, bit)) is None
    assert b.open(A.public, data) is not None, "what was refused must not have used up the counter"


def test_a_signal_is_for_its_receiver_alone() -> None:
    a, b = sealers()
    data = sealed(a, Known())
    assert Sealer(C, b"session3").open(A.public, data) is None
    assert a.open(B.public, data) is None, "sent back to its sender"
    assert b.open(C.public, data) is None, "said to be somebody else's"


def test_nothing_is_taken_twice_nor_out_of_order() -> None:
    a, b = sealers()
    first, second, third = (sealed(a, Known()) for _ in range(3))
    assert b.open(A.public, second) is not None
    assert b.open(A.public, second) is None
    assert b.open(A.public, first) is None
    assert b.open(A.public, third) is not None


def test_what_an_old_session_said_is_not_taken_again() -> None:
    old, b = sealers()
    recorded = [sealed(old, Known()) for _ in range(3)]
    assert all(b.open(A.public, each) for each in recorded)
    new = Sealer(A, b"session9")
    assert b.open(A.public, sealed(new, Known())) is not None
    assert [b.open(A.public, each) for each in recorded] == [None] * 3


def test_a_recording_does_not_lock_the_living_out() -> None:
    """After our restart an old message of the peer is new to us, once; the peer's own session must go on."""
    old, _ = sealers()
    recorded = sealed(old, Known())
    a, b = Sealer(A, b"session9"), Sealer(B, b"restart!")
    assert b.open(A.public, sealed(a, Known())) is not None
    b.open(A.public, recorded)
    assert b.open(A.public, sealed(a, Known())) is not None
    assert b.open(A.public, recorded) is None


def test_sessions_are_remembered_for_long_but_not_for_ever() -> None:
    _, b = sealers()
    recorded = []
    for number in range(REMEMBERED_SESSIONS):
        recorded.append(sealed(Sealer(A, number.to_bytes(8, "big")), Known()))
        assert b.open(A.public, recorded[-1]) is not None
    assert [b.open(A.public, each) for each in recorded] == [None] * REMEMBERED_SESSIONS
    b.open(A.public, sealed(Sealer(A, b"another1"), Known()))
    assert b._heard.sessions(A.public) == REMEMBERED_SESSIONS


def test_no_nonce_serves_a_key_twice_even_when_a_peer_leaves_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[bytes, bytes]] = []

    class Recorded:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, ChaCha20Poly1305(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            used.append((self._key, nonce))
            return self._cipher.encrypt(nonce, data, associated)

        def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            return self._cipher.decrypt(nonce, data, associated)

    monkeypatch.setattr(seal, "ChaCha20Poly1305", Recorded)
    a, b = sealers()
    for _ in range(3):
        assert b.open(A.public, sealed(a, Known())) is not None
        sealed(a, Known(), C)
        a.forget(B.public)
        b.forget(A.public)
    assert len(used) == len(set(used)) == 6
