# SPDX-License-Identifier: Apache-2.0
"""Who a candidate is: a name that no other living process has, and that its successor in the same place takes over.

A process that dies without giving its Lease up leaves it behind for 15 s: after an outage of the API server, which ends
the leader, nobody would lead for that long although everything is well again. The one that a kubelet starts in its
place knows that it is dead, because a lock of the kernel's says so, and may go on under its name at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import uuid
from pathlib import Path

_LONGEST = 512
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def new_identity() -> str:
    """Return an identity that nobody else has: HOSTNAME_UUID."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


def inherited_identity(path: Path) -> str:
    """Return the identity in a file, which is ours until this process ends; a new one where that cannot be.

    It cannot be when a living process has the file, when the file cannot be used, or when it is another host's. Call it
    once for each path: the file stays open and locked on purpose.

    Args:
        path: outlives the process, but not the place that one process at a time runs in: in a pod, an emptyDir.
    """
    fresh = new_identity()
    try:
        # Who can write into the folder must not make us write elsewhere.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return fresh
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.pread(file, _LONGEST, 0).decode(errors="replace")
        if re.fullmatch(rf"{re.escape(socket.gethostname())}_{_UUID}", found):
            return found
        os.ftruncate(file, 0)
        os.pwrite(file, fresh.encode(), 0)
    except OSError:
        os.close(file)
    return fresh
