# SPDX-License-Identifier: Apache-2.0
"""Who is registered, who wants to know it, and who may register. Pure state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Registry(Generic[T]):
    """Sessions by public key, and the sessions that watch a key. A key has one session, the newest that proved it."""

    def __init__(self, max_watches: int = 4096) -> None:
        self._sessions: dict[bytes, T] = {}
        self._watchers: dict[bytes, set[T]] = {}
        self._watched: dict[T, set[bytes]] = {}
        self._max_watches = max_watches
        self.get = self._sessions.get  # the hot path's look-up, without a frame of its own

    def __len__(self) -> int:
        return len(self._sessions)

    def register(self, key: bytes, session: T) -> T | None:
        """Make `session` the one of `key`; return the one that it replaces. Only call this after a valid proof."""
        replaced = self._sessions.get(key)
        self._sessions[key] = session
        return replaced

    def remove(self, key: bytes, session: T) -> bool:
        """Forget the session and what it watched; False when another one had replaced it."""
        for watched in self._watched.pop(session, ()):
            self._discard(session, watched)
        if self._sessions.get(key) is not session:
            return False
        del self._sessions[key]
        return True

    def watch(self, session: T, key: bytes) -> bool:
        """Add a watcher; False when the session watches too many keys already."""
        keys = self._watched.setdefault(session, set())
        if key not in keys and len(keys) >= self._max_watches:
            return False
        keys.add(key)
        self._watchers.setdefault(key, set()).add(session)
        return True

    def unwatch(self, session: T, key: bytes) -> None:
        """Remove a watcher, if it is one."""
        self._watched.get(session, set()).discard(key)
        self._discard(session, key)

    def watchers(self, key: bytes) -> list[T]:
        """Return who watches the key."""
        return list(self._watchers.get(key, ()))

    def _discard(self, session: T, key: bytes) -> None:
        watchers = self._watchers.get(key)
        if watchers is not None:
            watchers.discard(session)
            if not watchers:
                del self._watchers[key]


class Admission:
    """Which keys may register: those of a set, or all when the set is None."""

    def __init__(self, allowed: Iterable[bytes] | None) -> None:
        self._allowed = None if allowed is None else frozenset(allowed)

    def admits(self, key: bytes) -> bool:
        """Tell whether the key may have a session."""
        return self._allowed is None or key in self._allowed
