# SPDX-License-Identifier: Apache-2.0
"""An upgrade of the agent on a node with the kernel's WireGuard, as the DaemonSet does it: stop, `cleanup --stale`, start.

Both nodes' agents are real processes. There is no API server: they know the mesh from their state folders, as after a
reboot without one. What a relayed pair loses is measured in tests/lab, where an agent starts as fast as on a node.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wirekube.agent import keys
from wirekube.agent.state import CachedState, StateFile
from wirekube.api.constants import DEFAULT_LISTEN_PORT, GROUP_VERSION
from wirekube.lab import reports
from wirekube.lab.wait import until

INTERVAL = 0.1  # seconds between pings
START_SECONDS = 180.0  # emulated, Python alone takes many
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: none, user: {token: none}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
"""


MESH = {
    "apiVersion": GROUP_VERSION,
    "kind": "WireKubeMesh",
    "metadata": {"name": "default", "uid": "mesh"},
    "spec": {},
    "status": {"meshCIDRs": ["10.77.0.0/16", "fd57::/48"]},
}


def peer_object(node: Any, key: bytes) -> dict[str, Any]:
    candidate = {"endpoint": f"{node.address}:{DEFAULT_LISTEN_PORT}", "type": "host"}
    metadata = {"name": node.name, "uid": node.name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    status = {"publicKey": base64.b64encode(key).decode(), "candidates": [candidate]}
    return {
        "apiVersion": GROUP_VERSION, "kind": "WireKubePeer", "metadata": metadata, "spec": {"addresses": list(node.mesh)},
        "status": status,
    }  # fmt: skip


def soon(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, without taking the processor from those who make it true."""
    assert until(lambda: bool(condition()), START_SECONDS, 0.5), f"not within {START_SECONDS:.0f} s: {what}"


class Running:
    """The agent of a node, with folders of its own."""

    def __init__(self, node: Any, folder: Path) -> None:
        self.node, self.state, self.run = node, folder / node.name / "state", folder / node.name / "run"
        for each in (self.state, self.run):
            each.mkdir(parents=True)
        (folder / "kubeconfig").write_text(KUBECONFIG)
        self.log = folder / f"{node.name}.log"
        self.key = keys.load_or_create(self.state, node.name, keys.machine_id()).public
        self._environment = os.environ | {
            "NODE_NAME": node.name,
            "KUBECONFIG": str(folder / "kubeconfig"),
            "WIREKUBE_STATE_DIR": str(self.state),
            "WIREKUBE_RUN_DIR": str(self.run),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.node.inside(), self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wirekube.agent.main"], env=self._environment, stderr=log
            )

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, self.log.read_text()

    def cleanup(self, *words: str) -> str:
        with self.node.inside():
            return subprocess.run(
                [sys.executable, "-m", "wirekube.agent.main", "cleanup", *words],
                env=self._environment, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip

    def answers(self) -> None:
        """Wait until the agent answers at its socket."""
        soon(lambda: reports.fetch(self.run), f"the agent of {self.node.name} answers")

    def path(self, other: Running) -> str:
        """Return by which path the agent says that it reaches another; what it has not said is empty."""
        body = reports.fetch(self.run)
        report = reports.parse(body) if body else None
        return report.pairs[other.node.name].state if report and other.node.name in report.pairs else ""


class Pings:
    """Pings from a node, until they are ended."""

    def __init__(self, node: Any, address: str, file: Path) -> None:
        self._file = file
        with node.inside(), file.open("w") as output:
            self._process = subprocess.Popen(["ping", "-n", "-i", str(INTERVAL), address], stdout=output)

    def answered(self) -> list[int]:
        return [int(each) for each in re.findall(r"icmp_seq=(\d+) ttl", self._file.read_text())]

    def more(self, count: int) -> None:
        """Wait for more answers."""
        wanted = len(self.answered()) + count
        soon(lambda: len(self.answered()) >= wanted, f"{count} more pings are answered")

    def end(self) -> list[int]:
        """Return the numbers of the pings that were not answered, up to the last that was."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        answered = self.answered()
        return sorted(set(range(1, max(answered) + 1)) - set(answered))


@pytest.fixture
def agents(wire: Any, tmp_path: Path) -> Iterator[tuple[Running, Running]]:
    """Both agents, which have found each other."""
    a, b = (Running(node, tmp_path) for node in wire)
    peers = [peer_object(each.node, each.key) for each in (a, b)]
    try:
        for each in (b, a):
            StateFile(each.state).save(CachedState(MESH, peers), 0.0, force=True)
            each.start()
            each.answers()
        soon(lambda: a.path(b) == b.path(a) == "Direct", "both say Direct")
        yield a, b
    finally:
        for each in (a, b):
            print(each.log.read_text())  # pytest shows it when the test failed
            each.stop()
            each.cleanup()


@pytest.mark.timeout(600)
def test_an_upgrade_loses_no_packet(agents: Any, tmp_path: Path, record_property: Any) -> None:
    a, b = agents
    before = a.node.call("wg", "show", "wire_kube", "dump").split()[:3]
    pings = Pings(a.node, b.node.mesh[0].partition("/")[0], tmp_path / "pings")
    pings.more(10)
    begin = time.monotonic()
    a.stop()
    assert "it stays" in a.cleanup("--stale")
    a.start()
    a.answers()
    took = time.monotonic() - begin
    soon(lambda: a.path(b) == b.path(a) == "Direct", "both say Direct again")
    pings.more(10)
    assert pings.end() == []
    record_property("seconds without an agent", round(took, 1))
    assert a.node.call("wg", "show", "wire_kube", "dump").split()[:3] == before
