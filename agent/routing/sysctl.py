# SPDX-License-Identifier: Apache-2.0
"""Sysctls of interfaces under /proc/sys/net, and a record of their old values.

The kernel resolves /proc/sys/net in the network namespace of the calling thread, so files are read in the event loop's
thread: they are tiny and never block.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HOST: Final = Path("/host/proc/sys/net")
OWN: Final = Path("/proc/sys/net")


def default_root() -> Path:
    """Return the host's mount when there is one: the container's own /proc/sys is usually read-only."""
    return HOST if HOST.is_dir() else OWN


class Sysctls:
    """`ipv4/conf/INTERFACE/NAME` values, restored by `restore`.

    Args:
        root: /proc/sys/net.
        record: JSON file `{"INTERFACE/NAME": "old value"}`, kept from the first change to the restoration, so that a
            crash in between loses nothing.
    """

    def __init__(self, root: Path, record: Path) -> None:
        self._root = root
        self._record = record

    def read(self, interface: str, names: Iterable[str]) -> dict[str, str]:
        """Return the values that exist."""
        values = {name: self._value(f"ipv4/conf/{interface}/{name}") for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def ipv6(self, interface: str) -> bool:
        """Whether the host and the interface have IPv6; an interface with an MTU below 1280 has not."""
        values = [self._value(f"ipv6/conf/{scope}/disable_ipv6") for scope in ("all", interface)]
        return values == ["0", "0"]

    def write(self, interface: str, name: str, value: str, old: str) -> None:
        """Note the old value, unless one is noted already, then set the new one.

        Raises:
            OSError: not allowed, or the interface is gone.
        """
        noted = self._noted()
        if f"{interface}/{name}" not in noted:
            self._note(noted | {f"{interface}/{name}": old})
        (self._root / f"ipv4/conf/{interface}/{name}").write_text(value)

    def changed(self) -> set[str]:
        """Return the interfaces that have a value of ours."""
        return {key.partition("/")[0] for key in self._noted()}

    def restore(self, interface: str | None = None) -> list[str]:
        """Set the old values of one interface, or of all, again, and forget them. Return what was set.

        An interface that is gone is passed over.
        """
        noted = self._noted()
        restored = []
        for key in [key for key in noted if interface is None or key.startswith(f"{interface}/")]:
            old = noted.pop(key)
            path = self._root / "ipv4/conf" / key
            if path.exists() and path.read_text().strip() != old:
                path.write_text(old)
                restored.append(f"sysctl net.ipv4.conf.{key.replace('/', '.')} back to {old}")
        if self._record.exists():
            self._note(noted)
        return restored

    def _value(self, path: str) -> str | None:
        try:
            return (self._root / path).read_text().strip()
        except OSError:
            return None

    def _noted(self) -> dict[str, str]:
        """Read the record; a damaged one counts as empty, the values that it held are lost."""
        try:
            noted = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        items = noted.items() if isinstance(noted, dict) else ()
        return {key: value for key, value in items if isinstance(value, str) and ".." not in key}

    def _note(self, noted: dict[str, str]) -> None:
        if not noted:
            self._record.unlink(missing_ok=True)
            return
        self._record.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._record.with_name(f".{self._record.name}.new")
        fresh.write_text(json.dumps(noted, indent=1, sort_keys=True))
        fresh.replace(self._record)
