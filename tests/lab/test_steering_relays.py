# SPDX-License-Identifier: Apache-2.0
"""A relay's address that kube-proxy knows: the agent's connections reach it, everybody else's are kube-proxy's."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator

import pytest

from wirekube.agent.steering.plan import plan_of
from wirekube.agent.steering.table import Steering
from wirekube.api.constants import FWMARK
from wirekube.wire.endpoint import Endpoint

RELAY, POD = Endpoint.of("203.0.113.80", 3478), Endpoint.of("10.244.3.7", 3478)
# As kube-proxy has it for what a node itself sends to a load balancer's address.
KUBE_PROXY = f"""
table ip kube-proxy {{
 chain nat-output {{
  type nat hook output priority -100; policy accept;
  ip daddr {RELAY.ip} tcp dport {RELAY.port} dnat to {POD}
 }}
}}
"""


def run(*words: str, text: str = "") -> None:
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


@pytest.fixture
async def served(network_namespace: None) -> AsyncIterator[None]:
    """The relay's address and a pod's on one host; who answers says which one it is."""
    run("ip", "link", "set", "lo", "up")
    servers = []
    for place in (RELAY, POD):
        run("ip", "address", "add", f"{place.ip}/32", "dev", "lo")

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: str = str(place)) -> None:
            writer.write(said.encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        servers.append(await asyncio.start_server(answer, str(place.ip), place.port))
    run("nft", "-f", "-", text=KUBE_PROXY)
    yield
    for server in servers:
        server.close()
        await server.wait_closed()


async def answers(mark: int) -> str:
    """Connect to the relay's address; return who answers."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            await loop.sock_connect(sock, RELAY.sockaddr())
            return (await loop.sock_recv(sock, 100)).decode()


async def test_the_agents_connections_are_not_kube_proxys(served: None) -> None:
    steering = Steering()
    await steering.apply(plan_of(51820, 40000, []))
    assert await answers(FWMARK) == str(POD)
    await steering.apply(plan_of(51820, 40000, [], relays=[RELAY]))
    assert await answers(FWMARK) == str(RELAY)
    assert await answers(0) == str(POD)
    assert await steering.verify() is False
