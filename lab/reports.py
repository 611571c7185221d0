# SPDX-License-Identifier: Apache-2.0
"""What the agents of a lab say about their pairs, asked at their sockets, and the table that people see."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

SOCKET = "agent.sock"
ANSWER_SECONDS = 2.5
UNKNOWN = "-"


@dataclass(frozen=True)
class View:
    """One node's view of another: state, the leg in use with its real address, RTT in ms, and the reason."""

    state: str
    leg: str
    endpoint: str
    virtual: str
    rtt: float | None
    reason: str


@dataclass(frozen=True)
class Report:
    """What one agent says: the phase it is in, its own addresses, its view of each other node."""

    node: str
    phase: str
    addresses: tuple[str, ...]
    pairs: Mapping[str, View]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket that is named by its folder, for paths of sockets may have 107 bytes only."""

    def __init__(self, folder: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._folder = folder

    def connect(self) -> None:
        folder = os.open(self._folder, os.O_PATH | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{SOCKET}")
        finally:
            os.close(folder)


def fetch(run_dir: Path) -> dict[str, Any] | None:
    """Ask the agent whose run folder this is; None when it does not answer.

    Returns:
        NodeReport as JSON (agent/localapi.py).
    """
    connection = _UnixConnection(run_dir)
    try:
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        body = json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return body if isinstance(body, dict) else None


def parse(body: Mapping[str, Any]) -> Report:
    """Read an agent's answer; what an older agent does not say is shown as unknown."""
    pairs = {
        each["name"]: View(
            each.get("state") or UNKNOWN,
            each.get("leg") or UNKNOWN,
            each.get("endpoint") or UNKNOWN,
            each.get("virtualEndpoint") or UNKNOWN,
            each.get("rttMs"),
            each.get("reason") or "",
        )
        for each in body.get("peers", ())
    }
    return Report(str(body.get("node")), str(body.get("phase")), tuple(body.get("addresses", ())), pairs)


def states(reports: Mapping[str, Report | None], first: str, second: str) -> tuple[str, str]:
    """Return both sides' state of a pair; `-` for a side that says nothing."""

    def seen(here: str, there: str) -> str:
        report = reports.get(here)
        view = report.pairs.get(there) if report else None
        return view.state if view else UNKNOWN

    return seen(first, second), seen(second, first)


def complete(reports: Mapping[str, Report | None]) -> bool:
    """Tell whether each side of each pair is reached in some way."""
    return all(side in ("Direct", "Relayed") for a, b in combinations(reports, 2) for side in states(reports, a, b))


def missing(reports: Mapping[str, Report | None]) -> list[str]:
    """Return a line for each agent that does not answer and each pair that is not reached."""
    lines = [f"{name}: the agent does not answer" for name, report in reports.items() if report is None]
    for a, b in combinations(reports, 2):
        sides = states(reports, a, b)
        if UNKNOWN not in sides and not set(sides) <= {"Direct", "Relayed"}:
            lines.append(f"{a} <-> {b}: {both(*sides)}")
    return lines


def both(first: str, second: str) -> str:
    """Return two sides' words as one where they agree."""
    return first if first == second else f"{first} / {second}"


def pair_rows(reports: Mapping[str, Report | None]) -> list[list[str]]:
    """Return a row for each direction: the state, and the real leg behind the virtual endpoint."""
    nobody = View(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, None, "")
    down = replace(nobody, reason="agent down")
    rows = []
    for here, there in ((a, b) for a in reports for b in reports if a != b):
        report = reports[here]
        view = (report.pairs.get(there) or nobody) if report else down
        rtt = f"{view.rtt:.1f} ms" if view.rtt is not None else UNKNOWN
        rows.append([here, there, view.state, view.leg, view.endpoint, view.virtual, rtt, view.reason])
    return rows


PAIR_HEADER = ("FROM", "TO", "STATE", "LEG", "REAL ENDPOINT", "VIRTUAL ENDPOINT", "RTT", "REASON")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns as kubectl aligns them."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
