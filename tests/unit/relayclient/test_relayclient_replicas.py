# SPDX-License-Identifier: Apache-2.0
"""Two relay processes with one key behind one address: agents have a session with each, and pairs use both."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from wirekube.agent.relayclient import PeerGone, PeerPresent, RelayDown, RelayEvent, RelayLost, RelayServer, RelayUp
from wirekube.agent.relayclient.choice import best, pair_of
from wirekube.relay.server import RelayServer as Server
from wirekube.wire.endpoint import Endpoint

from .conftest import Nameless

if TYPE_CHECKING:
    from .conftest import Agent, Balancer

MakeAgent = Callable[[], "Agent"]
MakeBalancer = Callable[..., Awaitable["Balancer"]]
GAP = 1.0  # seconds; the next session is warm


def sessions(agent: Agent) -> int:
    return len(agent.client._pool.sessions)


async def join(balancer: Balancer, *agents: Agent, wanted: int | None = None) -> None:
    """Configure agents, and wait until each has a session with each process."""
    for agent in agents:
        agent.client.configure([balancer.config()])
    for agent in agents:
        await agent.until(lambda agent=agent: sessions(agent) == (wanted or len(balancer.relays)))


async def meet(*agents: Agent) -> dict[tuple[int, int], Endpoint]:
    """Make everybody everybody's peer and open all gates; return the proxies: of whom, for whom."""
    indexes = list(itertools.permutations(range(len(agents)), 2))
    proxies = {(a, b): agents[a].client.add_peer(agents[b].key) for a, b in indexes}
    for a, b in indexes:
        peer = agents[a].client._peers._peers[agents[b].key]
        await agents[a].until(lambda peer=peer, a=a: len(peer.present) == sessions(agents[a]))
        agents[a].client.release(agents[b].key)
    return proxies


async def carry(agents: list[Agent], proxies: dict[tuple[int, int], Endpoint]) -> None:
    """Send a packet from everybody to everybody; each must arrive."""
    for (a, b), proxy in proxies.items():
        message = bytes([a, b])
        agents[a].wireguard.sendto(message, proxy.sockaddr())
        assert await agents[b].packet() == message


def kinds(events: list[RelayEvent]) -> set[type]:
    return {type(event) for event in events}


async def test_a_session_stands_with_each_process_and_none_is_replaced(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, agents = await make_balancer(), [make_agent() for _ in range(4)]
    balancer.order = [0, 0, 0, 1, 0, 1, 1, 1]
    await join(balancer, *agents)
    await agents[0].until(lambda: balancer.counters("sessions") == [4, 4])
    await agents[0].until(lambda: balancer.counters("unauthenticated") == [0, 0])
    assert balancer.counters("registered") == [4, 4]
    assert balancer.counters("replaced") == balancer.counters("failed") == [0, 0]
    assert agents[0].client.up() == ["relay.test:3478"]


async def test_pairs_meet_and_spread_over_the_processes(make_balancer: MakeBalancer, make_agent: MakeAgent) -> None:
    balancer, agents = await make_balancer(), [make_agent() for _ in range(6)]
    await join(balancer, *agents)
    proxies = await meet(*agents)
    await carry(agents, proxies)
    for a, b in proxies:
        one, other = (agents[x].client._peers._peers[agents[y].key].session for x, y in ((a, b), (b, a)))
        assert one is not None
        assert other is not None
        assert one.process == other.process
    assert all(balancer.counters("frames"))
    assert balancer.counters("dropped_absent") == [0, 0]


async def test_when_a_process_is_killed_its_pairs_go_on_by_the_other_and_use_it_again_when_it_is_back(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, agents = await make_balancer(), [make_agent() for _ in range(6)]
    await join(balancer, *agents)
    proxies = await meet(*agents)
    await carry(agents, proxies)
    for agent in agents:
        agent.events.clear()
    await asyncio.to_thread(balancer.relays[1].stop)
    begin = time.monotonic()
    for agent in agents:
        await agent.event(RelayLost)
    await carry(agents, proxies)
    assert time.monotonic() - begin < GAP
    assert all(sessions(agent) == 1 for agent in agents)
    assert not {PeerGone, RelayDown} & set().union(*(kinds(agent.events) for agent in agents))
    await asyncio.to_thread(balancer.relays[1].start)
    for agent in agents:
        await agent.event(RelayUp)
    for agent, other in itertools.permutations(agents, 2):
        peer = agent.client._peers._peers[other.key]
        await agent.until(lambda peer=peer: len(peer.present) == 2)
    await carry(agents, proxies)
    assert balancer.counters("frames")[1] > 0


async def test_a_reset_connection_moves_a_pair_at_once(make_balancer: MakeBalancer, make_agent: MakeAgent) -> None:
    balancer, agents = await make_balancer(), [make_agent() for _ in range(2)]
    await join(balancer, *agents)
    proxies = await meet(*agents)
    session = agents[0].client._peers._peers[agents[1].key].session
    assert session is not None
    process = balancer.relays[0].key + balancer.relays[0].server._process
    balancer.kill(0 if session.process == process else 1)
    for agent in agents:
        await agent.event(RelayLost)
    await carry(agents, proxies)


async def test_when_the_last_process_goes_the_relay_is_down_and_peers_are_gone(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, agent = await make_balancer(), make_agent()
    await join(balancer, agent)
    for relay in balancer.relays:
        await asyncio.to_thread(relay.stop)
    await agent.event(RelayLost)
    await agent.event(RelayDown)
    assert agent.client.up() == []


async def test_who_is_present_with_one_process_only_is_met_there(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, both, one = await make_balancer(), make_agent(), make_agent()
    await join(balancer, both)
    names = [relay.key + relay.server._process for relay in balancer.relays]
    worse = names.index(best(pair_of(both.key, one.key), names) or b"") ^ 1
    address = balancer.relays[worse].address
    one.client.configure([RelayServer("other.name:1", (address,), balancer.key)])
    to_one, to_both = both.client.add_peer(one.key), one.client.add_peer(both.key)
    await both.event(PeerPresent)
    await one.event(PeerPresent)
    both.client.release(one.key)
    one.client.release(both.key)
    both.wireguard.sendto(b"there", to_one.sockaddr())
    assert await one.packet() == b"there"
    one.wireguard.sendto(b"back", to_both.sockaddr())
    assert await both.packet() == b"back"
    one.client.configure([])
    await both.event(PeerGone)


@pytest.mark.parametrize("kinds", [(Nameless,), (Nameless, Nameless)])
async def test_a_relay_without_names_keeps_its_session_whatever_is_looked_for(
    make_balancer: MakeBalancer, make_agent: MakeAgent, kinds: tuple[type[Server], ...]
) -> None:
    balancer, agent = await make_balancer(*kinds), make_agent()
    agent.client.configure([balancer.config(replicas=2)])
    await agent.event(RelayUp)
    await agent.until(lambda: balancer.connections >= 12)
    assert sessions(agent) == 1
    assert sum(balancer.counters("registered")) == 1
    assert sum(balancer.counters("replaced")) == 0
    assert not agent.events


async def test_a_process_with_a_name_is_found_beside_one_without(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, agents = await make_balancer(Nameless, Server), [make_agent() for _ in range(3)]
    await join(balancer, *agents)
    await carry(agents, await meet(*agents))
    assert balancer.counters("replaced") == [0, 0]


async def test_two_names_of_one_relay_share_its_sessions(make_balancer: MakeBalancer, make_agent: MakeAgent) -> None:
    balancer, agent = await make_balancer(), make_agent()
    agent.client.configure([balancer.config(), balancer.config(name="alias:3478")])
    await agent.until(lambda: agent.client.up() == ["relay.test:3478", "alias:3478"])
    await agent.until(lambda: sessions(agent) == 2)
    agent.client.configure([balancer.config(name="alias:3478")])
    await agent.until(lambda: agent.client.up() == ["alias:3478"])
    assert balancer.counters("replaced") == [0, 0]


async def test_each_of_several_relays_has_a_session_and_one_that_is_not_configured_any_more_loses_it(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    first, second, agent = await make_balancer(Server), await make_balancer(), make_agent()
    agent.client.configure([second.config(name="second:1"), first.config(name="first:1")])
    await agent.until(lambda: sessions(agent) == 3)
    assert agent.client.up() == ["second:1", "first:1"]
    agent.client.configure([first.config(name="first:1")])
    await agent.event(RelayLost)
    await agent.event(RelayLost)
    assert agent.client.up() == ["first:1"]
    await agent.until(lambda: second.counters("sessions") == [0, 0])


async def test_one_more_process_is_found_when_the_mesh_tells_of_it(
    make_balancer: MakeBalancer, make_agent: MakeAgent
) -> None:
    balancer, agent = await make_balancer(), make_agent()
    agent.client.configure([balancer.config(replicas=1)])
    await agent.event(RelayUp)
    assert balancer.connections == 1
    agent.client.configure([balancer.config(replicas=2)])
    await agent.event(RelayUp)
    agent.client.configure([balancer.config(replicas=1)])
    assert sessions(agent) == 2  # one that works is kept
