# SPDX-License-Identifier: Apache-2.0
"""`wirekube-agent cleanup [--stale]`: takes what agents put on this host off it again.

`--stale` is what the DaemonSet's initContainer runs: state that a clean stop vouches for by its note stays, so that an
upgrade keeps the tunnels; everything else (crash, reboot, another layout) goes. Without it everything goes, the key too.
"""

from __future__ import annotations

from pathlib import Path

from ..api.constants import DEFAULT_INTERFACE
from . import handover, keys
from .config import Config
from .dataplane import DataPlane, Failure
from .facts import MeshFacts, parse_mesh
from .handover import LAYOUT, Note
from .lock import FILE as LOCK_FILE
from .lock import NodeLock
from .routing.host import HostNetwork
from .state import FILE as STATE_FILE
from .state import Memory
from .wireguard.choose import choose_backend


class CleanupError(Exception):
    """Not everything could be removed; the message says what and why."""


async def clean(config: Config, *, stale: bool) -> str:
    """Clean this host; return one line that says what was done.

    Raises:
        CleanupError: an agent is running, or something cannot be removed.
    """
    lock = NodeLock(config.run_dir)
    try:
        free = lock.try_acquire()
    except OSError as error:
        raise CleanupError(f"{config.run_dir}: {error.strerror}; run as root") from error
    if not free:
        if stale:
            return "an agent is running; nothing is stale"
        raise CleanupError("an agent is running on this node; stop it first")
    try:
        return await _clean(config, stale=stale)
    except Failure as error:
        raise CleanupError(str(error)) from error
    finally:
        lock.release()
        if not stale:
            _remove_files(config.run_dir, LOCK_FILE)


async def _clean(config: Config, *, stale: bool) -> str:
    memory = Memory(config.state_dir)
    mesh = parse_mesh(memory.mesh) if memory.mesh else None
    note = handover.read(config.run_dir)
    host = HostNetwork(None, config.sysctl_record)
    if stale and note is not None and await _is_live(note, host):
        return f"{note.interface} was left alive by a clean stop; it stays"
    named = [note.interface] if note else []
    named += [mesh.interface] if isinstance(mesh, MeshFacts) else []
    for name in dict.fromkeys([*named, DEFAULT_INTERFACE]):
        await DataPlane(host).close(name)
    handover.discard(config.run_dir)
    if stale:
        return "the host is clean"
    _remove_files(config.state_dir, STATE_FILE, keys.FILE)
    _remove_files(config.run_dir, config.socket.name, config.helper.name)
    return "the host is clean, and this node's key is gone"


async def _is_live(note: Note, host: HostNetwork) -> bool:
    """Tell whether what the note vouches for is what is there."""
    if note.boot_id != handover.boot_id() or note.layout != LAYOUT:
        return False
    if (await host.observe(note.interface)).link != note.ifindex:
        return False
    backend = await choose_backend(note.interface)
    if backend.kind != note.kind:
        return False
    device = await backend.read(note.interface)
    return (device.listen_port, handover.fingerprint(device.public_key)) == (note.listen_port, note.fingerprint)


def _remove_files(folder: Path, *names: str) -> None:
    """Remove files, and the folder when that empties it; a mount point stays."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        return
