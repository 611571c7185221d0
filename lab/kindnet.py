# SPDX-License-Identifier: Apache-2.0
"""NAT between the nodes of a kind cluster: routers in front of its workers, STUN servers outside.

    machine ──── bridge of the network "kind" ───┬─── eth0 of the control plane
                                                 ├─── STUN, two addresses
                                                 └─── wan (router) lan ─── eth0 of a worker

A worker's link is taken off the bridge and put into a router, a network namespace that answers ARP for everybody and
translates. Nothing changes inside the node: it keeps its address and its default gateway, its kubelet goes on reaching
the API server, and nobody reaches the node, as at home. What a router does is the lab's (`rules.py`).

    python -m wirekube.lab.kindnet up worker=eim-apdf worker2=symmetric worker3=udp-blocked
    python -m wirekube.lab.kindnet down
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from . import netns, parts
from .netns import RUN_NETNS, NetworkError, inside, run
from .processes import ProcessError, Processes, signal_and_wait
from .rules import WAN, router_rules
from .topology import STUN_PORT, Nat
from .wait import until_stun_answers

PREFIX = "wkkind"
STUN_SPACE = f"{PREFIX}.stun"
RUN = Path("/run/wirekube-kindnet")
ANNOTATION_NAT = "e2e.wirekube.io/nat"  # what the e2e suite judges paths by
FACTS = "wirekube-e2e"  # ConfigMap in the namespace default: what it puts into the Mesh
DOCKER_SPACE = f"{PREFIX}.docker"  # hack/kind/docker


@dataclass(frozen=True)
class Router:
    """The NAT router of one node.

    Attributes:
        node: name of the node and of its container.
        nat: what the router does.
        address: the node's, on the bridge.
        wan: the router's own address on the bridge.
        link: the name of the node's link on the machine's side.
    """

    node: str
    nat: Nat
    address: IPv4Address
    wan: IPv4Interface
    link: str

    @property
    def space(self) -> str:
        """The router's network namespace."""
        return f"{PREFIX}.nat-{self.node}"


def outside_addresses(network: IPv4Network) -> list[IPv4Address]:
    """Return addresses for routers and STUN servers, from the top: Docker gives out its own from the bottom."""
    top = int(network.broadcast_address)
    return [IPv4Address(top - offset) for offset in range(1, 33)]


def lan_commands(router: Router) -> str:
    """Return the `ip` commands inside a router."""
    return "\n".join(
        (
            "link set lo up",
            f"address add {router.wan} dev {WAN}",
            f"link set {WAN} up",
            "link set lan up",
            f"route add {router.address} dev lan",
            "",
        )
    )


# Answering for everybody at once: an answer may otherwise wait up to 0.8 s, and the first packets with it.
ROUTER_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/lan/proxy_arp": "1",
    "net/ipv4/neigh/lan/proxy_delay": "0",
}


def facts(stun: Sequence[IPv4Address]) -> dict[str, Any]:
    """Return the ConfigMap that tells the e2e suite what the Mesh of this cluster needs."""
    servers = ",".join(f"{address}:{STUN_PORT}" for address in stun)
    metadata = {"name": FACTS, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"stunServers": servers}}


def docker(*words: str) -> str:
    """Run the Docker client.

    Raises:
        NetworkError: it failed.
    """
    return run(["docker", *words]).strip()


class Bridge:
    """The network "kind" as Docker made it, in the machine's network namespace or in the daemon's own."""

    def __init__(self) -> None:
        found = json.loads(docker("network", "inspect", "kind"))[0]
        options = found.get("Options") or {}
        self.name = options.get("com.docker.network.bridge.name") or f"br-{found['Id'][:12]}"
        pools = (ipaddress.ip_network(pool["Subnet"]) for pool in found["IPAM"]["Config"])
        self.network = next(pool for pool in pools if isinstance(pool, IPv4Network))
        self.space = DOCKER_SPACE if (RUN_NETNS / DOCKER_SPACE).exists() else None

    def ip(self, *words: str) -> str:
        """Run `ip` where the bridge is."""
        return run(["ip", *(["-n", self.space] if self.space else []), *words])

    def plug(self, space: str, name: str) -> None:
        """Make a namespace with a link to the bridge, called `wan` in there."""
        run(["ip", "netns", "add", space])
        self.ip("link", "add", name, "type", "veth", "peer", "name", WAN, "netns", space)
        self.ip("link", "set", name, "master", self.name, "up")

    def link_of(self, node: str) -> str:
        """Return the name of a node's link on the bridge."""
        index = docker("exec", node, "cat", "/sys/class/net/eth0/iflink")
        links: list[dict[str, Any]] = json.loads(self.ip("-j", "link", "show"))
        for link in links:
            if link["ifindex"] == int(index):
                return str(link["ifname"])
        raise NetworkError(f"the link of {node} is not on the machine: is it behind a router already?")

    def address_of(self, node: str) -> IPv4Address:
        """Return a node's address on the bridge."""
        return IPv4Address(docker("inspect", "-f", "{{.NetworkSettings.Networks.kind.IPAddress}}", node))


def up(bridge: Bridge, kinds: dict[str, Nat]) -> None:
    """Put the nodes behind routers, start the STUN servers, and write both into the cluster."""
    addresses = outside_addresses(bridge.network)
    stun = addresses[:2]
    for node, nat, address in zip(kinds, kinds.values(), addresses[2:], strict=False):
        wan = IPv4Interface((address, bridge.network.prefixlen))
        _move(bridge, Router(node, nat, bridge.address_of(node), wan, bridge.link_of(node)))
        print(f"kind: {node} is behind a router: {nat.value}", file=sys.stderr)
    _stun(bridge, stun)
    run(["kubectl", "apply", "-f", "-"], json.dumps(facts(stun)))
    for node, nat in kinds.items():
        run(["kubectl", "annotate", "--overwrite", "node", node, f"{ANNOTATION_NAT}={nat.value}"])


def _move(bridge: Bridge, router: Router) -> None:
    """Take a node's link off the bridge and put a router between."""
    bridge.plug(router.space, f"wk{router.wan.ip.packed[-1]}")
    bridge.ip("link", "set", router.link, "nomaster")
    bridge.ip("link", "set", router.link, "netns", router.space, "name", "lan")
    with inside(router.space):
        run(["ip", "-batch", "-"], lan_commands(router))
        for setting, value in ROUTER_SYSCTLS.items():
            Path("/proc/sys", setting).write_text(value)
        run(["nft", "-f", "-"], router_rules(router.nat, router.wan.ip))


def _stun(bridge: Bridge, addresses: Sequence[IPv4Address]) -> None:
    bridge.plug(STUN_SPACE, "wkstun")
    added = "".join(f"address add {each}/{bridge.network.prefixlen} dev {WAN}\n" for each in addresses)
    processes = Processes(RUN)
    with inside(STUN_SPACE):
        run(["ip", "-batch", "-"], f"link set lo up\n{added}link set {WAN} up\n")
        processes.start("stun", parts.stun_server(RUN, addresses))
    until_stun_answers(STUN_SPACE, lambda: processes.tail("stun"), addresses)


def down() -> None:
    """Remove routers and STUN servers. A node behind a router loses its link with it: delete the cluster first."""
    found = [path.name for path in RUN_NETNS.glob(f"{PREFIX}.*") if path.name != DOCKER_SPACE]
    signal_and_wait(netns.pids([STUN_SPACE]), signal.SIGKILL, 5.0)
    if found:
        run(["ip", "-batch", "-"], "".join(f"netns del {name}\n" for name in found))
    for path in RUN.glob("*"):
        path.unlink()
    if RUN.exists():
        RUN.rmdir()


def _kind(text: str) -> tuple[str, Nat]:
    node, _, nat = text.partition("=")
    try:
        return node, Nat(nat)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: NODE=KIND, where KIND is one of {', '.join(Nat)}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="wirekube.lab.kindnet", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up").add_argument("nodes", nargs="+", type=_kind, metavar="NODE=KIND")
    commands.add_parser("down")
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            up(Bridge(), dict(options.nodes))
        else:
            down()
    except (NetworkError, ProcessError) as error:
        print(f"kind: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
