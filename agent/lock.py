# SPDX-License-Identifier: Apache-2.0
"""One agent on a node: a lock that the kernel frees when its holder dies, without the API server."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

FILE = "agent.lock"
POLL_SECONDS = 0.2


class NodeLock:
    """The lock of this node.

    Args:
        folder: the run folder, shared by all agents of the node.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._descriptor = folder, -1

    def try_acquire(self) -> bool:
        """Take the lock if it is free.

        Raises:
            OSError: the folder is not writable.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    async def acquire(self, waiting: Callable[[], None]) -> None:
        """Wait for the lock; `waiting` is called once when another agent has it.

        Raises:
            OSError: the folder is not writable.
        """
        told = False
        while not self.try_acquire():
            if not told:
                waiting()
                told = True
            await asyncio.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
