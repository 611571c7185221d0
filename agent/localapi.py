# SPDX-License-Identifier: Apache-2.0
"""The agent's own word about each pair, on a Unix socket that only root reads.

Pairs are N x N facts: they would melt the API server as status, so the agent serves them itself (design: "Pairs").
`GET /v1/status` answers with one JSON object; its keys are documented at `NodeReport` and `PairReport`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..runtime.http import HttpServer, Response

SNAPSHOT_SECONDS = 2.0  # the loop answers in milliseconds; longer means that it hangs, and the caller should hear that


@dataclass(frozen=True)
class PairReport:
    """One remote node as this agent sees it. Durations are in seconds, `rttMs` in milliseconds; None is unknown."""

    name: str
    publicKey: str  # noqa: N815 - these names are the JSON of the local API, in Kubernetes' style
    addresses: tuple[str, ...]
    allowedIPs: tuple[str, ...]  # noqa: N815
    state: str
    leg: str
    endpoint: str | None
    virtualEndpoint: str | None  # noqa: N815
    accepted: tuple[str, ...]
    rttMs: float | None  # noqa: N815
    reason: str
    message: str
    sinceSeconds: float  # noqa: N815
    lastHandshakeSecondsAgo: float | None  # noqa: N815
    rxBytes: int  # noqa: N815
    txBytes: int  # noqa: N815


@dataclass(frozen=True)
class NodeReport:
    """This node and all its pairs."""

    node: str
    phase: str
    publicKey: str | None  # noqa: N815
    addresses: tuple[str, ...]
    interface: str | None
    backend: str | None
    listenPort: int | None  # noqa: N815
    nat: str
    relay: str | None
    apiServer: str | None  # noqa: N815
    peers: tuple[PairReport, ...]


class LocalApi:
    """Serves the report. Requests run in the server's threads; the report is made in the agent's loop."""

    def __init__(self, report: Callable[[], NodeReport], loop: asyncio.AbstractEventLoop) -> None:
        self._report, self._loop = report, loop

    def serve(self, path: Path) -> HttpServer:
        """Start serving on the socket; the caller closes what is returned."""
        server = HttpServer(str(path), {"/v1/status": self._status})
        server.start()
        return server

    def _status(self, _query: dict[str, str]) -> Response:
        async def make() -> NodeReport:
            return self._report()

        future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            report = asdict(future.result(SNAPSHOT_SECONDS))
        except TimeoutError:
            future.cancel()
            return Response.text("the agent's event loop does not answer\n", 503)
        return Response(200, json.dumps(report).encode(), "application/json")
