# SPDX-License-Identifier: Apache-2.0
"""Asks the container beside the agent's to run wireguard-go for an interface; `userspace.sh` is the other side.

The two share a folder of the host, with a FIFO in it. A request is a line with the interface's name. The helper has the
FIFO open only while it waits for one, so an open that fails says at once that nobody would answer.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import anyio

from ...api.constants import RUN_DIR
from .backend import BackendError

FIFO: Final = Path(RUN_DIR) / "userspace"
CONTAINER: Final = "wireguard"
PATIENCE: Final = 3.0  # seconds; a helper that starts with us, or has just ended another interface, is there by then
POLL: Final = 0.1


class NoHelper(BackendError):
    """Nobody listens on the FIFO."""


async def ask(fifo: Path, name: str) -> None:
    """Ask the helper for a WireGuard process of this interface.

    Raises:
        NoHelper: there is none.
        BackendError: the file is no FIFO, or must not be opened.
    """
    refused: OSError | None = None
    with anyio.move_on_after(PATIENCE):
        while True:
            try:
                _write(fifo, f"{name}\n".encode())
                return
            except (FileNotFoundError, BrokenPipeError) as error:
                refused = error
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise BackendError(f"{fifo} cannot be written to: {error.strerror}") from error
                refused = error
            await anyio.sleep(POLL)
    raise NoHelper(f"no helper listens on {fifo}") from refused


def _write(fifo: Path, request: bytes) -> None:
    """Write without waiting for a reader."""
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise BackendError(f"{fifo} is no FIFO: remove it")
        os.write(descriptor, request)
    finally:
        os.close(descriptor)
