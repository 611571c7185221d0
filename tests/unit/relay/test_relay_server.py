# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from wirekube.relay.connection import fitting
from wirekube.relay.server import Limits
from wirekube.relay.sessions import Admission, Registry
from wirekube.wire import relay as wire

if TYPE_CHECKING:
    from .conftest import HandClient, MakeRelay


def watch(watcher: HandClient, key: bytes) -> int:
    watcher.send(wire.WATCH, key)
    kind, body = watcher.receive()
    assert body == key
    return kind


def test_data_and_signals_arrive_with_the_senders_key(make_relay: MakeRelay) -> None:
    relay = make_relay()
    a, b, c = (relay.client().register() for _ in range(3))
    frames = [wire.data_frame(d.key, 0, bytes([i]) * 1000) for i in range(50) for d in (b, b, c)]
    a.sock.sendall(b"".join(frames) + wire.frame(wire.SIGNAL, b.key + b"hello"))
    for i in range(50):
        for receiver in (b, b, c):
            assert receiver.expect(wire.DATA) == a.key + b"\0\0" + bytes([i]) * 1000
    assert b.expect(wire.SIGNAL) == a.key + b"hello"


def test_a_frame_that_comes_in_pieces(make_relay: MakeRelay) -> None:
    relay = make_relay()
    a, b = relay.client().register(), relay.client().register()
    train = os.urandom(65535)
    message = wire.data_frame(b.key, 1452, train)
    for start in range(0, len(message), 10000):
        a.sock.sendall(message[start : start + 10000])
    a.send(wire.PING, bytes(8))
    assert b.expect(wire.DATA) == a.key + (1452).to_bytes(2, "big") + train
    a.expect(wire.PONG)


def test_presence_is_told_at_once_and_at_each_change(make_relay: MakeRelay) -> None:
    relay = make_relay()
    a, b = relay.client().register(), relay.client()
    assert watch(a, b.key) == wire.GONE
    b.register()
    assert a.expect(wire.PRESENT) == b.key
    assert watch(a, b.key) == wire.PRESENT
    b.close()
    assert a.expect(wire.GONE) == b.key
    a.send(wire.UNWATCH, b.key)
    b.connect()
    b.register()
    a.send(wire.PING, b"12345678")
    assert a.expect(wire.PONG) == b"12345678"


def test_a_wrong_proof_is_refused_and_leaves_the_session_of_that_key(make_relay: MakeRelay) -> None:
    relay = make_relay()
    owner, thief = relay.client().register(), relay.client()
    thief.send(wire.HELLO, wire.Hello(wire.VERSION, owner.key, bytes(16)).body())
    thief.expect(wire.CHALLENGE)
    thief.send(wire.PROOF, bytes(32))
    assert thief.ended() == "wrong proof"
    owner.send(wire.PING, bytes(8))
    owner.expect(wire.PONG)
    assert relay.server.counters.failed == 1


def test_a_second_session_with_a_valid_proof_replaces_the_first(make_relay: MakeRelay) -> None:
    relay = make_relay()
    first, second, other = relay.client().register(), relay.client(), relay.client().register()
    assert watch(other, first.key) == wire.PRESENT
    second.private, second.key = first.private, first.key
    second.register()
    assert "replaced" in first.ended()
    assert [other.receive()[0] for _ in range(2)] == [wire.GONE, wire.PRESENT]
    other.send(wire.SIGNAL, second.key + b"x")
    assert second.expect(wire.SIGNAL) == other.key + b"x"


def test_a_process_shows_its_name_before_the_proof_and_who_leaves_then_disturbs_nothing(make_relay: MakeRelay) -> None:
    relay, other = make_relay(), make_relay()
    holder = relay.client().register()
    processes = []
    for world in (relay, relay, other):
        looking = world.client()
        looking.send(wire.HELLO, wire.Hello(wire.VERSION, holder.key, os.urandom(16)).body())
        challenge = wire.parse_challenge(looking.expect(wire.CHALLENGE))
        processes.append(challenge.nonce[: wire.PROCESS])
        assert challenge.process == world.relay_key + processes[-1]
        looking.send(wire.CLOSE, b"")
        assert looking.ended() == ""
    assert processes[0] == processes[1] != processes[2]
    holder.send(wire.PING, bytes(8))
    holder.expect(wire.PONG)
    counters = relay.server.counters
    assert (counters.sessions, counters.registered, counters.replaced, counters.failed) == (1, 1, 0, 0)


def test_admission_refuses_and_a_withdrawn_key_is_disconnected(make_relay: MakeRelay) -> None:
    allowed: list[Admission] = []
    relay = make_relay(Admission([]), lambda: allowed.pop() if allowed else None)
    refused = relay.client()
    with pytest.raises(AssertionError):
        refused.register()
    member = relay.client()
    allowed.append(Admission([member.key]))
    deadline = time.monotonic() + 10
    while True:
        try:
            member.register()
            break
        except AssertionError:
            assert time.monotonic() < deadline
            member.close()
            member.connect()
    allowed.append(Admission([]))
    assert member.ended() == "this key is not admitted any more"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(64),
        b"\xff" * 64,
        wire.data_frame(bytes(32), 0, b""),
        wire.frame(wire.PROOF, bytes(32)),
        wire.frame(wire.HELLO, wire.Hello(7, bytes(32), bytes(16)).body()),
    ],
)
def test_garbage_ends_the_connection(make_relay: MakeRelay, garbage: bytes) -> None:
    client = make_relay().client()
    client.sock.sendall(garbage)
    client.ended()


def test_a_registered_client_that_breaks_the_protocol_goes_and_an_unknown_type_is_skipped(
    make_relay: MakeRelay,
) -> None:
    client = make_relay().client().register()
    client.sock.sendall(wire.HEADER.pack(4, 200) + b"abc" + wire.frame(wire.PING, bytes(8)))
    client.expect(wire.PONG)
    client.sock.sendall(wire.HEADER.pack(4, wire.PING) + b"abc")
    assert "frame type 11" in client.ended()


def test_registration_and_idle_deadlines(make_relay: MakeRelay) -> None:
    relay = make_relay(limits=Limits(registration=0.3, idle=0.6))
    silent, idle = relay.client(), relay.client().register()
    assert silent.ended() == "registration took too long"
    assert idle.ended() == "idle for too long"


def test_limits_of_sessions_and_of_unregistered_clients(make_relay: MakeRelay) -> None:
    relay = make_relay(limits=Limits(sessions=1, unauthenticated=1))
    oldest, newest = relay.client(), relay.client()
    assert oldest.ended() == "too many unregistered clients"
    newest.register()
    assert relay.server.counters.sessions == 1
    late = relay.client()
    with pytest.raises(AssertionError, match="full"):
        late.register()


def test_who_does_not_read_loses_the_newest_and_hinders_nobody(make_relay: MakeRelay) -> None:
    relay = make_relay(limits=Limits(write=1.0))
    a, slow, good = (relay.client().register() for _ in range(3))
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    message = wire.data_frame(slow.key, 0, bytes(60000))
    deadline = time.monotonic() + 20
    while not relay.server.counters.dropped_full:
        a.sock.sendall(message * 20)
        assert time.monotonic() < deadline
    a.send(wire.SIGNAL, good.key + b"through")
    assert good.expect(wire.SIGNAL) == a.key + b"through"
    assert watch(a, slow.key) == wire.PRESENT
    assert a.expect(wire.GONE) == slow.key  # the write deadline


def test_a_flood_of_tiny_frames_is_all_served(make_relay: MakeRelay) -> None:
    client = make_relay().client().register()
    client.sock.sendall(wire.data_frame(bytes(32), 0, b"") * 6000 + wire.frame(wire.PING, b"the last"))
    assert client.expect(wire.PONG) == b"the last"


def test_stop_says_goodbye(make_relay: MakeRelay) -> None:
    relay = make_relay()
    client = relay.client().register()
    relay.stop()
    with pytest.raises(ValueError, match="closed"):
        client.receive()


def test_fitting_counts_whole_frames() -> None:
    view = memoryview(wire.frame(wire.PING, bytes(8)) * 3)  # 13 bytes each
    assert [fitting(view, room) for room in (-1, 12, 13, 30, 39)] == [(0, 3), (0, 3), (13, 2), (26, 1), (39, 0)]


def test_registry_bounds_watches_and_forgets_them() -> None:
    registry: Registry[str] = Registry(max_watches=1)
    assert registry.watch("a", b"1")
    assert registry.watch("a", b"1")
    assert not registry.watch("a", b"2")
    assert registry.register(b"k", "a") is None
    assert registry.register(b"k", "b") == "a"
    assert not registry.remove(b"k", "a")
    assert registry.watchers(b"1") == []
    assert registry.remove(b"k", "b")
    assert len(registry) == 0
