# SPDX-License-Identifier: Apache-2.0
"""Makes a lab.

folder, lock -> network -+-> control plane -> CRDs, RBAC -+-> operator, Mesh
                         +-> files, STUN, DNS             +-> Nodes -> tokens -> agents -> mesh complete
                                                          +-> relay
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..api.constants import NAMESPACE
from . import netns, parts, reports, wait
from .controlplane import find_or_build
from .controlplane.binaries import wireguard_go
from .down import remove
from .lab import Lab
from .noderoot import environment
from .state import LabError
from .topology import DNS_ADDRESS, DNS_SERVICE, Relay, Topology, load

CONFIG = Path(__file__).resolve().parents[1] / "config" / "default"
CRDS = tuple(f"crd/{plural}.wirekube.io" for plural in ("wirekubemeshes", "wirekubepeers", "wirekubepeerslices"))
PEER_SECONDS = 20
RELAY_SECONDS = 20.0
MESH_SECONDS = 60.0
POLL_SECONDS = 0.2


def up(lab: Lab, source: str) -> None:
    """Make a lab; return when all its agents were started. What fails half way is removed again.

    Args:
        lab: which is not up.
        source: name of a topology of the package's, or the path of a YAML file.

    Raises:
        LabError, NetworkError, TopologyError, ProcessError, BinariesMissing: with the reason.
    """
    topology = load(source)
    _check_machine(topology)
    wireguard_go()
    find_or_build()
    lab.folder.create()
    with lab.folder.locked():
        try:
            lab.folder.record(topology, source)
            _build(lab)
        except BaseException:
            remove(lab)
            raise


def _check_machine(topology: Topology) -> None:
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for network namespaces: run it with sudo")
    if not Path("/dev/net/tun").exists():
        raise LabError("there is no /dev/net/tun, which wireguard-go needs: modprobe tun")
    if not (CONFIG / "kustomization.yaml").exists():
        raise LabError(f"there is no {CONFIG}: a lab needs a checkout of the project, with its config folder")
    missing = wait.missing_tools(["ip", "nft", "turnserver", "ping", *(["dnsmasq"] if topology.names else [])])
    if missing:
        raise LabError(f"{', '.join(missing)} not found: hack/setup installs what a lab needs")


def _build(lab: Lab) -> None:
    with lab.progress.step("network") as details:
        netns.build(lab.name, lab.plan)
        details.append(f"{len(lab.plan.boxes)} namespaces, {len(lab.plan.cables)} links")
    _together(partial(_control_plane, lab), partial(_names_and_stun, lab))
    with lab.progress.step("CRDs and RBAC"):
        lab.kubectl("apply", "--server-side", "-k", str(CONFIG))
        lab.kubectl("wait", "--for=condition=Established", "--timeout=30s", *CRDS)
    _mesh_and_tokens(lab)
    _start(lab)


def _control_plane(lab: Lab) -> None:
    with lab.progress.step("API server") as details:
        lab.control_plane.start()
        details.append(lab.control_plane.url)


def _names_and_stun(lab: Lab) -> None:
    topology = lab.topology
    with lab.progress.step("STUN, DNS" if topology.names else "STUN"):
        for box in ("api", *lab.nodes):
            lab.root(box).prepare(parts.resolvers(topology, box))
        lab.start("stun", "stun", parts.stun_server(lab.folder.path))
        upstream = DNS_ADDRESS if topology.names else None
        if upstream:
            lab.start("dns", "dns", parts.dns_server(upstream, topology.names))
        for node in topology.nodes:
            if node.services:
                lab.start("cluster-dns", node.name, parts.dns_server(DNS_SERVICE, parts.cluster_names(), upstream))
        wait.until_stun_answers(lab.namespace("stun"), lambda: lab.processes.tail("stun"))


def _mesh_and_tokens(lab: Lab) -> None:
    """Create Mesh and Nodes, and write each component's kubeconfig."""
    with lab.progress.step("Mesh, Nodes, tokens") as details:
        nodes = (parts.node_object(each, lab.plan.places[each.name]) for each in lab.topology.nodes)
        objects = parts.object_list([parts.mesh_object(lab.topology), *nodes])
        shown = r'jsonpath={.kind} {.metadata.name} {.metadata.uid}{"\n"}'
        made = lab.kubectl("create", "-f", "-", "-o", shown, input=json.dumps(objects))
        uids = {name: uid for kind, name, uid in map(str.split, made.splitlines()) if kind == "Node"}
        _together(partial(_operator_token, lab), *(partial(_agent_token, lab, *each) for each in uids.items()))
        details.append(f"{len(uids)} tokens are bound to their Nodes")


def _operator_token(lab: Lab) -> None:
    kubeconfig = lab.root("api").folder / "kubeconfig"
    lab.control_plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)


def _agent_token(lab: Lab, name: str, uid: str) -> None:
    node = {"metadata": {"name": name, "uid": uid}}
    server = parts.agent_server(lab.topology.node(name))
    kubeconfig = lab.root(name).folder / "kubeconfig"
    lab.control_plane.service_account_kubeconfig(NAMESPACE, "wirekube-agent", node, kubeconfig, server=server)


def _start(lab: Lab) -> None:
    """Start the operator, the relay and the agents; who is up first waits for the others."""
    with lab.progress.step("operator, relay, agents") as details:
        env = environment(parts.operator_environment(lab.root("api").folder / "kubeconfig"), dict(os.environ))
        lab.start("operator", "api", parts.operator(), env, own_root=True)
        if lab.topology.relay is not None:
            _relay(lab, lab.topology.relay)
        for name in lab.nodes:
            lab.start_agent(name)
        details.append("started")
    _allowed_ips(lab)


def _relay(lab: Lab, relay: Relay) -> None:
    allowed = lab.relay_keys
    if allowed is not None:
        allowed.touch(mode=0o600)
        watch = parts.admission(find_or_build() / "kubectl", lab.control_plane.kubeconfig, allowed)
        lab.start("admission", "api", watch)
    for index in range(relay.replicas):
        lab.start_relay(index)
        wait.until((lab.folder.run / "relay.key").exists, RELAY_SECONDS)  # the first one makes it, and all have it


def _allowed_ips(lab: Lab) -> None:
    """Give Peers their allowedIPs, as a user does: the Peers are the operator's to make."""
    for node in lab.topology.nodes:
        if node.allowed_ips:
            peer, patch = f"wirekubepeer/{node.name}", {"spec": {"allowedIPs": list(node.allowed_ips)}}
            lab.kubectl("wait", "--for=create", f"--timeout={PEER_SECONDS}s", peer)
            lab.kubectl("patch", peer, "--type=merge", "-p", json.dumps(patch))


def wait_for_mesh(lab: Lab, seconds: float = MESH_SECONDS) -> list[str]:
    """Wait until both sides of each pair reach each other, directly or relayed.

    Returns:
        What is still missing when the time is up, or as soon as an agent has died; nothing when all is well.
    """
    with lab.progress.step("mesh") as details:
        wait.until(lambda: bool(dead_agents(lab)) or reports.complete(lab.reports()), seconds, POLL_SECONDS)
        missing = dead_agents(lab) or reports.missing(lab.reports())
        details.append(f"{len(missing)} things missing" if missing else "every pair is reached from both sides")
    return missing


def dead_agents(lab: Lab) -> list[str]:
    """Return a line for each agent that has ended, with its last words."""
    return [
        f"the agent of {name} has ended: {lab.processes.tail(f'agent-{name}', 1)}"
        for name in lab.nodes
        if lab.agent_pid(name) is None
    ]


def _together(*tasks: Callable[[], None]) -> None:
    """Run tasks at once; when all have ended, the first failure is raised."""
    with ThreadPoolExecutor(max(1, len(tasks))) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
