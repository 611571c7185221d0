# SPDX-License-Identifier: Apache-2.0
"""The note that an agent leaves on a clean stop: what runs on this host is alive, and the next agent continues it.

It lies in the run folder, which a reboot empties. Without it, or when a word of it is wrong, `cleanup --stale` removes
what it finds.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import read_json, write_json

FILE = "handover.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LAYOUT = 1  # of table, rules and routes; a new agent with another layout starts afresh


@dataclass(frozen=True)
class Note:
    """What identifies the live state."""

    boot_id: str
    interface: str
    ifindex: int
    kind: str
    fingerprint: str
    listen_port: int
    layout: int = LAYOUT


def boot_id() -> str:
    """Return the kernel's identity of this boot."""
    return BOOT_ID.read_text().strip()


def fingerprint(public_key: bytes) -> str:
    """Return a short name of a key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def write(folder: Path, note: Note) -> None:
    """Leave the note.

    Raises:
        OSError: the folder is not writable.
    """
    write_json(folder / FILE, asdict(note))


def read(folder: Path) -> Note | None:
    """Return the note; None when there is none that we understand."""
    content = read_json(folder / FILE)
    try:
        return Note(**content) if content else None
    except TypeError:
        return None


def discard(folder: Path) -> None:
    """Take the note away: from now on the host's state is ours to vouch for."""
    (folder / FILE).unlink(missing_ok=True)
