# SPDX-License-Identifier: Apache-2.0
"""The objects that a reflector has seen, by key and by index; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from .objects import Key, Object, key_of

EventType = Literal["ADDED", "MODIFIED", "DELETED", "SYNC"]
IndexFunction = Callable[[Object], Iterable[str]]


@dataclass(frozen=True)
class Event:
    """A change of one object, for handlers.

    Attributes:
        type: SYNC is a replay of the store; nothing has changed.
        key: of the object.
        old: what the store had; None for ADDED.
        new: what it has now; None for DELETED.
        low: the event comes from the first list or from a replay, so that real changes may overtake it.
    """

    type: EventType
    key: Key
    old: Object | None
    new: Object | None
    low: bool = False


class Store:
    """Objects by key. What it hands out is shared: do not change it."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._functions: dict[str, IndexFunction] = {}
        self._indexes: dict[str, dict[str, set[Key]]] = {}

    def get(self, key: Key) -> Object | None:
        """Return the object, or None."""
        return self._objects.get(key)

    def items(self) -> dict[Key, Object]:
        """Return all objects, in a dictionary of the caller's own."""
        return dict(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def add_index(self, name: str, function: IndexFunction) -> None:
        """Index the objects by the values that `function` gives for each."""
        self._functions[name] = function
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            self._enter(name, key, obj)

    def by_index(self, name: str, value: str) -> list[Object]:
        """Return the objects with this value, sorted by key.

        Raises:
            KeyError: there is no such index.
        """
        return [self._objects[key] for key in sorted(self._indexes[name].get(value, ()))]

    def count(self, name: str, value: str) -> int:
        """Return how many objects have this value, at once.

        Raises:
            KeyError: there is no such index.
        """
        return len(self._indexes[name].get(value, ()))

    def put(self, obj: Object, *, low: bool = False) -> list[Event]:
        """Insert an object, without `managedFields`; return what changed (nothing for the same resource version).

        An object of the same name with another uid was deleted and created again: DELETED, then ADDED.
        """
        new = _stripped(obj)
        key = key_of(new)
        old = self._objects.get(key)
        if old is None:
            self._insert(key, new)
            return [Event("ADDED", key, None, new, low)]
        if old["metadata"].get("uid") != new["metadata"].get("uid"):
            return self.remove(key, old) + self.put(new)
        version = new["metadata"].get("resourceVersion")
        if version is not None and version == old["metadata"].get("resourceVersion"):
            return []
        self._forget(key)
        self._insert(key, new)
        return [Event("MODIFIED", key, old, new)]

    def remove(self, key: Key, last: Object | None = None) -> list[Event]:
        """Remove an object; `last` is its final state if the server told it."""
        old = self._objects.get(key)
        if old is None:
            return []
        self._forget(key)
        return [Event("DELETED", key, _stripped(last) if last is not None else old, None)]

    def replace(self, objects: dict[Key, Object], *, low: bool = False) -> list[Event]:
        """Take over a complete list; what it lacks was deleted meanwhile."""
        events = [event for key in [k for k in self._objects if k not in objects] for event in self.remove(key)]
        for obj in objects.values():
            events += self.put(obj, low=low)
        return events

    def replay(self) -> list[Event]:
        """Return a SYNC event of every object."""
        return [Event("SYNC", key, obj, obj, low=True) for key, obj in self._objects.items()]

    def _insert(self, key: Key, obj: Object) -> None:
        self._objects[key] = obj
        for name in self._functions:
            self._enter(name, key, obj)

    def _enter(self, name: str, key: Key, obj: Object) -> None:
        for value in self._functions[name](obj):
            self._indexes[name].setdefault(value, set()).add(key)

    def _forget(self, key: Key) -> None:
        obj = self._objects.pop(key)
        for name, function in self._functions.items():
            for value in function(obj):
                self._indexes[name].get(value, set()).discard(key)


def _stripped(obj: Object) -> Object:
    metadata = obj["metadata"]
    if "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}}
