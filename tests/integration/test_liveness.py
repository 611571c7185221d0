# SPDX-License-Identifier: Apache-2.0
"""The operator's process and agents' Leases on a real API server: who is silent, who only seems to be."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wirekube.agent.lease import LEASE, LeaseKeeper
from wirekube.lab.wait import eventually
from wirekube.runtime.client import Client

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
LEASES = "wirekube-node-lease"
NAMES = ("lv-a", "lv-b", "lv-c", "lv-d")
RENEW, STALE = 1.5, 12.0  # longer than the pauses of an agent and of the operator after an outage
QUICK = f"""
import os, anyio
from wirekube.controllers.liveness import Timing
from wirekube.controllers.assembly import assemble
from wirekube.controllers.main import from_environment
from wirekube.runtime.client import Client
from wirekube.telemetry import noop

async def main():
    config = from_environment(os.environ)
    client = await Client.connect(kubeconfig=config.kubeconfig)
    timing = Timing(renew={RENEW}, stale={STALE})
    await assemble(client, noop(), namespace=config.namespace, timing=timing).run()

anyio.run(main)
"""

pytestmark = pytest.mark.timeout(150)


class Agents:
    """Renews the Leases of some nodes by the agent's own code, in a thread."""

    def __init__(self, kubeconfig: str, every: float) -> None:
        self.alive: set[str] = set()
        self.renewed: dict[str, float] = {}
        self._kubeconfig, self._every = kubeconfig, every
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._end = asyncio.Event()

    async def _run(self) -> None:
        client = await Client.connect(kubeconfig=self._kubeconfig)

        def keep(name: str) -> asyncio.Task[None]:
            async def renew(lease: Any) -> bool:
                if name not in self.alive:
                    return False
                await client.apply(LEASE, lease, field_manager="wirekube-agent")
                self.renewed[name] = time.monotonic()
                return True

            return asyncio.create_task(LeaseKeeper(name, renew, lambda: False, every=self._every).run())

        tasks = [keep(name) for name in NAMES]
        await self._end.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await client.close()

    def __enter__(self) -> Agents:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    def all_renewed_since(self, moment: float) -> bool:
        return all(self.renewed.get(name, 0.0) > moment for name in self.alive)


class Cluster:
    def __init__(self, plane: Any) -> None:
        self.plane, self.kubectl = plane, plane.kubectl

    def items(self, what: str, *words: str) -> dict[str, Any]:
        done = self.kubectl("get", what, *words, "-o", "json", check=False)
        return {each["metadata"]["name"]: each for each in json.loads(done.stdout)["items"]} if done.stdout else {}

    def join(self, name: str) -> None:
        """Make a Node, wait for its Peer, and report in it as an agent does."""
        labels = {"wirekube.io/vpn-enabled": "true"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "-f", "-", input=json.dumps(node))
        self.kubectl("wait", "--for=create", "--timeout=20s", f"wkpeer/{name}")
        up = {"type": "DataPlaneReady", "status": "True", "reason": "Up", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        key = base64.b64encode(name.encode().ljust(32)).decode()
        body = {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}}
        body |= {"status": {"publicKey": key, "conditions": [up]}}
        words = ("apply", "--server-side", "--subresource=status", "--field-manager=wirekube-agent", "-f", "-")
        self.kubectl(*words, input=json.dumps(body))

    def ready(self) -> dict[str, str]:
        """Return STATUS REASON of each Peer's Ready."""
        return {name: condition(peer, "Ready") for name, peer in self.items("wkpeer").items()}

    def mesh(self, kind: str) -> str:
        return condition(self.items("wkmesh").get("default", {}), kind)

    def versions(self) -> dict[str, str]:
        return {name: peer["metadata"]["resourceVersion"] for name, peer in self.items("wkpeer").items()}


def condition(obj: Any, kind: str) -> str:
    found = [each for each in obj.get("status", {}).get("conditions", []) if each["type"] == kind]
    return f"{found[0]['status']} {found[0]['reason']}" if found else ""


FINE = dict.fromkeys(NAMES, "True Ready")


@contextmanager
def operator(kubeconfig: str, log: Path, *command: str) -> Iterator[None]:
    environment = os.environ | {"KUBECONFIG": kubeconfig, "WIREKUBE_HEALTH": "127.0.0.1:0"}
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *command], env=environment, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def quick(tmp_path: Path, control_plane: Any) -> tuple[str, Path, str, str]:
    """An operator that calls an agent silent after 12 s."""
    return control_plane.kubeconfig, tmp_path / "log", "-c", QUICK


@pytest.fixture
def cluster(control_plane: Any) -> Iterator[Cluster]:
    kubectl = control_plane.kubectl
    for part in (("-f", "config/default/namespace.yaml"), ("-k", "config/crd")):
        kubectl("apply", "--server-side", part[0], str(ROOT / part[1]))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    mesh = {"apiVersion": API, "kind": "WireKubeMesh", "metadata": {"name": "default"}}
    kubectl("apply", "-f", "-", input=json.dumps(mesh))
    yield Cluster(control_plane)
    kubectl("delete", "nodes", *NAMES, "--ignore-not-found")
    kubectl("delete", "wkpeer", *NAMES, "--ignore-not-found")
    kubectl("delete", "leases", "-n", LEASES, "--all")
    kubectl("delete", "wkmesh", "default")


def test_a_silent_agent_is_noticed_within_a_minute_and_its_return_at_once(
    cluster: Cluster, tmp_path: Path, control_plane: Any
) -> None:
    run = operator(control_plane.kubeconfig, tmp_path / "log", "-m", "wirekube.controllers.main")
    with run, Agents(control_plane.kubeconfig, 5.0) as agents:
        for name in NAMES[:3]:
            cluster.join(name)
        agents.alive = set(NAMES[:3])
        for name in NAMES[:3]:
            cluster.kubectl("wait", "--for=condition=Ready", "--timeout=30s", f"wkpeer/{name}")
        cluster.kubectl("wait", "--for=condition=AgentsReporting", "--timeout=30s", "wkmesh/default")
        agents.alive = {"lv-a", "lv-b"}
        died = time.monotonic()
        # A Lease that nobody renews, of a node that is not in the mesh.
        cluster.kubectl("create", "-n", LEASES, "-f", "-", input=json.dumps(stray()))
        eventually(lambda: cluster.ready()["lv-c"] == "False AgentSilent", 60)
        took = time.monotonic() - died
        print(f"MEASURED a dead agent is noticed: {took:.1f} s")
        assert time.monotonic() - agents.renewed["lv-c"] >= 50
        assert took < 60
        assert cluster.mesh("AgentsReporting") == "True AgentsReport"
        assert "AgentSilent" in cluster.kubectl("get", "events", "-n", "default").stdout
        cluster.kubectl("wait", "-n", LEASES, "--for=delete", "--timeout=20s", "lease/lv-stray")
        agents.alive = set(NAMES[:3])
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=10s", "wkpeer/lv-c")


def stray() -> dict[str, Any]:
    metadata = {"name": "lv-stray", "namespace": LEASES}
    spec = {"holderIdentity": "lv-stray", "renewTime": "2026-01-01T00:00:00.000000Z"}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def settled(cluster: Cluster, agents: Agents) -> dict[str, str]:
    """Let all nodes join and report; return the versions of their Peers once nothing is written any more."""
    for name in NAMES:
        cluster.join(name)
    agents.alive = set(NAMES)
    eventually(lambda: cluster.ready() == FINE and cluster.mesh("Ready") == "True Ready")
    eventually(lambda: cluster.mesh("AgentsReporting") == "True AgentsReport")
    return cluster.versions()


def test_an_outage_of_the_api_server_and_most_agents_away_change_no_peer(
    cluster: Cluster, quick: tuple[str, Path, str, str], control_plane: Any
) -> None:
    with operator(*quick), Agents(control_plane.kubeconfig, RENEW) as agents:
        before = settled(cluster, agents)
        reporting = cluster.items("wkmesh")["default"]["status"]["conditions"]

        control_plane.stop()
        away = time.monotonic()
        agents.alive = set()
        eventually(lambda: time.monotonic() - away > STALE + 1, STALE * 2, "the outage outlasts every Lease")
        control_plane.launch()
        # The operator follows again within 5 s, before the agents do: their Leases are old, and yet they are not silent.
        back = time.monotonic()
        while time.monotonic() < back + 6:
            assert cluster.items("wkmesh")["default"]["status"]["conditions"] == reporting
        agents.alive = set(NAMES)
        eventually(lambda: agents.all_renewed_since(back))
        # A verdict that the outage has led to would come within the time that a verdict takes.
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            assert cluster.versions() == before
        assert cluster.items("wkmesh")["default"]["status"]["conditions"] == reporting

        # Three of four fall silent: one condition of the Mesh, and no Peer.
        agents.alive = {"lv-a"}
        eventually(lambda: cluster.mesh("AgentsReporting") == "False MostAgentsSilent")
        assert cluster.mesh("Ready") == "False MostAgentsSilent"
        assert cluster.versions() == before
        # Two are back: that is not most any more, and the last one is judged by itself.
        agents.alive = {"lv-a", "lv-b", "lv-c"}
        eventually(lambda: cluster.ready() == FINE | {"lv-d": "False AgentSilent"})
        eventually(lambda: cluster.mesh("Ready") == "True Ready")
        after = cluster.versions()
        assert {name for name in NAMES if after[name] != before[name]} == {"lv-d"}

    # A new operator does not take back what it does not know better, and sees that the agent is back.
    with operator(*quick), Agents(control_plane.kubeconfig, RENEW) as agents:
        agents.alive = {"lv-a", "lv-b", "lv-c"}
        cluster.kubectl("label", "node", "lv-a", "wirekube.io/vpn-enabled-")
        cluster.kubectl("wait", "--for=delete", "--timeout=20s", "wkpeer/lv-a")  # so it works
        agents.alive -= {"lv-a"}
        assert cluster.ready()["lv-d"] == "False AgentSilent"
        assert cluster.versions()["lv-d"] == after["lv-d"]
        # The Lease of a node that left goes when nobody renews it any more.
        cluster.kubectl("wait", "-n", LEASES, "--for=delete", "--timeout=30s", "lease/lv-a")
        agents.alive |= {"lv-d"}
        eventually(lambda: cluster.ready()["lv-d"] == "True Ready")
