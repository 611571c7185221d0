# SPDX-License-Identifier: Apache-2.0
"""The command lines and objects of a lab's parts. Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from ..api.constants import (
    ANNOTATION_ENDPOINT,
    ENV_APISERVER,
    ENV_NODE_NAME,
    GROUP_VERSION,
    LABEL_VPN_ENABLED,
    MESH_NAME,
)
from .noderoot import Resolvers
from .plan import Place
from .topology import (
    API_ADDRESS,
    API_PORT,
    API_SERVICE,
    DNS_ADDRESS,
    DNS_SERVICE,
    RELAY_ADDRESS,
    RELAY_PORT,
    STUN_ADDRESSES,
    STUN_PORT,
    Node,
    Topology,
    relay_ports,
)

PUBLIC_API = f"https://{API_ADDRESS}:{API_PORT}"
SERVICE_API = f"https://{API_SERVICE}:443"
RELAY_METRICS = 9587  # on loopback, of the first process; each further one has the next port
PYTHON = (sys.executable, "-m")


def stun_server(folder: Path, addresses: Sequence[IPv4Address] = STUN_ADDRESSES) -> list[str]:
    """Return coturn's command: two addresses, two ports each, so that it can show every kind of NAT."""
    listen = [word for address in addresses for word in ("-L", str(address))]
    return [
        "turnserver", "-n", "--stun-only", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", *listen,
        "-p", str(STUN_PORT), "--alt-listening-port", str(STUN_PORT + 1),
        "--log-file", "stdout", "--pidfile", str(folder / "turnserver.pid"), "--userdb", str(folder / "turndb"),
    ]  # fmt: skip


def dns_server(listen: IPv4Address, names: dict[str, IPv4Address], upstream: IPv4Address | None = None) -> list[str]:
    """Return dnsmasq's command: these names, and what an upstream server knows."""
    return [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--log-facility=-",
        f"--listen-address={listen}", "--bind-interfaces", "--pid-file=", "--user=root", "--local-service=net",
        *(f"--host-record={name},{address}" for name, address in names.items()),
        *([f"--server={upstream}"] if upstream else ["--local=/#/"]),
    ]  # fmt: skip


def cluster_names() -> dict[str, IPv4Address]:
    """Return what the cluster's DNS server knows by itself."""
    return {
        "kubernetes.default.svc.cluster.local": API_SERVICE,
        "kube-dns.kube-system.svc.cluster.local": DNS_SERVICE,
    }


def relay(folder: Path, allowed: Path | None, index: int = 0, replicas: int = 1) -> list[str]:
    """Return the command of a relay process.

    Args:
        folder: where the relay's key is.
        allowed: file of admitted keys; None admits every key.
        index: which of the relay's processes.
        replicas: how many it has.
    """
    admission = ["--allow-key", str(allowed)] if allowed else ["--open"]
    listen = ["--listen", f"{RELAY_ADDRESS}:{relay_ports(replicas)[index]}"]
    stun = ["--stun", f"{RELAY_ADDRESS}:{RELAY_PORT}"] if index == 0 else []
    metrics = ["--metrics", f"127.0.0.1:{RELAY_METRICS + index}"]
    return [*PYTHON, "wirekube.relay.main", "--key", str(folder / "relay.key"), *listen, *stun, *admission, *metrics]


def relay_name(index: int) -> str:
    """Return the name of a relay process: of its record, and of its log."""
    return "relay" if index == 0 else f"relay-{index + 1}"


def admission(kubectl: Path, kubeconfig: str, allowed: Path) -> list[str]:
    """Return a command that adds each public key that a Peer publishes to the relay's file, as long as it runs.

    A key that is no longer published stays admitted: a lab lives for a day.
    """
    watch = shlex.join(
        [
            *(str(kubectl), "--kubeconfig", kubeconfig, "get", "wirekubepeers", "--watch"),
            *("-o", r'jsonpath={.status.publicKey}{"\n"}'),
        ]
    )
    file = shlex.quote(str(allowed))
    script = (
        f"while :; do {watch} | while read -r key; do "
        f'if [ -n "$key" ] && ! grep -qxF "$key" {file}; then echo "$key" >>{file}; fi; '
        "done; sleep 1; done"
    )
    return ["sh", "-c", script]


# What a kubelet does with a process that ends. A signal to the shell is the process's; so is what it ends with then.
_KEEP_RUNNING = """
child= ending=
trap 'ending=1; [ -z "$child" ] || kill -TERM "$child"' TERM INT
while [ -z "$ending" ]; do
    "$@" & child=$!
    [ -z "$ending" ] || kill -TERM "$child" # asked for before its number was there
    wait "$child"; status=$?
    [ -z "$ending" ] || break
    echo "ended with status $status; starting again" >&2
    child=
    sleep 1
done
[ -z "$child" ] || wait "$child"
"""


def operator() -> list[str]:
    """Return a command that keeps an operator running: it ends when it loses its Lease, as with the API server."""
    return kept_running([*PYTHON, "wirekube.controllers.main"])


def kept_running(argv: Sequence[str]) -> list[str]:
    """Return a command that starts another one again whenever it ends, and ends with it on SIGTERM."""
    return ["sh", "-c", _KEEP_RUNNING, "kept-running", *argv]


def operator_environment(kubeconfig: Path) -> list[tuple[str, str | None]]:
    """Return what the operator is told."""
    # In a pod, its temporary folder is its own.
    return [("KUBECONFIG", str(kubeconfig)), ("TMPDIR", str(kubeconfig.parent))]


def agent_environment(
    node: Node, kubeconfig: Path, state: Path, wireguard_go: Path | None
) -> list[tuple[str, str | None]]:
    """Return what an agent is told; its other settings have the defaults of a pod."""
    return [
        (ENV_NODE_NAME, node.name),
        ("KUBECONFIG", str(kubeconfig)),
        (ENV_APISERVER, PUBLIC_API if node.api_server == "service" else None),
        ("WIREKUBE_STATE_DIR", str(state)),
        ("WIREKUBE_WIREGUARD_GO", str(wireguard_go) if wireguard_go else None),
    ]


def agent_server(node: Node) -> str:
    """Return the API server's URL in a node's kubeconfig."""
    return SERVICE_API if node.api_server == "service" else PUBLIC_API


def resolvers(topology: Topology, box: str) -> Resolvers:
    """Return the DNS servers of a box: a node's are its own, all else uses the internet's."""
    for node in topology.nodes:
        if node.name == box:
            return Resolvers(node.host_resolver, node.cluster_resolver)
    return Resolvers(DNS_ADDRESS if topology.names else None)


def node_object(node: Node, place: Place) -> dict[str, Any]:
    """Return the Node, as a kubelet would register it."""
    addresses = [{"type": "InternalIP", "address": str(place.address)}, {"type": "Hostname", "address": node.name}]
    pods = {"podCIDR": str(node.pod_cidr), "podCIDRs": [str(node.pod_cidr)]} if node.pod_cidr else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {"kubernetes.io/hostname": node.name, LABEL_VPN_ENABLED: "true"},
            "annotations": {ANNOTATION_ENDPOINT: node.endpoint} if node.endpoint else {},
        },
        "spec": pods,
        "status": {"addresses": addresses},
    }


def mesh_object(topology: Topology) -> dict[str, Any]:
    """Return the Mesh."""
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "WireKubeMesh",
        "metadata": {"name": MESH_NAME},
        "spec": topology.mesh,
    }


def object_list(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return many objects as one, for one call of kubectl."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}
