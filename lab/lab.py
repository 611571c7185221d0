# SPDX-License-Identifier: Apache-2.0
"""A lab: `up` makes it, `down` leaves the machine as it was, and the rest works on one that is up.

up:  folder, lock -> network -+-> control plane -> CRDs, RBAC -+-> operator
                              +-> STUN, DNS                    +-> Mesh, Nodes -> tokens -> agents
                              +-> files of all boxes           +-> relay
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..api.constants import NAMESPACE
from . import netns, parts, wait
from .controlplane import ControlPlane, find_or_build
from .controlplane.binaries import wireguard_go
from .noderoot import NodeRoot, environment
from .plan import NetworkPlan, namespace, plan_network
from .processes import Processes, signal_and_wait
from .progress import Progress
from .rules import fault_rules
from .state import Folder, LabError
from .topology import API_ADDRESS, API_PORT, DNS_ADDRESS, DNS_SERVICE, Topology, load

CONFIG = Path(__file__).resolve().parents[1] / "config" / "default"
DEFAULT_TOPOLOGY = "default"
PEER_SECONDS = 20.0


class Lab:
    """One lab by its name, whether it is up or not.

    Args:
        name: part of the names of its namespaces; labs of different names stand side by side.
        progress: told each step.

    Raises:
        LabError: the name is not usable.
    """

    def __init__(self, name: str = "default", progress: Progress | None = None) -> None:
        self.name, self.folder = name, Folder(name)
        self.progress = progress or Progress(None)
        self._loaded: tuple[Topology, NetworkPlan] | None = None

    # What is there

    @property
    def topology(self) -> Topology:
        """What the lab was made from."""
        return self._description()[0]

    @property
    def plan(self) -> NetworkPlan:
        """Its namespaces, links and addresses."""
        return self._description()[1]

    @property
    def processes(self) -> Processes:
        """Everything that runs for it, except the control plane."""
        return Processes(self.folder.run)

    @property
    def control_plane(self) -> ControlPlane:
        """Its API server; kubectl runs beside it, for no other namespace of this machine reaches it."""
        return ControlPlane(
            self.folder.control_plane,
            find_or_build(),
            address=str(API_ADDRESS),
            port=API_PORT,
            prefix=("ip", "netns", "exec", self.namespace("api")),
            hosts=("api.lab.example",),
        )

    def namespace(self, box: str) -> str:
        """Return the name of the network namespace of a node, a router (nat-NODE) or a service."""
        return namespace(self.name, box)

    def root(self, box: str) -> NodeRoot:
        """Return the files of a box and the words that run a command in it."""
        return NodeRoot(self.name, box, self.folder.nodes / box)

    def _description(self) -> tuple[Topology, NetworkPlan]:
        if self._loaded is None:
            topology = self.folder.topology()
            self._loaded = topology, plan_network(topology)
        return self._loaded

    # Up

    def up(self, source: str = DEFAULT_TOPOLOGY) -> None:
        """Make the lab; return when all its agents were started. What fails half way is removed again.

        Args:
            source: name of a topology of the package's, or the path of a YAML file.

        Raises:
            LabError, NetworkError, TopologyError, ProcessError, BinariesMissing: with the reason.
        """
        topology = load(source)
        self._check_machine(topology)
        binaries, wireguard = find_or_build(), wireguard_go()
        self.folder.create()
        try:
            with self.folder.locked():
                self.folder.record(topology, source)
                self._loaded = topology, plan_network(topology)
                self._build(binaries, wireguard)
        except BaseException:
            self.down()
            raise

    def _check_machine(self, topology: Topology) -> None:
        if os.geteuid() != 0:
            raise LabError("a lab needs root, for network namespaces: run it with sudo")
        if not Path("/dev/net/tun").exists():
            raise LabError("there is no /dev/net/tun, which wireguard-go needs: modprobe tun")
        if not (CONFIG / "kustomization.yaml").exists():
            raise LabError(f"there is no {CONFIG}: a lab needs a checkout of the project, with its config folder")
        missing = wait.missing_tools(["ip", "nft", "turnserver", "ping", *(["dnsmasq"] if topology.names else [])])
        if missing:
            raise LabError(f"{', '.join(missing)} not found: hack/setup installs what a lab needs")

    def _build(self, binaries: Path, wireguard: Path) -> None:
        with self.progress.step("network") as details:
            netns.build(self.name, self.plan)
            details.append(f"{len(self.plan.boxes)} namespaces, {len(self.plan.cables)} links")
        _together(self._start_control_plane, self._start_names_and_stun)
        with self.progress.step("CRDs and RBAC"):
            self.control_plane.kubectl("apply", "--server-side", "-k", str(CONFIG))
            crds = ("crd/wirekubemeshes.wirekube.io", "crd/wirekubepeers.wirekube.io")
            self.control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)
        _together(self._start_operator, lambda: self._start_relay(binaries), lambda: self._start_agents(wireguard))
        self._add_allowed_ips()

    def _start_control_plane(self) -> None:
        with self.progress.step("API server") as details:
            self.control_plane.start()
            details.append(self.control_plane.url)

    def _start_names_and_stun(self) -> None:
        topology = self.topology
        with self.progress.step("STUN" + (", DNS" if topology.names else "")):
            for box in ("api", *(node.name for node in topology.nodes)):
                self.root(box).prepare(parts.resolvers(topology, box))
            self._start("stun", "stun", parts.stun_server(self.folder.path))
            if topology.names:
                self._start("dns", "dns", parts.dns_server(DNS_ADDRESS, topology.names))
            for node in topology.nodes:
                if node.services:
                    cluster = parts.dns_server(
                        DNS_SERVICE, parts.cluster_names(), DNS_ADDRESS if topology.names else None
                    )
                    self._start("cluster-dns", node.name, cluster)
            wait.until_stun_answers(self.namespace("stun"), lambda: self.processes.tail("stun"))

    def _start(
        self,
        name: str,
        box: str,
        argv: Sequence[str],
        values: Sequence[tuple[str, str | None]] = (),
        *,
        own_root: bool = False,
    ) -> None:
        prefix = self.root(box).prefix if own_root else ("ip", "netns", "exec", self.namespace(box))
        self.processes.start(name, [*prefix, *argv], environment(values, dict(os.environ)))

    def _start_operator(self) -> None:
        with self.progress.step("operator"):
            kubeconfig = self.folder.nodes / "api" / "operator.kubeconfig"
            self.control_plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)
            argv = [*parts.PYTHON, "wirekube.controllers.main"]
            self._start("operator", "api", argv, parts.operator_environment(kubeconfig), own_root=True)
            self.control_plane.kubectl("create", "-f", "-", input=json.dumps(parts.mesh_object(self.topology)))

    def _start_relay(self, binaries: Path) -> None:
        relay = self.topology.relay
        if relay is None:
            return
        with self.progress.step("relay") as details:
            allowed = self.folder.run / "relay.keys" if relay.admission == "allow-list" else None
            if allowed is not None:
                allowed.touch(mode=0o600)
                watch = parts.admission(binaries / "kubectl", self.control_plane.kubeconfig, allowed)
                self._start("admission", "api", watch)
            self._start("relay", "relay", parts.relay(self.folder.run, allowed))
            details.append(relay.admission)

    def _start_agents(self, wireguard: Path) -> None:
        with self.progress.step("agents") as details:
            nodes = parts.object_list(
                parts.node_object(each, self.plan.places[each.name]) for each in self.topology.nodes
            )
            names = r'jsonpath={.metadata.name} {.metadata.uid}{"\n"}'
            made = self.control_plane.kubectl("create", "-f", "-", "-o", names, input=json.dumps(nodes)).stdout
            uids = dict(line.split() for line in made.splitlines())
            starts = [lambda name=name: self._start_agent(name, uids[name], wireguard) for name in uids]
            _together(*starts)
            details.append(f"{len(uids)} started, each with a token bound to its Node")

    def _start_agent(self, name: str, uid: str, wireguard: Path) -> None:
        described = self.topology.node(name)
        kubeconfig = self.root(name).folder / "kubeconfig"
        server = parts.agent_server(described)
        node = {"metadata": {"name": name, "uid": uid}}
        self.control_plane.service_account_kubeconfig(NAMESPACE, "wirekube-agent", node, kubeconfig, server=server)
        self._launch_agent(name, wireguard)

    def _launch_agent(self, name: str, wireguard: Path | None) -> None:
        argv = [*parts.PYTHON, "wirekube.agent.main"]
        self._start(f"agent-{name}", name, argv, self._agent_environment(name, wireguard), own_root=True)

    def _agent_environment(self, name: str, wireguard: Path | None) -> list[tuple[str, str | None]]:
        root = self.root(name)
        return parts.agent_environment(self.topology.node(name), root.folder / "kubeconfig", root.state, wireguard)

    def _add_allowed_ips(self) -> None:
        """Give Peers their allowedIPs, as a user does: the Peers are the operator's to make."""
        for node in self.topology.nodes:
            if node.allowed_ips:
                peer, patch = f"wirekubepeer/{node.name}", {"spec": {"allowedIPs": list(node.allowed_ips)}}
                self.control_plane.kubectl("wait", "--for=create", f"--timeout={PEER_SECONDS:.0f}s", peer)
                self.control_plane.kubectl("patch", peer, "--type=merge", "-p", json.dumps(patch))

    # Down

    def down(self) -> None:
        """Remove everything: processes, wireguard-go, namespaces, mounts, files. One that is not there is no error.

        Raises:
            LabError: another command is changing the lab, or this one runs inside it.
        """
        if not self.folder.exists() and not netns.names(self.name):
            return
        if os.getpid() in netns.pids(netns.names(self.name)):
            raise LabError("this command runs inside the lab; run it outside")
        with self.folder.locked() if self.folder.exists() else contextlib.nullcontext(), self.progress.step("down"):
            self._stop_python()
            netns.remove(self.name)
            self.folder.delete()
        self._loaded = None

    def _stop_python(self) -> None:
        """Let our own processes end by themselves, so that they can flush their telemetry; the rest is killed."""
        if not self.folder.run.exists():
            return
        processes = self.processes
        ours = [name for name in processes.names() if name.startswith("agent-") or name in ("operator", "relay")]
        signal_and_wait([pid for name in ours if (pid := processes.pid(name))], wait.SIGTERM, 3.0)

    # On a lab that is up

    def kubectl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator.

        Raises:
            ProcessError: it failed and `check` is set.
        """
        return self.control_plane.kubectl(*arguments, check=check)

    def command(self, node: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the words and the environment that run a command on a node, as its agent would run it.

        Raises:
            LabError: there is no such node.
        """
        if node not in self.plan.places:
            raise LabError(f"no node {node}; there are {', '.join(self.plan.places)}")
        values = self._agent_environment(node, wireguard_go())
        return [*self.root(node).prefix, *argv], environment(values, dict(os.environ))

    def exec(self, node: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a node and return what it printed.

        Raises:
            LabError: it failed and `check` is set.
        """
        words, values = self.command(node, argv)
        done = subprocess.run(words, env=values, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise LabError(f"{node}: {' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def kill_agent(self, node: str) -> None:
        """Kill a node's agent, as a crash would; its WireGuard goes on."""
        self.processes.kill(f"agent-{node}")

    def stop_agent(self, node: str) -> None:
        """Stop a node's agent, as an upgrade would; its WireGuard goes on."""
        self.processes.stop(f"agent-{node}")

    def start_agent(self, node: str) -> None:
        """Start a node's agent again.

        Raises:
            LabError: it runs.
        """
        if self.agent_pid(node) is not None:
            raise LabError(f"the agent of {node} is running")
        self._launch_agent(node, wireguard_go())

    def agent_pid(self, node: str) -> int | None:
        """Return the PID of a node's agent, None when it does not run."""
        return self.processes.pid(f"agent-{node}")

    def block_udp(self, first: str, second: str) -> None:
        """Lose all UDP between two nodes, at the router of each (or on itself, where it has none)."""
        self._lose_udp(first, second, blocked=True)

    def unblock_udp(self, first: str, second: str) -> None:
        """Undo `block_udp`."""
        self._lose_udp(first, second, blocked=False)

    def _lose_udp(self, first: str, second: str, *, blocked: bool) -> None:
        for here, there in ((first, second), (second, first)):
            place = self.plan.places[here]
            with netns.inside(self.namespace(place.router or here)):
                netns.run(["nft", "-f", "-"], fault_rules([self.plan.places[there].public] if blocked else []))


def _together(*tasks: Callable[[], None]) -> None:
    """Run tasks at once; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(max(1, len(tasks))) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
