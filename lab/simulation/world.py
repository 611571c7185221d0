# SPDX-License-Identifier: Apache-2.0
"""A control plane, an operator and N simulated agents on loopback, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...api.constants import LABEL_VPN_ENABLED, NAMESPACE
from ..controlplane import ControlPlane, find_or_build
from ..idle import WATCHED, Usage, requests, usage
from ..parts import PYTHON
from ..processes import ProcessError
from ..up import CONFIG, CRDS
from .wire import Wire

WHOLE: Final = 2  # agents that are the agents' own code, each in a process of its own
AT_ONCE: Final = 16  # requests
_WATCH_EVENTS: Final = re.compile(r"^apiserver_watch_events_total\{(.*)\} (\S+)$", re.MULTILINE)
_ADMIN: Final = "bench"


@dataclass
class Agents:
    """A process of agents.

    Attributes:
        process: with pipes.
        names: of its agents.
        answers: what it says, as it comes, by the first field.
    """

    process: asyncio.subprocess.Process
    names: list[str]
    answers: dict[str, asyncio.Queue[dict[str, Any]]] = field(default_factory=lambda: defaultdict(asyncio.Queue))

    async def read(self) -> None:
        """Take its answers until it ends."""
        assert self.process.stdout is not None  # noqa: S101 - a pipe
        while line := await self.process.stdout.readline():
            found = json.loads(line)
            self.answers[next(iter(found))].put_nowait(found)

    def tell(self, **command: Any) -> None:
        """Send a command."""
        assert self.process.stdin is not None  # noqa: S101 - a pipe
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def answer(self, name: str, seconds: float) -> dict[str, Any]:
        """Return the next answer that begins with this field.

        Raises:
            ProcessError: none came in time.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self.answers[name].get()
        except TimeoutError:
            raise ProcessError(f"{len(self.names)} simulated agents: no {name!r} within {seconds:.0f} s") from None


class World:
    """See the module; make it with `world`.

    Attributes:
        names: of the Nodes.
        agents: processes of light agents, then those of the whole ones.
        operator: its process.
    """

    def __init__(self, plane: ControlPlane, folder: Path, count: int) -> None:
        self.plane, self._folder = plane, folder
        self.names = [f"sim-{number:04d}" for number in range(count)]
        self.agents: list[Agents] = []
        self.operator: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._admin: list[Wire] = []

    async def prepare(self) -> None:
        """Install what a cluster has, make Nodes without the label, and start the operator and all agents."""
        await asyncio.to_thread(self._install)
        await self._each(self._node, self.names)
        tokens = dict(zip(self.names, await self._each(self._token, self.names), strict=True))
        self._start_operator()
        whole = self.names[: min(WHOLE, len(self.names) // 2)]
        light = self.names[len(whole) :]
        half = len(light) // 2
        for part in (light[:half], light[half:]):
            await self._start_agents("light", {name: tokens[name] for name in part})
        for name in whole:
            await self._start_agents("whole", {name: self._kubeconfig(name, tokens[name])})
        for each in self.agents:
            await each.answer("ready", 300)

    async def label(self) -> tuple[float, float]:
        """Label all Nodes; return when the first and the last had its label."""
        patch = {"metadata": {"labels": {LABEL_VPN_ENABLED: "true"}}}
        times = await self._each(lambda wire, name: self._patch(wire, name, patch), self.names)
        return min(times), max(times)

    def tell(self, **command: Any) -> None:
        """Send a command to all agents."""
        for each in self.agents:
            each.tell(**command)

    async def answers(self, name: str, seconds: float) -> list[dict[str, Any]]:
        """Return the next answer of each process that begins with this field."""
        return [await each.answer(name, seconds) for each in self.agents]

    async def counters(self) -> tuple[Counter[tuple[str, str]], int]:
        """Return the API server's requests by verb and resource, and the events of all watches so far."""
        text = (await asyncio.to_thread(self.plane.kubectl, "get", "--raw", "/metrics")).stdout
        return requests(text), sum(int(float(value)) for _, value in _WATCH_EVENTS.findall(text))

    async def versions(self) -> dict[str, str]:
        """Return the resourceVersion of each watched object."""
        shown = r'jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'
        done = await asyncio.to_thread(self.plane.kubectl, "get", ",".join(WATCHED), "-o", shown)
        return dict(line.split() for line in done.stdout.splitlines())

    def usage(self) -> dict[str, Usage]:
        """Return what operator, one whole agent, API server and, together, the processes of light agents use."""
        assert self.operator is not None  # noqa: S101 - after `prepare`
        server = self.plane.processes.pid("kube-apiserver")
        found = {"operator": usage(self.operator.pid), "agent": usage(self.agents[-1].process.pid)}
        found |= {"kube-apiserver": usage(server)} if server else {}
        light = [usage(each.process.pid) for each in self.agents[:2]]
        return found | {
            "simulators": Usage(*(sum(getattr(one, part) for one in light) for part in ("cpu", "rss", "pss")))
        }

    async def close(self) -> None:
        """End everything."""
        for each in self.agents:
            with suppress(ProcessLookupError):
                each.process.kill()
            await each.process.wait()
        for task in self._tasks:
            task.cancel()
        if self.operator is not None:
            self.operator.kill()
            self.operator.wait()
        for wire in self._admin:
            wire.close()
        await asyncio.to_thread(self.plane.stop)

    def _install(self) -> None:
        self.plane.start()
        kubectl = self.plane.kubectl
        kubectl("apply", "--server-side", "-k", str(CONFIG))
        kubectl("wait", "--for=condition=Established", "--timeout=30s", *CRDS)
        mesh = {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubeMesh", "metadata": {"name": "default"}}
        kubectl("apply", "-f", "-", input=json.dumps(mesh))
        kubectl("create", "serviceaccount", _ADMIN, "-n", NAMESPACE)
        kubectl(
            "create",
            "clusterrolebinding",
            _ADMIN,
            "--clusterrole=cluster-admin",
            f"--serviceaccount={NAMESPACE}:{_ADMIN}",
        )
        token = kubectl("create", "token", _ADMIN, "-n", NAMESPACE).stdout.strip()
        context = ssl.create_default_context(cafile=self._authority)
        self._admin = [Wire(self.plane.url, token, context) for _ in range(AT_ONCE)]

    @property
    def _authority(self) -> str:
        return str(self.plane.folder / "pki" / "ca.crt")

    async def _each(self, act: Any, names: Iterable[str]) -> list[Any]:
        """Run one request for each name, some at once; return the answers in order."""
        names, results = list(names), dict[str, Any]()

        async def work(wire: Wire, part: list[str]) -> None:
            for name in part:
                results[name] = await act(wire, name)

        await asyncio.gather(*(work(wire, names[at::AT_ONCE]) for at, wire in enumerate(self._admin)))
        return [results[name] for name in names]

    async def _node(self, wire: Wire, name: str) -> None:
        number = int(name.rpartition("-")[2])
        addresses = [{"type": "InternalIP", "address": f"10.77.{number // 250}.{number % 250 + 1}"}]
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}}
        await wire.request("POST", "/api/v1/nodes", body)

    async def _token(self, wire: Wire, name: str) -> str:
        uid = (await wire.request("GET", f"/api/v1/nodes/{name}"))["metadata"]["uid"]
        bound = {"kind": "Node", "apiVersion": "v1", "name": name, "uid": uid}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        body |= {"spec": {"expirationSeconds": 86400, "boundObjectRef": bound}}  # type: ignore[dict-item]
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/wirekube-agent/token"
        return str((await wire.request("POST", path, body))["status"]["token"])

    async def _patch(self, wire: Wire, name: str, patch: Any) -> float:
        await wire.request("PATCH", f"/api/v1/nodes/{name}", patch, "application/merge-patch+json")
        return time.monotonic()

    def _start_operator(self) -> None:
        kubeconfig = self._folder / "operator.kubeconfig"
        self.plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)
        environment = os.environ | {"KUBECONFIG": str(kubeconfig), "WIREKUBE_HEALTH": "127.0.0.1:0"}
        with (self._folder / "operator.log").open("ab") as log:
            self.operator = subprocess.Popen([*PYTHON, "wirekube.controllers.main"], env=environment, stderr=log)

    def _kubeconfig(self, name: str, token: str) -> str:
        path = self._folder / f"{name}.kubeconfig"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "sim",
            "clusters": [{"name": "sim", "cluster": {"server": self.plane.url, "certificate-authority": self._authority}}],
            "users": [{"name": "sim", "user": {"token": token}}],
            "contexts": [{"name": "sim", "context": {"cluster": "sim", "user": "sim"}}],
        }  # fmt: skip
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return str(path)

    async def _start_agents(self, kind: str, nodes: dict[str, str]) -> None:
        if not nodes:
            return
        config = self._folder / f"agents-{len(self.agents)}.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"server": self.plane.url, "ca": self._authority, "kind": kind, "nodes": nodes}))
        with (self._folder / f"agents-{len(self.agents)}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(*PYTHON, "wirekube.lab.simulation.agents", str(config)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, limit=1 << 20,
            )  # fmt: skip
        found = Agents(process, list(nodes))
        self.agents.append(found)
        self._tasks.append(asyncio.create_task(found.read()))


@asynccontextmanager
async def world(folder: Path, count: int) -> AsyncIterator[World]:
    """Make a world of so many nodes, labelled by nobody yet; gone afterwards.

    Raises:
        ProcessError, HttpError, BinariesMissing: with the reason.
    """
    api, etcd = free_ports()
    found = World(ControlPlane(folder / "plane", find_or_build(), port=api, etcd_port=etcd), folder, count)
    try:
        await found.prepare()
        yield found
    finally:
        await found.close()


def free_ports() -> tuple[int, int]:
    """Return a free port, and one whose successor is free, too: etcd takes both."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            api, etcd = one.getsockname()[1], two.getsockname()[1]
        with suppress(OSError), socket.create_server(("127.0.0.1", etcd + 1)):
            return api, etcd
