# SPDX-License-Identifier: Apache-2.0
"""A whole lab for each `test_mesh_*` module, and eyes on it: pings, `wg show`, routes, rules, tables, logs.

A module names its topology by `TOPOLOGY`; `before_agents(lab)`, where it has one, runs before the first agent starts.
WIREKUBE_TEST_LOGS names a folder that keeps the logs of all labs.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wirekube.lab import netns, parts, reports, wait
from wirekube.lab.down import down
from wirekube.lab.lab import Lab
from wirekube.lab.prober import Flow, Prober, longest_gap
from wirekube.lab.up import CONFIG, CRDS, up, wait_for_mesh

INTERFACE = "wire_kube"
PING_SECONDS = 0.02
ANSWER_SECONDS = 1.5
POLL_SECONDS = 0.05
HOST = (
    "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
    "ip -o link", "ip -o addr", "nft list ruleset",
)  # fmt: skip
SYSCTLS = ("ipv4/conf/*/*", "ipv6/conf/*/*", "ipv4/ip_forward")
AGENT = (*parts.PYTHON, "wirekube.agent.main")

Pair = tuple[str, str]


@dataclass(frozen=True)
class WgPeer:
    """A line of `wg show INTERFACE dump`; `handshake` in Unix seconds, 0 for never."""

    endpoint: str
    allowed_ips: frozenset[str]
    handshake: int
    rx: int
    tx: int


@dataclass(frozen=True)
class WgShow:
    """What `wg show INTERFACE dump` says."""

    public_key: str
    listen_port: int
    fwmark: str
    peers: dict[str, WgPeer]

    @property
    def identity(self) -> tuple[object, ...]:
        """What no restart and no change of path may move: keys, port, mark, endpoints, networks."""
        peers = {key: (peer.endpoint, peer.allowed_ips) for key, peer in self.peers.items()}
        return self.public_key, self.listen_port, self.fwmark, peers


def parse_wg(text: str) -> WgShow:
    first, *rest = [line.split("\t") for line in text.splitlines()]
    peers = {}
    for key, _psk, endpoint, networks, handshake, rx, tx, _keepalive in rest:
        allowed = frozenset(networks.split(",")) - {"(none)"}
        peers[key] = WgPeer(endpoint, allowed, int(handshake), int(rx), int(tx))
    return WgShow(first[1], int(first[2]), first[3], peers)


class ObservedLab(Lab):
    """A lab that dumps each node's host before its first agent starts."""

    def __init__(self, name: str, before_agents: Callable[[Lab], None] | None) -> None:
        super().__init__(name)
        self.before: dict[str, dict[str, str]] = {}
        self._before_agents = before_agents

    def start_agent(self, node: str) -> None:
        if self._before_agents is not None:
            self._before_agents(self)
            self._before_agents = None
        if node not in self.before:
            self.before[node] = dump(self, node)
        super().start_agent(node)


def dump(lab: Lab, node: str, commands: Iterable[str] = HOST) -> dict[str, str]:
    """Return all that an agent may change on a host, in the words of ip, nft and (where not asked for less) /proc/sys."""
    with netns.inside(lab.namespace(node)):
        seen = {words: netns.run(words.split()) for words in commands}
        if commands is not HOST:
            return seen
        return seen | dict(_sysctls())


def _sysctls() -> Iterator[tuple[str, str]]:
    for path in sorted(path for pattern in SYSCTLS for path in Path("/proc/sys/net").glob(pattern)):
        try:
            yield str(path), path.read_text().strip()
        except OSError:
            continue  # only for writing, without a value, or of an interface that has just gone


class Pings:
    """Pings under way. Times are monotonic seconds."""

    def __init__(self, prober: Prober) -> None:
        self.flows, self.begin = prober.flows, time.monotonic()

    def more(self, count: int = 25, seconds: float = 15.0) -> None:
        """Wait until each flow has so many more answers."""
        wanted = [len(flow.answers) + count for flow in self.flows]
        enough = wait.until(lambda: all(map(lambda f, n: len(f.answers) >= n, self.flows, wanted)), seconds)
        silent = [f"{f.source} -> {f.target}" for f, n in zip(self.flows, wanted, strict=True) if len(f.answers) < n]
        assert enough, f"no {count} more pings were answered within {seconds} s: {', '.join(silent)}"

    def settle(self) -> None:
        """Wait for the answers that are still under way."""
        now = time.monotonic()
        wait.until(lambda: not self.lost(now - ANSWER_SECONDS, now), ANSWER_SECONDS)

    def lost(self, since: float = 0.0, until: float | None = None) -> int:
        """Return how many requests of a span have no answer; the last ones may be under way, see `settle`."""
        end = time.monotonic() - 0.2 if until is None else until
        count = 0
        for flow in self.flows:
            answered = {sent for sent, _ in list(flow.answers)}
            count += sum(since <= sent <= end and sent not in answered for sent in list(flow.sent))
        return count

    def assert_none_lost(self, since: float = 0.0) -> None:
        """Fail with the wall clock's times of what was lost, as the agents' logs have them."""
        wall = time.time() - time.monotonic()
        words = []
        for flow in self.flows:
            answered = {sent for sent, _ in flow.answers}
            lost = [sent for sent in flow.sent if since <= sent < time.monotonic() - 0.2 and sent not in answered]
            if lost:
                span = " to ".join(
                    f"{datetime.fromtimestamp(wall + each, UTC):%H:%M:%S.%f}" for each in (lost[0], lost[-1])
                )
                words.append(f"{flow.source} -> {flow.target}: {len(lost)} of {len(flow.sent)} lost, {span}")
        print(f"MEASURED lost: {self.lost(since)} of {self.sent} pings, longest gap {self.gap(since or None):.3f} s")
        assert not words, "; ".join(words)

    def gap(self, since: float | None = None) -> float:
        """Return the longest time in which some flow had no answered request."""
        last = min(flow.sent[-1] for flow in self.flows)
        begin, end = self.begin if since is None else since, min(last, time.monotonic() - 0.2)
        return max(longest_gap(list(flow.answers), begin, end) for flow in self.flows)

    @property
    def sent(self) -> int:
        return sum(len(flow.sent) for flow in self.flows)


class Mesh:
    """A lab whose agents run, and what its world says."""

    def __init__(self, lab: ObservedLab) -> None:
        self.lab, self.before = lab, lab.before
        self.addresses = lab.mesh_addresses()
        self.agent = AGENT
        self._identifiers = itertools.count(1, 100)

    # Packets.

    @contextmanager
    def pinging(self, *pairs: Pair, interval: float = PING_SECONDS, version: int = 4) -> Iterator[Pings]:
        """Ping the second of each pair from the first; entered when all are answered, left when the last ones are."""
        flows = [Flow(a, b, self.addresses[b][0 if version == 4 else 1]) for a, b in pairs]
        prober = Prober(flows, self.lab.namespace, interval, first=next(self._identifiers))
        prober.start()
        try:
            wait.until(lambda: all(flow.answers for flow in flows), 20.0)
            pings = Pings(prober)
            pings.more(5)
            yield pings
            pings.settle()
        finally:
            prober.close()

    # The host.

    def net(self, box: str, command: str, text: str = "") -> str:
        """Run a command in the network namespace of a box."""
        with netns.inside(self.lab.namespace(box)):
            return netns.run(command.split(), text)

    def dump(self, node: str, commands: Iterable[str] = HOST) -> dict[str, str]:
        return dump(self.lab, node, commands)

    def changes(self, node: str) -> dict[str, tuple[str | None, str | None]]:
        """Return what differs from the host as it was before its first agent."""
        old, new = self.before[node], self.dump(node)
        return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}

    def wg(self, node: str) -> WgShow:
        return parse_wg(self.lab.exec(node, "wg", "show", INTERFACE, "dump").stdout)

    def has_interface(self, node: str) -> bool:
        return f": {INTERFACE}:" in self.net(node, "ip -o link")

    def wireguard_pids(self, node: str) -> list[int]:
        pids = netns.pids([self.lab.namespace(node)])
        return [pid for pid in pids if _command(pid) == "wireguard-go"]

    def wg_identity(self, node: str) -> tuple[object, ...] | None:
        """Return what a restart may not move, None while there is no interface."""
        shown = self.lab.exec(node, "wg", "show", INTERFACE, "dump", check=False)
        return parse_wg(shown.stdout).identity if shown.returncode == 0 else None

    # Agents.

    def cleanup(self, node: str, *words: str) -> str:
        """Run `wirekube-agent cleanup` on a node; return what it printed."""
        return self.lab.exec(node, *AGENT, "cleanup", *words).stdout

    def answer(self, node: str) -> dict[str, Any] | None:
        """Return what the agent says at its socket, as JSON."""
        return reports.fetch(self.lab.run_dir(node))

    def phase(self, node: str) -> str:
        answer = self.answer(node)
        return answer["phase"] if answer else "-"

    def states(self, a: str, b: str) -> tuple[str, str]:
        return reports.states({a: self.lab.report(a), b: self.lab.report(b)}, a, b)

    def both(self, a: str, b: str, state: str) -> Callable[[], bool]:
        return lambda: self.states(a, b) == (state, state)

    def condition(self, peer: str, kind: str) -> dict[str, Any]:
        """Return a condition of a WireKubePeer; empty when it has none of this type."""
        conditions = self.status(peer).get("conditions", [])
        return next((each for each in conditions if isinstance(each, dict) and each.get("type") == kind), {})

    def status(self, peer: str) -> dict[str, Any]:
        """Return the status of a WireKubePeer."""
        text = self.lab.kubectl("get", "wirekubepeer", peer, "-o", "json", check=False)
        found = json.loads(text).get("status", {}) if text else {}
        return found if isinstance(found, dict) else {}

    def uids(self) -> dict[str, str]:
        """Return the uid of each WireKubePeer."""
        shown = self.lab.kubectl(
            "get",
            "wirekubepeers",
            "-o",
            r'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}',
            check=False,
        )
        return dict(line.split() for line in shown.splitlines() if line.strip())

    def all_ready(self, *peers: str) -> bool:
        return all(self.condition(peer, "Ready").get("status") == "True" for peer in peers)

    def apply_config(self) -> None:
        """Install CRDs and RBAC as the lab did."""
        self.lab.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(CONFIG))
        self.lab.kubectl("wait", "--for=condition=Established", "--timeout=30s", *CRDS)

    def create_mesh(self) -> None:
        """Make the Mesh that was deleted."""
        self.lab.kubectl("create", "-f", "-", input=json.dumps(parts.mesh_object(self.lab.topology)))

    def relax_schema(self, crd: str) -> None:
        """Let the API server take anything for an object of this kind."""
        anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        patch = [{"op": "replace", "path": "/spec/versions/0/schema", "value": anything}]
        self.lab.kubectl("patch", "crd", crd, "--type=json", "-p", json.dumps(patch))

    def patch(self, peer: str, part: str, content: dict[str, Any]) -> bool:
        """Merge something into spec or status of a WireKubePeer; return whether it is there afterwards."""
        more = ["--subresource=status"] if part == "status" else []
        words = ("patch", "wirekubepeer", peer, "--type=merge", *more, "-p", json.dumps({part: content}), "-o", "json")
        text = self.lab.kubectl(*words, check=False)
        found = json.loads(text).get(part, {}) if text else {}
        return all(found.get(key) == value for key, value in content.items())

    def log(self, name: str, since: int = 0) -> str:
        """Return a process's log from this offset on."""
        return self.lab.processes.log(name).read_text(errors="replace")[since:]

    def log_end(self, name: str) -> int:
        path = self.lab.processes.log(name)
        return len(path.read_text(errors="replace")) if path.exists() else 0

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for a condition; return the seconds it took, fail with the agents' last words when it does not come."""
        begin = time.monotonic()
        if not wait.until(condition, seconds, POLL_SECONDS):
            words = "\n".join(f"{node}: {self.lab.processes.tail(f'agent-{node}', 4)}" for node in self.lab.nodes)
            pytest.fail(f"not within {seconds} s: {what}\n{words}")
        return time.monotonic() - begin


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def report(what: str, seconds: float, bound: str) -> None:
    """Print a measured time beside the design's bound; `pytest -rP` and CI's log show it."""
    print(f"MEASURED {what}: {seconds:.2f} s (design: {bound})")


@pytest.fixture(scope="session")
def measured() -> Callable[[str, float, str], None]:
    return report


@pytest.fixture(scope="module")
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """The module's lab, complete; removed at its end whatever happened. No process of it may have shown a traceback."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    stem = request.module.__name__.rpartition("test_mesh_")[2].replace("_", "-")
    lab = ObservedLab(f"t{os.getpid()}-{stem}"[:32], getattr(request.module, "before_agents", None))
    try:
        up(lab, request.module.TOPOLOGY)
        missing = wait_for_mesh(lab)
        assert not missing, f"{missing}: {[lab.processes.tail(f'agent-{node}', 4) for node in lab.nodes]}"
        yield Mesh(lab)
        shown = [name for name in lab.processes.names() if "Traceback" in lab.processes.log(name).read_text()]
        logs = {name: lab.processes.log(name).read_text() for name in shown}
        assert not logs, logs
    finally:
        if kept := os.environ.get("WIREKUBE_TEST_LOGS"):
            shutil.copytree(lab.folder.run, Path(kept) / lab.name, dirs_exist_ok=True)
        down(lab)
