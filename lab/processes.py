# SPDX-License-Identifier: Apache-2.0
"""Background processes that outlive the command that starts them, and can be found again by a later one.

Each has a log file and a record of its PID with its start time: a PID alone may be somebody else's by now.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.02
_STARTED: list[subprocess.Popen[bytes]] = []  # kept, for an object that goes while its process runs is a warning


class ProcessError(Exception):
    """A process could not be started or did not get ready; the message ends with the last lines of its log."""


def start_time(pid: int) -> str | None:
    """Return the kernel's start time of a live process (clock ticks since boot), None for a dead or unknown one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]  # proc(5): field 22, counted from the one after the name


def signal_and_wait(pids: Sequence[int], first: signal.Signals, deadline: float) -> None:
    """Signal processes, wait until all are gone, and kill those that stay beyond the deadline (seconds)."""
    known = {pid: start_time(pid) for pid in pids}
    for number, limit in ((first, deadline), (signal.SIGKILL, 5.0)):
        alive = [pid for pid, started in known.items() if started and start_time(pid) == started]
        for pid in alive:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        end = time.monotonic() + limit
        while time.monotonic() < end and any(start_time(pid) == known[pid] for pid in alive):
            _reap(alive)
            time.sleep(POLL_SECONDS)


def _reap(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


class Processes:
    """The processes of one lab or one test, recorded in a folder.

    Args:
        folder: where the records (`NAME.pid`) and logs (`NAME.log`) are; made when it is absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Start a process in a session of its own and return its PID.

        Raises:
            ProcessError: the program is missing.
        """
        with self.log(name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, cwd="/"
                )
            except OSError as error:
                raise ProcessError(f"{name}: cannot start {argv[0]}: {error.strerror}") from error
        _STARTED.append(process)
        self._record(name).write_text(json.dumps({"pid": process.pid, "start": start_time(process.pid)}))
        return process.pid

    def pid(self, name: str) -> int | None:
        """Return the PID of a recorded process that still runs."""
        try:
            record = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        alive = record["start"] is not None and start_time(record["pid"]) == record["start"]
        return int(record["pid"]) if alive else None

    def names(self) -> list[str]:
        """Return the names of all that was ever started here."""
        return sorted(path.stem for path in self.folder.glob("*.pid"))

    def stop(self, name: str, deadline: float = 10.0) -> None:
        """Stop one process and forget it; one that is not there is no error."""
        if (pid := self.pid(name)) is not None:
            signal_and_wait([pid], signal.SIGTERM, deadline)
        self._record(name).unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """Kill one process, as a crash would."""
        if (pid := self.pid(name)) is not None:
            signal_and_wait([pid], signal.SIGKILL, 5.0)
        self._record(name).unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Return the path of the log."""
        return self.folder / f"{name}.log"

    def tail(self, name: str, lines: int = 5) -> str:
        """Return the last lines of the log, for an error message."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.pid"
