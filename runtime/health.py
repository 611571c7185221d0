# SPDX-License-Identifier: Apache-2.0
"""Liveness, readiness and metrics over HTTP, in the form of Kubernetes' own servers.

`/healthz` (alive) and `/readyz` (ready) answer 200 `ok`, or 500 with a line for each check; `/healthz/NAME` runs one
check; `?verbose` lists them all, `?exclude=a,b` leaves some out. Liveness must not depend on the API server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from .http import HttpServer, Response, Route

log = get_logger("health")

Check = Callable[[], str | None]
CheckKind = Literal["live", "ready"]


class HealthServer:
    """Serve the checks and the metrics of one process.

    Args:
        address: where to listen, see `HttpServer`.
        telemetry: its registry is served at `/metrics`.
        routes: more paths for the same server.
    """

    def __init__(
        self, address: tuple[str, int] | str, telemetry: Telemetry, routes: Mapping[str, Route] | None = None
    ) -> None:
        self._checks: dict[CheckKind, dict[str, Check]] = {"live": {}, "ready": {}}
        self._telemetry = telemetry
        own: dict[str, Route] = {
            "/healthz": lambda query: evaluate("healthz", dict(self._checks["live"]), query),
            "/healthz/": lambda query: evaluate("healthz", dict(self._checks["live"]), query),
            "/readyz": lambda query: evaluate("readyz", dict(self._checks["ready"]), query),
            "/readyz/": lambda query: evaluate("readyz", dict(self._checks["ready"]), query),
            "/metrics": self._metrics,
        }
        self._http = HttpServer(address, own | dict(routes or {}))

    @property
    def port(self) -> int:
        """The TCP port in use."""
        return self._http.port

    def add_check(self, name: str, check: Check, kind: CheckKind = "ready") -> None:
        """Add a check; it runs in the server's threads and returns None when well, else what is wrong.

        What is wrong goes to the log, not to the answer, which anybody may read.
        """
        self._checks[kind] = self._checks[kind] | {name: check}

    def start(self) -> None:
        """Listen and serve, unless it does already; see `HttpServer.start` for what it raises."""
        if not self._http.started:
            self._http.start()

    def close(self) -> None:
        """Stop serving."""
        self._http.close()

    def _metrics(self, _query: dict[str, str]) -> Response:
        return Response(200, generate_latest(self._telemetry.registry), CONTENT_TYPE_LATEST)


def evaluate(name: str, checks: Mapping[str, Check], query: Mapping[str, str]) -> Response:
    """Run checks and answer as Kubernetes does.

    Args:
        name: `healthz` or `readyz`, for the last line.
        checks: by name; one that raises has failed.
        query: `verbose`, `exclude` (names, comma-separated), `path` (the one check to run).
    """
    only = query.get("path", "")
    if only and only not in checks:
        return Response.text("not found\n", 404)
    excluded = {part.strip() for part in query.get("exclude", "").split(",")}
    chosen = {key: check for key, check in checks.items() if (not only or key == only) and key not in excluded}
    failed = {key for key, check in chosen.items() if not _passes(name, key, check)}
    if not failed and "verbose" not in query:
        return Response.text("ok")
    lines = [f"[-]{key} failed: reason withheld" if key in failed else f"[+]{key} ok" for key in chosen]
    lines.append(f"{name} check {'failed' if failed else 'passed'}")
    return Response.text("\n".join(lines) + "\n", 500 if failed else 200)


def _passes(name: str, key: str, check: Check) -> bool:
    try:
        wrong = check()
    except Exception:
        log.exception("a health check raised", endpoint=name, check=key)
        return False
    if wrong is not None:
        log.info("a health check failed", endpoint=name, check=key, problem=wrong)
    return wrong is None
