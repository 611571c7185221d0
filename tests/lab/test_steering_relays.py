# SPDX-License-Identifier: Apache-2.0
"""A relay's address that kube-proxy knows: the agent's connections reach it, everybody else's are kube-proxy's."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wirekube.agent.steering.plan import plan_of
from wirekube.agent.steering.table import Steering
from wirekube.api.constants import FWMARK
from wirekube.lab.wait import eventually
from wirekube.wire.endpoint import Endpoint

RELAY, OWN, POD = (Endpoint.of(host, 3478) for host in ("203.0.113.80", "203.0.113.1", "203.0.113.7"))
# As kube-proxy has it for what a node itself sends to a load balancer's address, or to a node port of its own.
KUBE_PROXY = f"""
table ip kube-proxy {{
 chain nat-output {{
  type nat hook output priority -100; policy accept;
  ip daddr {{ {RELAY.ip}, {OWN.ip} }} tcp dport {RELAY.port} dnat to {POD}
 }}
}}
"""
SERVERS = """
import selectors, socket, sys
selector = selectors.DefaultSelector()
for host in sys.argv[2:]:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: the address comes later
    sock.bind((host, int(sys.argv[1])))
    sock.listen()
    selector.register(sock, selectors.EVENT_READ, host)
print("listening", flush=True)
while True:
    for key, _ in selector.select():
        with key.fileobj.accept()[0] as client:
            client.sendall(key.data.encode())
"""


def run(*words: object, text: str = "") -> None:
    subprocess.run([str(word) for word in words], input=text, text=True, check=True, capture_output=True)


@pytest.fixture
def served(network_namespace: None) -> Iterator[None]:
    """A relay and a pod on another host, who say which of them answers."""
    command = ["unshare", "--net", sys.executable, "-c", SERVERS, str(RELAY.port), str(RELAY.ip), str(POD.ip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"listening\n"
            run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", other.pid)
            run("ip", "address", "add", f"{OWN.ip}/24", "dev", "here")
            run("ip", "link", "set", "here", "up")
            run("ip", "link", "set", "lo", "up")
            there = ("nsenter", f"--net=/proc/{other.pid}/ns/net", "ip")
            for host in (RELAY.ip, POD.ip):
                run(*there, "address", "add", f"{host}/24", "dev", "there")
            run(*there, "link", "set", "there", "up")
            run("nft", "-f", "-", text=KUBE_PROXY)
            eventually(lambda: answers(POD, 0), 5)
            yield
        finally:
            other.kill()


def answers(to: Endpoint, mark: int) -> str:
    """Connect; return who answers."""
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.connect(to.sockaddr())
        return sock.recv(100).decode()


async def test_the_agents_connections_are_not_kube_proxys(served: None) -> None:
    steering = Steering()
    await steering.apply(plan_of(51820, 40000, []))
    assert answers(RELAY, FWMARK) == str(POD.ip)
    await steering.apply(plan_of(51820, 40000, [], relays=[RELAY, OWN]))
    assert answers(RELAY, FWMARK) == str(RELAY.ip)
    assert answers(RELAY, 0) == str(POD.ip)
    assert await steering.verify() is False


async def test_on_the_relays_own_node_they_are(served: None) -> None:
    await Steering().apply(plan_of(51820, 40000, [], relays=[RELAY, OWN]))
    assert answers(OWN, FWMARK) == str(POD.ip)
