# SPDX-License-Identifier: Apache-2.0
"""The last known mesh on disk, so that a node boots into it when the API server cannot be reached."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import read_json, write_private

FILE = "state.json"
EVERY_SECONDS = 30.0

Object = dict[str, Any]


@dataclass
class CachedState:
    """What is kept.

    Attributes:
        mesh: the Mesh object.
        peers: the Peer objects, our own among them.
        names: addresses that names resolved to.
        relay_keys: relay name to its key in base64, as first seen.
        apiserver: the URL that worked last.
    """

    mesh: Object | None = None
    peers: list[Object] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    relay_keys: dict[str, str] = field(default_factory=dict)
    apiserver: str | None = None


class StateFile:
    """Reads and writes the cached state; at most one write in 30 s.

    Args:
        folder: the state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._written: tuple[float, str] | None = None

    def load(self) -> CachedState:
        """Return what was saved; an empty state when there is nothing usable."""
        content = read_json(self._path) or {}
        mesh, peers = content.get("mesh"), content.get("peers")
        names, keys = content.get("names"), content.get("relayKeys")
        url = content.get("apiserver")
        return CachedState(
            mesh=mesh if isinstance(mesh, dict) else None,
            peers=[peer for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else [],
            names={str(k): [str(x) for x in v] for k, v in names.items() if isinstance(v, list)}
            if isinstance(names, dict)
            else {},
            relay_keys={str(k): str(v) for k, v in keys.items()} if isinstance(keys, dict) else {},
            apiserver=url if isinstance(url, str) else None,
        )

    def save(self, state: CachedState, now: float, *, force: bool = False) -> bool:
        """Write the state when it differs and 30 s have passed (or `force`); return whether it was written.

        Raises:
            OSError: the folder is not writable.
        """
        content = {
            "mesh": state.mesh,
            "peers": state.peers,
            "names": state.names,
            "relayKeys": state.relay_keys,
            "apiserver": state.apiserver,
        }
        if self._written is not None and now - self._written[0] < EVERY_SECONDS and not force:
            return False
        text = json.dumps(content)  # as text: the caller may change what it gave us
        if self._written is not None and text == self._written[1]:
            return False
        write_private(self._path, text.encode())
        self._written = (now, text)
        return True

    def remove(self) -> None:
        """Forget the mesh: this node is not part of it any more."""
        self._path.unlink(missing_ok=True)
        self._written = None


class Memory:
    """The cached state in use: what was saved at the start, and what is saved next.

    Args:
        folder: the state folder.

    Attributes:
        mesh: the Mesh object.
        peers: the Peer objects.
        names: host name to the addresses that it resolved to last; the resolver's own.
        relay_keys: relay name to the key that it showed first.
        apiserver: the URL that worked last.
    """

    def __init__(self, folder: Path) -> None:
        self._file = StateFile(folder)
        saved = self._file.load()
        self.mesh, self.peers, self.apiserver = saved.mesh, saved.peers, saved.apiserver
        self.names: dict[str, tuple[str, ...]] = {name: tuple(found) for name, found in saved.names.items()}
        self.relay_keys = {name: key for name, text in saved.relay_keys.items() if (key := _key(text)) is not None}

    def take(self, mesh: Object | None, peers: Iterable[Object], apiserver: str | None) -> None:
        """Take what is known now."""
        self.mesh, self.peers, self.apiserver = mesh, list(peers), apiserver or self.apiserver

    def save(self, now: float, *, force: bool = False) -> str | None:
        """Write to disk if it differs and it is time; return what went wrong."""
        state = CachedState(
            self.mesh,
            self.peers,
            {name: list(found) for name, found in self.names.items()},
            {name: base64.b64encode(key).decode() for name, key in self.relay_keys.items()},
            self.apiserver,
        )
        try:
            self._file.save(state, now, force=force)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def forget(self) -> None:
        """Forget the mesh on disk: this node is not part of it any more."""
        self.mesh, self.peers = None, []
        self._file.remove()


def _key(text: str) -> bytes | None:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return key if len(key) == 32 else None
