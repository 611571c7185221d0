# SPDX-License-Identifier: Apache-2.0
"""A lab that is up: where its parts are, and what can be done with them. `up.py` makes one, `down.py` removes it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import netns, parts, reports
from .controlplane import ControlPlane, find_or_build
from .controlplane.binaries import wireguard_go
from .noderoot import NodeRoot, environment
from .plan import NetworkPlan, namespace, plan_network
from .processes import Processes
from .progress import Progress
from .rules import fault_rules
from .state import Folder, LabError
from .topology import API_ADDRESS, API_PORT, Topology

DEFAULT_NAME = "default"


class Lab:
    """One lab by its name, whether it is up or not.

    Args:
        name: part of the names of its namespaces; labs of different names stand side by side.
        progress: told each step.

    Raises:
        LabError: the name is not usable.
    """

    def __init__(self, name: str = DEFAULT_NAME, progress: Progress | None = None) -> None:
        self.name, self.folder = name, Folder(name)
        self.progress = progress or Progress(None)
        self._description: tuple[Topology, NetworkPlan] | None = None

    # Where things are

    @property
    def topology(self) -> Topology:
        """What the lab was made from."""
        return self._described()[0]

    @property
    def plan(self) -> NetworkPlan:
        """Its namespaces, links and addresses."""
        return self._described()[1]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes, in the topology's order."""
        return tuple(node.name for node in self.topology.nodes)

    @property
    def processes(self) -> Processes:
        """Everything that runs for it, except the control plane.

        Raises:
            LabError: the lab is not up.
        """
        self._described()  # before a folder is made for a lab that is not there
        return Processes(self.folder.run)

    @property
    def control_plane(self) -> ControlPlane:
        """Its API server; kubectl runs beside it, for nothing else on this machine reaches it.

        Raises:
            LabError: the lab is not up.
        """
        self._described()
        return ControlPlane(
            self.folder.control_plane,
            find_or_build(),
            address=str(API_ADDRESS),
            port=API_PORT,
            prefix=("ip", "netns", "exec", self.namespace("api")),
        )

    def namespace(self, box: str) -> str:
        """Return the name of the network namespace of a node, a router (nat-NODE) or a service."""
        return namespace(self.name, box)

    def root(self, box: str) -> NodeRoot:
        """Return the files of a box and the words that run a command in it."""
        return NodeRoot(self.name, box, self.folder.nodes / box)

    def _described(self) -> tuple[Topology, NetworkPlan]:
        if self._description is None:
            topology = self.folder.topology()
            self._description = topology, plan_network(topology)
        return self._description

    # Commands

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """Run kubectl as administrator; return what it printed.

        Raises:
            ProcessError: it failed and `check` is set.
        """
        return self.control_plane.kubectl(*arguments, input=input, check=check).stdout

    def kubectl_command(self, arguments: Sequence[str]) -> list[str]:
        """Return the words that run kubectl as administrator on this terminal.

        Raises:
            LabError: the lab is not up.
        """
        prefix = ("ip", "netns", "exec", self.namespace("api"))
        return [*prefix, str(find_or_build() / "kubectl"), "--kubeconfig", self.control_plane.kubeconfig, *arguments]

    def command(self, node: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the words and the environment that run a command on a node, as its agent would run it.

        Raises:
            LabError: there is no such node.
        """
        self._known(node)
        return [*self.root(node).prefix, *argv], self._agent_environment(node)

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

    def start(
        self, name: str, box: str, argv: Sequence[str], env: dict[str, str] | None = None, *, own_root: bool = False
    ) -> None:
        """Start a background process in a box.

        Args:
            name: of the process, for its record and log.
            box: where it runs.
            argv: the command.
            env: its environment; this process's if None.
            own_root: whether it sees the box's own files.
        """
        prefix = self.root(box).prefix if own_root else ("ip", "netns", "exec", self.namespace(box))
        self.processes.start(name, [*prefix, *argv], env)

    def _known(self, node: str) -> None:
        if node not in self.nodes:
            raise LabError(f"no node {node}; there are {', '.join(self.nodes)}")

    # The relay

    @property
    def relay_keys(self) -> Path | None:
        """The file of the keys that the relay admits; None when it admits every key."""
        relay = self.topology.relay
        return self.folder.run / "relay.keys" if relay is not None and relay.admission == "allow-list" else None

    def start_relay(self, index: int = 0) -> None:
        """Start one of the relay's processes.

        Raises:
            LabError: the topology has no such relay process.
        """
        relay = self.topology.relay
        if relay is None or index >= relay.replicas:
            raise LabError(f"there is no relay process {index + 1}")
        command = parts.relay(self.folder.run, self.relay_keys, index, relay.replicas)
        self.start(parts.relay_name(index), "relay", command)

    # Agents

    def start_agent(self, node: str) -> None:
        """Start a node's agent.

        Raises:
            LabError: it runs, or there is no such node.
        """
        self._known(node)
        if self.agent_pid(node) is not None:
            raise LabError(f"the agent of {node} is running")
        argv = [*parts.PYTHON, "wirekube.agent.main"]
        self.start(f"agent-{node}", node, argv, self._agent_environment(node), own_root=True)

    def stop_agent(self, node: str) -> None:
        """Stop a node's agent, as an upgrade would; its WireGuard goes on."""
        self._known(node)
        self.processes.stop(f"agent-{node}")

    def kill_agent(self, node: str) -> None:
        """Kill a node's agent, as a crash would; its WireGuard goes on."""
        self._known(node)
        self.processes.kill(f"agent-{node}")

    def agent_pid(self, node: str) -> int | None:
        """Return the PID of a node's agent, None when it does not run."""
        return self.processes.pid(f"agent-{node}")

    def report(self, node: str) -> reports.Report | None:
        """Return what a node's agent says about its pairs, None when it does not answer."""
        body = reports.fetch(self.run_dir(node))
        return reports.parse(body) if body else None

    def reports(self) -> dict[str, reports.Report | None]:
        """Return what all agents say."""
        return {node: self.report(node) for node in self.nodes}

    def run_dir(self, node: str) -> Path:
        """Return the agent's run folder, as this machine sees it."""
        return self.root(node).run / "wirekube"

    def _agent_environment(self, node: str) -> dict[str, str]:
        root = self.root(node)
        described = self.topology.node(node)
        values = parts.agent_environment(described, root.folder / "kubeconfig", root.state, wireguard_go())
        return environment(values, dict(os.environ))

    # Mesh addresses and faults

    def mesh_addresses(self) -> dict[str, list[str]]:
        """Return each node's mesh addresses, IPv4 first, as its Peer has them; none while the operator is at it."""
        lines = self.kubectl(
            "get", "wirekubepeers", "-o", r'jsonpath={range .items[*]}{.metadata.name} {.spec.addresses[*]}{"\n"}{end}'
        )
        found = {line.split()[0]: line.split()[1:] for line in lines.splitlines() if line.strip()}
        return {node: [address.split("/")[0] for address in found.get(node, [])] for node in self.nodes}

    def block_udp(self, first: str, second: str) -> None:
        """Lose all UDP between two nodes, at the router of each (or on itself, where it has none)."""
        self._lose_udp(first, second, blocked=True)

    def unblock_udp(self, first: str, second: str) -> None:
        """Undo `block_udp`."""
        self._lose_udp(first, second, blocked=False)

    def _lose_udp(self, first: str, second: str, *, blocked: bool) -> None:
        for here, there in ((first, second), (second, first)):
            self._known(here)
            place = self.plan.places[here]
            with netns.inside(self.namespace(place.router or here)):
                netns.run(["nft", "-f", "-"], fault_rules([self.plan.places[there].public] if blocked else []))
