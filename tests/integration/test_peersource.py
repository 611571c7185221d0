# SPDX-License-Identifier: Apache-2.0
"""The agent's door to Kubernetes against a real API server that can be cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from wirekube.agent import peersource
from wirekube.agent.peersource import WatchedSlices
from wirekube.lab.controlplane import ControlPlane
from wirekube.telemetry import noop

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="marks its sockets: needs root")]


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("apply", "--server-side", "-k", str(ROOT / "config/crd"))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    return control_plane


class Wire:
    """A TCP forwarder to the API server; `cut` makes it refuse and drops what runs."""

    def __init__(self, port: int) -> None:
        self._to, self._writers = port, set[asyncio.StreamWriter]()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def watching(source: WatchedSlices) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def eventually(probe: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not probe():  # noqa: ASYNC110 - the world outside has no event to wait for
            await asyncio.sleep(0.02)


async def test_another_url_is_tried_when_the_one_in_use_is_lost(
    cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peersource, "LOST_SECONDS", 2.0)
    wire = Wire(int(cluster.url.rpartition(":")[2]))
    await wire.open()
    source = WatchedSlices("door", cluster.kubeconfig, (wire.url, None), noop(), lambda: None)
    found = {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubePeerSlice", "metadata": {"name": "peers-1"}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(found | {"peers": [{"name": "door"}]}))
    try:
        async with watching(source):
            await eventually(lambda: source.snapshot().own is not None and source.unhealthy() is None)
            assert source.server == wire.url
            wire.cut()
            await eventually(lambda: source.unhealthy() is not None)
            assert source.snapshot().own is not None, "what was seen stays"
            await eventually(lambda: source.server == cluster.url and source.unhealthy() is None)
            after = json.dumps({"peers": [{"name": "door", "generation": 7}]})
            cluster.kubectl("patch", "wkslice", "peers-1", "--type=merge", "-p", after)
            await eventually(lambda: (source.snapshot().own or {}).get("metadata", {}).get("generation") == 7)
    finally:
        cluster.kubectl("delete", "wkslice", "peers-1", "--ignore-not-found")
