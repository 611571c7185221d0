# SPDX-License-Identifier: Apache-2.0
"""What every WireGuard backend offers, its errors, and the link settings that are the same for all."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .device import Device, DeviceChange, PeerStats
from .rtnl import NetlinkError, RtNetlink

IFF_UP = 1


class BackendError(Exception):
    """No backend, or one that failed; the text is one line for an operator."""


class ForeignInterface(BackendError):
    """A link of the wanted name exists and is not ours. It is left alone."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(f"the interface {name} exists and is not ours ({found}); remove it or choose another name")


class Backend(Protocol):
    """A WireGuard implementation. Every method may raise BackendError."""

    kind: str
    """`kernel` or `userspace`."""

    async def ensure(self, name: str, mtu: int) -> bool:
        """Make the interface exist, with that MTU and up; adopt it when it is ours. Return whether it was created.

        Raises:
            ForeignInterface: a link of that name is something else.
        """
        ...

    async def read(self, name: str) -> Device:
        """Return the whole device."""
        ...

    async def stats(self, name: str) -> Mapping[bytes, PeerStats]:
        """Return the counters by public key, cheaply enough for once a second."""
        ...

    async def apply(self, name: str, change: DeviceChange) -> None:
        """Carry a change out. Not atomic: after an error, read again and compare."""
        ...

    async def remove(self, name: str) -> None:
        """Take the interface away if it is ours; nothing happens when there is none or it is another's."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; `kind` is empty for a physical one."""

    index: int
    kind: str
    mtu: int
    up: bool


async def find_link(ip: RtNetlink, name: str) -> Link | None:
    """Return the link of that name in this network namespace, or None."""
    try:
        for index in await ip.link_lookup(ifname=name):
            for row in await ip.link("get", index=index):
                kind = str(row.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "")
                return Link(index, kind, int(row.get("mtu") or 0), bool(row["flags"] & IFF_UP))
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
    return None


async def set_link(ip: RtNetlink, name: str, mtu: int) -> None:
    """Give the link its MTU and bring it up, each only when it differs.

    Raises:
        BackendError: the link vanished, or the kernel refused.
    """
    link = await find_link(ip, name)
    if link is None:
        raise BackendError(f"the interface {name} vanished while it was being set up")
    try:
        if link.mtu != mtu:
            await ip.link("set", index=link.index, mtu=mtu)
        if not link.up:
            await ip.link("set", index=link.index, state="up")
    except NetlinkError as error:
        raise BackendError(f"the interface {name} cannot be set up with MTU {mtu}: {error}") from error


async def delete_link(ip: RtNetlink, index: int) -> None:
    """Delete a link; it may be gone already."""
    try:
        await ip.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise BackendError(f"the interface with index {index} cannot be removed: {error}") from error
