# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from wirekube.agent.relayclient import (
    NO_PROXY,
    PeerGone,
    PeerPresent,
    ProxyMoved,
    RelayDown,
    RelayRtt,
    RelayUp,
    Signal,
)
from wirekube.wire import relay as wire
from wirekube.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from .conftest import Agent, Relay

MakeAgent = Callable[[], "Agent"]
INITIATION = b"\1\0\0\0" + bytes(range(144))


async def up(relay: Relay, *agents: Agent) -> None:
    for agent in agents:
        agent.client.configure([relay.config(relay.key)])
    for agent in agents:
        await agent.event(RelayUp)


def by_key(make_agent: MakeAgent) -> tuple[Agent, Agent]:
    """Two agents, the one whose initiations go first before the other."""
    a, b = sorted((make_agent(), make_agent()), key=lambda agent: agent.key)
    assert a.client.goes_first(b.key)
    assert not b.client.goes_first(a.key)
    return a, b


async def pair(relay: Relay, make_agent: MakeAgent) -> tuple[Agent, Agent, Endpoint, Endpoint]:
    """Two agents with each other as peers, present and released; the proxies' addresses."""
    a, b = make_agent(), make_agent()
    to_b, to_a = a.client.add_peer(b.key), b.client.add_peer(a.key)
    await up(relay, a, b)
    for agent, other in ((a, b), (b, a)):
        await agent.event(PeerPresent)
        agent.client.release(other.key)
    return a, b, to_b, to_a


async def test_the_relays_key_is_reported_and_rtt_follows(relay: Relay, make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.client.configure([relay.config(None)])
    event: Any = await agent.event(RelayUp)
    assert event.relay_public_key == relay.key
    assert 0 < event.rtt < 5
    peer = os.urandom(32)
    assert agent.client.signal(peer, b"makes the session busy")
    rtt: Any = await agent.event(RelayRtt)
    assert 0 < rtt.rtt < 5


async def test_another_relay_key_is_refused(relay: Relay, make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.client.configure([relay.config(os.urandom(32))])
    event: Any = await agent.event(RelayDown)
    assert "another key" in event.reason
    assert not agent.client.signal(os.urandom(32), b"")


async def test_addresses_are_tried_in_turn(relay: Relay, make_agent: MakeAgent) -> None:
    agent = make_agent()
    with socket.socket() as closed:  # bound and not listening: refuses
        closed.bind(("127.0.0.1", 0))
        agent.client.configure([relay.config(relay.key, Endpoint.of(*closed.getsockname()))])
        await agent.event(RelayUp)


async def test_signals_and_their_size(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, _, _ = await pair(relay, make_agent)
    assert a.client.signal(b.key, bytes(1200))
    assert await b.event(Signal) == Signal(a.key, bytes(1200))
    with pytest.raises(wire.ProtocolError):
        a.client.signal(b.key, bytes(1201))


async def test_packets_both_ways_and_only_wireguards_are_taken(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, to_b, to_a = await pair(relay, make_agent)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"stranger", to_b.sockaddr())
        await a.until(lambda: a.client.stats(b.key).refused_source == 1)
    for size in (0, 1, 32, 1452, 9000):
        a.wireguard.sendto(bytes(size), to_b.sockaddr())
        assert await b.packet() == bytes(size)
    b.wireguard.sendto(b"back", to_a.sockaddr())
    assert await a.packet() == b"back"


async def test_trains_arrive_as_the_same_datagrams(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, to_b, _ = await pair(relay, make_agent)
    segment = 1452
    packets = [bytes([i]) * segment for i in range(40)] + [b"short"]
    for _ in range(20):
        control = [(socket.IPPROTO_UDP, 103, struct.pack("=H", segment))]
        a.wireguard.sendmsg([b"".join(packets)], control, 0, to_b.sockaddr())
        for packet in packets:
            assert await b.packet() == packet
    stats = a.client.stats(b.key)
    assert stats.bytes_out == b.client.stats(a.key).bytes_in == 20 * (40 * segment + 5)
    assert stats.trains_out < 20 * 41


async def test_a_train_of_many_small_segments_is_cut(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, _, _ = await pair(relay, make_agent)
    packets = [i.to_bytes(2, "big") * 16 for i in range(1000)]
    (session,) = a.client._pool.sessions.values()  # no kernel makes so long a train, another agent may
    frame = wire.data_frame(b.key, 32, b"".join(packets))
    session.send(memoryview(frame), (len(frame),))
    assert [await b.packet() for _ in packets] == packets


async def test_a_held_initiation_is_released_once(relay: Relay, make_agent: MakeAgent) -> None:
    a, b = by_key(make_agent)
    to_b = a.client.add_peer(b.key)
    b.client.add_peer(a.key)
    await up(relay, a)
    await a.event(PeerGone)
    for packet in (b"\1\0\0\0" + bytes(144), b"\4" + bytes(99), INITIATION):
        a.wireguard.sendto(packet, to_b.sockaddr())
    await a.until(lambda: a.client.stats(b.key).dropped_held == 1)
    await up(relay, b)
    await a.event(PeerPresent)
    await b.event(PeerPresent)
    a.client.release(b.key)
    a.client.release(b.key)
    a.wireguard.sendto(b"after", to_b.sockaddr())
    assert [await b.packet(), await b.packet()] == [INITIATION, b"after"]
    assert a.client.take_held(b.key) is None


async def test_of_two_initiations_that_would_cross_one_is_sent(relay: Relay, make_agent: MakeAgent) -> None:
    a, b = by_key(make_agent)
    to_b, to_a = a.client.add_peer(b.key), b.client.add_peer(a.key)
    await up(relay, a, b)
    for agent, proxy in ((a, to_b), (b, to_a)):
        await agent.event(PeerPresent)
        agent.wireguard.sendto(INITIATION, proxy.sockaddr())
        agent.wireguard.sendto(b"\4", proxy.sockaddr())
    await a.until(lambda: a.client.stats(b.key).dropped_held == 1)
    await b.until(lambda: b.client.stats(a.key).dropped_held == 1)
    b.client.release(a.key)
    b.wireguard.sendto(b"response", to_a.sockaddr())
    assert await a.packet() == b"response"
    a.client.release(b.key)
    assert await b.packet() == INITIATION
    assert b.client.take_held(a.key) is None


async def test_an_initiation_that_yields_goes_when_the_other_side_has_none(relay: Relay, make_agent: MakeAgent) -> None:
    a, b = by_key(make_agent)
    a.client.add_peer(b.key)
    to_a = b.client.add_peer(a.key)
    await up(relay, a, b)
    await b.event(PeerPresent)
    b.client.release(a.key)
    b.wireguard.sendto(INITIATION, to_a.sockaddr())
    assert await a.packet() == INITIATION
    assert b.client.stats(a.key).trains_out == 1


async def test_a_packet_of_the_peer_opens_the_way_back(relay: Relay, make_agent: MakeAgent) -> None:
    a, b = by_key(make_agent)
    to_b, to_a = a.client.add_peer(b.key), b.client.add_peer(a.key)
    await up(relay, a, b)
    await a.event(PeerPresent)
    await b.event(PeerPresent)
    a.client.release(b.key)
    a.wireguard.sendto(INITIATION, to_b.sockaddr())
    assert await b.packet() == INITIATION
    b.wireguard.sendto(b"response", to_a.sockaddr())
    assert await a.packet() == b"response"


async def test_a_response_passes_a_gate_that_waits_for_the_other_agents_word(
    relay: Relay, make_agent: MakeAgent
) -> None:
    a, b = by_key(make_agent)
    a.client.add_peer(b.key)
    to_a = b.client.add_peer(a.key)
    await up(relay, a, b)
    await b.event(PeerPresent)
    response = b"\2\0\0\0" + bytes(88)
    for packet in (INITIATION, b"\4" + bytes(31), response, b"\4 after"):
        b.wireguard.sendto(packet, to_a.sockaddr())
    assert [await a.packet(), await a.packet()] == [response, b"\4 after"]
    assert b.client.stats(a.key).dropped_held == 1
    assert b.client.take_held(a.key) is None


async def test_take_held_for_another_leg(relay: Relay, make_agent: MakeAgent) -> None:
    a, b = make_agent(), make_agent()
    to_b = a.client.add_peer(b.key)
    a.wireguard.sendto(INITIATION, to_b.sockaddr())
    a.wireguard.sendto(b"\4", to_b.sockaddr())
    await a.until(lambda: a.client.stats(b.key).dropped_held == 1)
    assert a.client.take_held(b.key) == INITIATION
    assert a.client.take_held(b.key) is None


async def test_a_peer_that_goes_closes_the_gate(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, to_b, _ = await pair(relay, make_agent)
    b.client.configure([])
    await a.event(PeerGone)
    a.wireguard.sendto(INITIATION, to_b.sockaddr())
    a.wireguard.sendto(b"\4", to_b.sockaddr())
    await a.until(lambda: a.client.stats(b.key).dropped_held == 1)
    b.client.configure([relay.config()])
    await a.event(PeerPresent)
    a.client.release(b.key)
    assert await b.packet() == INITIATION


async def test_a_relay_that_restarts(relay: Relay, make_agent: MakeAgent) -> None:
    a, b, to_b, _ = await pair(relay, make_agent)
    await asyncio.to_thread(relay.stop)
    down: Any = await a.event(RelayDown)
    assert "stops" in down.reason
    a.wireguard.sendto(INITIATION, to_b.sockaddr())
    await asyncio.to_thread(relay.start)
    await a.event(RelayUp)
    await a.event(PeerPresent)
    a.client.release(b.key)
    assert await b.packet() == INITIATION


async def test_a_silent_relay_is_left(relay: Relay, make_agent: MakeAgent) -> None:
    """A relay whose process hangs: TCP still acknowledges, nothing answers."""
    agent = make_agent()
    await up(relay, agent)
    hang = threading.Event()

    def poll() -> None:
        hang.wait(9)

    relay.server._poll = poll
    try:
        peer = os.urandom(32)
        async with asyncio.timeout(9):
            while not any(isinstance(event, RelayDown) for event in agent.events):
                agent.client.signal(peer, b"in flight")
                await asyncio.sleep(0.05)
        down: Any = await agent.event(RelayDown)
        assert down.reason == "no answer for 3 s"
    finally:
        hang.set()


async def test_proxies_move_with_the_underlay(relay: Relay, make_agent: MakeAgent) -> None:
    a = make_agent()
    peer = os.urandom(32)
    first = a.client.add_peer(peer)
    assert a.client.add_peer(peer) == first
    a.client.set_underlay("127.0.0.2", a.wireguard.getsockname()[1])
    moved: Any = await a.event(ProxyMoved)
    assert str(moved.endpoint.ip) == "127.0.0.2"
    a.client.set_underlay("192.0.2.77", 1)  # not an address of this machine
    assert await a.event(ProxyMoved) == ProxyMoved(peer, NO_PROXY)
    a.client.set_underlay(None, 0)
    assert await a.event(ProxyMoved) == ProxyMoved(peer, NO_PROXY)
    a.client.remove_peer(peer)
    a.client.remove_peer(peer)
