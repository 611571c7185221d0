# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import http.client
import json
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wirekube.agent import localapi
from wirekube.agent.localapi import LocalApi, NodeReport, PairReport

pytestmark = pytest.mark.anyio

PAIR = PairReport(
    "n2", "a2V5", ("10.0.0.2",), ("10.0.0.2/32",), "Direct", "direct", "203.0.113.2:51820", "192.0.2.1:1024",
    ("203.0.113.2:51820",), 1.5, "ProbeAnswered", "sends directly", 3.0, None, 1, 2,
)  # fmt: skip
NODE = NodeReport("n1", "Running", "a2V5", ("10.0.0.1",), "wire_kube", "userspace", 51820, "Easy", None, None, (PAIR,))


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def ask(path: Path) -> tuple[int, bytes]:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def asked(report: Callable[[], NodeReport], path: Path) -> tuple[int, bytes]:
    server = LocalApi(report, asyncio.get_running_loop()).serve(path)
    try:
        return await asyncio.to_thread(ask, path)
    finally:
        await asyncio.to_thread(server.close)


async def test_the_report_is_made_at_each_request_and_has_the_documented_names(tmp_path: Path) -> None:
    status, body = await asked(lambda: replace(NODE, phase="Waiting"), tmp_path / "agent.sock")
    content = json.loads(body)
    assert status == 200
    assert content["phase"] == "Waiting"
    assert content["peers"][0]["rttMs"] == 1.5
    assert content["peers"][0]["accepted"] == ["203.0.113.2:51820"]
    assert not (tmp_path / "agent.sock").exists()


async def test_a_report_that_fails_is_a_500_without_its_text(tmp_path: Path) -> None:
    def broken() -> NodeReport:
        raise RuntimeError("secret")

    status, body = await asked(broken, tmp_path / "agent.sock")
    assert status == 500
    assert b"secret" not in body


async def test_a_loop_that_hangs_is_said_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localapi, "SNAPSHOT_SECONDS", 0.1)
    path = tmp_path / "agent.sock"
    server = LocalApi(lambda: NODE, asyncio.get_running_loop()).serve(path)
    try:
        assert ask(path)[0] == 503  # asked from the loop itself, which so cannot answer
    finally:
        await asyncio.to_thread(server.close)
