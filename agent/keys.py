# SPDX-License-Identifier: Apache-2.0
"""The node's WireGuard key: made here, kept here, never sent anywhere.

The file names the node and the machine it belongs to: on a cloned disk the clone makes a key of its own, and the
original is unaffected. When the file is gone, the key is taken back from the running interface.
"""

from __future__ import annotations

import base64
import binascii
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .files import read_json, write_json
from .paths.keys import public_key

FILE = "key.json"
MACHINE_IDS = (Path("/host/etc/machine-id"), Path("/etc/machine-id"))  # in a pod, the second is the image's


class KeyRefused(Exception):
    """The key file must not be used; the message says why and what to do."""


@dataclass(frozen=True)
class NodeKey:
    """The key in use.

    Attributes:
        private: 32 bytes.
        public: 32 bytes.
        problem: why it could not be saved; None when it is on disk.
    """

    private: bytes = field(repr=False)
    public: bytes
    problem: str | None = None


def machine_id(paths: Iterable[Path] = MACHINE_IDS) -> str:
    """Return the machine's identity, from the first file that has one; empty where there is none."""
    for path in paths:
        try:
            if found := path.read_text().strip():
                return found
        except OSError:
            continue
    return ""


def load_or_create(folder: Path, node: str, machine: str, running: bytes | None = None) -> NodeKey:
    """Return this node's key.

    Args:
        folder: the state folder.
        node: the Node's name.
        machine: the machine's identity.
        running: the private key of an interface that runs already; all zeros say that it has none.

    Raises:
        KeyRefused: others can read the file.
    """
    path = folder / FILE
    content = _read(path)
    if content is not None and (content.get("node"), content.get("machineID")) != (node, machine):
        running = None  # a machine that was cloned while it ran has the original's interface as well
    elif content is not None and (saved := _private(content)) is not None:
        return NodeKey(saved, public_key(saved))
    private = running if running and any(running) else X25519PrivateKey.generate().private_bytes_raw()
    return _save(path, node, machine, private)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the file's content; None when it is gone or garbage, which the running interface can make good."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if mode & 0o077:
        raise KeyRefused(f"{path} can be read by others (mode {mode:o}); remove it, and a new key is made")
    return read_json(path)


def _private(content: dict[str, Any]) -> bytes | None:
    try:
        private = base64.b64decode(str(content.get("privateKey")), validate=True)
    except binascii.Error:
        return None
    return private if len(private) == 32 else None


def _save(path: Path, node: str, machine: str, private: bytes) -> NodeKey:
    content = {"node": node, "machineID": machine, "privateKey": base64.b64encode(private).decode()}
    try:
        write_json(path, content)
    except OSError as error:
        return NodeKey(private, public_key(private), f"{path}: {error.strerror}")
    return NodeKey(private, public_key(private))
