# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wirekube.lab.parts import kept_running
from wirekube.lab.processes import start_time
from wirekube.lab.wait import eventually


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    return tmp_path / "pids"


@pytest.fixture
def keeper(numbers: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = f"echo $$ >>{numbers}; exec sleep 300"
    with subprocess.Popen(kept_running(["sh", "-c", script]), stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def pids(numbers: Path) -> list[int]:
    return [int(line) for line in numbers.read_text().split()] if numbers.exists() else []


def test_what_ends_is_started_again_and_sigterm_ends_both(keeper: subprocess.Popen[bytes], numbers: Path) -> None:
    first = eventually(lambda: pids(numbers))[0]
    subprocess.run(["kill", "-KILL", str(first)], check=True)
    second = eventually(lambda: pids(numbers)[1:])[0]
    keeper.send_signal(signal.SIGTERM)
    keeper.wait(10)
    assert keeper.stderr is not None
    assert b"ended with status 137; starting again" in keeper.stderr.read()
    assert start_time(second) is None
    assert pids(numbers) == [first, second]
