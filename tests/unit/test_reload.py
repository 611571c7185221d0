# SPDX-License-Identifier: Apache-2.0
"""The first process of a container in development: what it does is seen in what its command prints."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "config/dev/reload.sh"
# Says which process it is, and ends with the status that the file beside it holds, or when told to.
COMMAND = 'status=$(cat "$TMPDIR/status" 2>&-); echo "$$"; [ -z "$status" ] || exit "$status"; exec sleep 60'

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            ["sh", str(SCRIPT), *words], env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the command prints; pytest's time-out bounds the wait."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_command_starts_anew_in_the_same_container(start: Start):
    container = start("run", "sh", "-c", COMMAND)
    first = line(container)
    assert start("restart").wait() == 0
    second = line(container)
    assert first
    assert second
    assert first != second
    assert container.poll() is None
    assert not Path("/proc", first).exists()


def test_a_command_that_fails_before_any_change_ends_the_container(start: Start, tmp_path: Path):
    (tmp_path / "status").write_text("3")
    assert start("run", "sh", "-c", COMMAND).wait() == 3


def test_a_command_that_fails_after_a_change_waits_for_the_next(start: Start, tmp_path: Path):
    container = start("run", "sh", "-c", COMMAND)
    line(container)
    (tmp_path / "status").write_text("1")
    start("restart").wait()
    failed = line(container)
    (tmp_path / "status").unlink()
    start("restart").wait()
    assert line(container) != failed
    assert container.poll() is None


def test_the_command_gets_its_time_to_stop(start: Start):
    container = start("run", "sh", "-c", 'trap "echo stopping; exit 0" TERM; echo here; while :; do sleep 0.1; done')
    assert line(container) == "here"
    container.terminate()
    assert line(container) == "stopping"
    assert container.wait() == 0


def test_arguments_reach_the_command_unchanged(start: Start):
    container = start("run", "printf", "%s|", "a b", "--flag=*", "")
    assert container.wait() == 0
    assert container.communicate()[0] == "a b|--flag=*||"


def test_what_it_does_not_know_it_refuses(start: Start):
    assert start("again").wait() == 2
