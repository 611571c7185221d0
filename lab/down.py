# SPDX-License-Identifier: Apache-2.0
"""Leaves the machine as it was before the lab: also after a crash of `up`, and whatever was killed.

Whatever runs in the lab's namespaces belongs to it, recorded or not: wireguard-go has put itself into the background.
"""

from __future__ import annotations

import contextlib
import os
import signal

from . import netns
from .lab import Lab
from .noderoot import MARK
from .processes import Processes, signal_and_wait
from .state import LabError

GRACE_SECONDS = 3.0


def down(lab: Lab) -> None:
    """Remove everything: processes, wireguard-go, namespaces, mounts, files. One that is not there is no error.

    Raises:
        LabError: another command is changing the lab, or this one runs inside it.
    """
    if MARK.exists() or os.getpid() in netns.pids(netns.names(lab.name)):
        raise LabError("this command runs inside a lab; run it outside")
    if not lab.folder.exists() and not netns.names(lab.name):
        return
    with lab.folder.locked() if lab.folder.exists() else contextlib.nullcontext(), lab.progress.step("down"):
        remove(lab)


def remove(lab: Lab) -> None:
    """Do what `down` does, for a caller who holds the lock."""
    _stop_python(lab)
    netns.remove(lab.name)
    lab.folder.delete()


def _stop_python(lab: Lab) -> None:
    """Let our own processes end by themselves, so that they can flush their telemetry; the rest is killed."""
    if not lab.folder.run.exists():
        return
    processes = Processes(lab.folder.run)  # of a lab that may be unfinished
    ours = [name for name in processes.names() if name.startswith(("agent-", "relay")) or name == "operator"]
    signal_and_wait([pid for name in ours if (pid := processes.pid(name))], signal.SIGTERM, GRACE_SECONDS)
