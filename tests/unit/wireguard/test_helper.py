# SPDX-License-Identifier: Apache-2.0
"""The request to the helper, and the script that takes it, with a program that only says how it was called."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wirekube.agent.config import from_environment
from wirekube.agent.wireguard import helper, userspace
from wirekube.agent.wireguard.backend import BackendError
from wirekube.lab.wait import eventually

pytestmark = pytest.mark.anyio
SCRIPT = Path(userspace.__file__).with_name("userspace.sh")
PROGRAM = '#!/bin/sh\nexport -p | grep -c "LOG_LEVEL=.error"\necho "called: $*"\n'


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "PATIENCE", 0.2)
    monkeypatch.setattr(helper, "POLL", 0.01)


async def test_nobody_to_ask_is_said_in_time(impatient: None, tmp_path: Path) -> None:
    fifo = tmp_path / "userspace"
    with pytest.raises(helper.NoHelper, match="no helper listens"):
        await helper.ask(fifo, "wire_kube")
    os.mkfifo(fifo)  # a dead helper's
    with pytest.raises(helper.NoHelper, match="no helper listens"):
        await helper.ask(fifo, "wire_kube")


async def test_a_helper_that_comes_a_little_later_gets_the_name(tmp_path: Path) -> None:
    fifo, got = tmp_path / "userspace", []

    def serve() -> None:
        os.mkfifo(fifo)
        got.append(fifo.read_text())

    late = threading.Timer(0.2, serve)
    late.start()
    await helper.ask(fifo, "wire_kube")
    late.join(10)
    assert got == ["wire_kube\n"]


async def test_what_is_no_fifo_is_left_as_it_is(impatient: None, tmp_path: Path) -> None:
    fifo = tmp_path / "userspace"
    fifo.write_text("a person's")
    with pytest.raises(BackendError, match="no FIFO: remove it"):
        await helper.ask(fifo, "wire_kube")
    assert fifo.read_text() == "a person's"
    fifo.unlink()
    fifo.symlink_to("/dev/null")
    with pytest.raises(BackendError, match="cannot be written to"):
        await helper.ask(fifo, "wire_kube")


def test_the_fifo_lies_in_the_run_folder() -> None:
    assert from_environment({"NODE_NAME": "n"}).helper == helper.FIFO
    assert from_environment({"NODE_NAME": "n", "WIREKUBE_RUN_DIR": "/x"}).helper == Path("/x/userspace")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """The script under the machine's shell; what it has printed."""
    program, log = tmp_path / "wireguard-go", tmp_path / "log"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WIREKUBE_RUN_DIR": str(tmp_path)}
    with log.open("wb") as out:
        process = subprocess.Popen(["sh", str(SCRIPT)], env=environment, stdout=out, stderr=out)
    yield log.read_text
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert log.read_text().endswith("userspace: stopped\n")


async def test_the_script_runs_the_program_for_each_request_and_only_for_names(
    script: Callable[[], str], tmp_path: Path
) -> None:
    for turn, name in enumerate(("wire_kube", "-f", "wg0"), 1):
        await helper.ask(tmp_path / "userspace", name)
        eventually(lambda turn=turn: script().count("waiting") == turn + 1)  # type: ignore[misc]
    waiting = f"userspace: waiting for a request on {tmp_path}/userspace"
    assert script().splitlines() == [
        waiting,
        "userspace: starting wire_kube", "1", "called: -f wire_kube", "userspace: wire_kube ended with status 0",
        waiting,
        "userspace: no interface name; ignored",
        waiting,
        "userspace: starting wg0", "1", "called: -f wg0", "userspace: wg0 ended with status 0",
        waiting,
    ]  # fmt: skip
