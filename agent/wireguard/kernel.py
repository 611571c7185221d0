# SPDX-License-Identifier: Apache-2.0
"""WireGuard in the kernel: the link through rtnetlink, its configuration through generic netlink."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ..routing.sysctl import default_root
from .backend import BackendError, ForeignInterface, delete_link, find_link, set_link
from .device import Device, DeviceChange, PeerStats
from .genl import ACK, DUMP, family_id, request
from .netlink import GET_DEVICE, SET_DEVICE, decode_device, decode_stats, encode_set, name_attribute
from .rtnl import AsyncIPRoute, NetlinkError, RtNetlink

REDIRECTS: Final = "ipv4/conf/all/send_redirects"


class KernelBackend:
    """The kernel's own WireGuard."""

    kind = "kernel"

    def __init__(self) -> None:
        self._family: int | None = None

    async def ensure(self, name: str, mtu: int) -> bool:
        """See Backend.ensure."""
        async with AsyncIPRoute() as ip:
            link = await find_link(ip, name)
            if link is not None and link.kind != "wireguard":
                raise ForeignInterface(name, f"kind {link.kind or 'physical'}")
            if link is None:
                await _add(ip, name)
            # When it comes up, the kernel's WireGuard switches redirects off for all interfaces of the host and never
            # on again. Those of others are not ours to change, and a clean-up could not know what they were.
            with _kept(default_root() / REDIRECTS):
                await set_link(ip, name, mtu)
        return link is None

    async def read(self, name: str) -> Device:
        """See Backend.read."""
        messages = await self._request(name, GET_DEVICE, DUMP | ACK, name_attribute(name))
        try:
            return decode_device(messages)
        except ValueError as error:
            raise BackendError(f"{name}: the kernel's answer is malformed: {error}") from error

    async def stats(self, name: str) -> Mapping[bytes, PeerStats]:
        """See Backend.stats."""
        messages = await self._request(name, GET_DEVICE, DUMP | ACK, name_attribute(name))
        try:
            return decode_stats(messages)
        except ValueError as error:
            raise BackendError(f"{name}: the kernel's answer is malformed: {error}") from error

    async def apply(self, name: str, change: DeviceChange) -> None:
        """See Backend.apply. A message that fails ends it; those before it stay applied."""
        for payload in encode_set(name, change):
            await self._request(name, SET_DEVICE, ACK, payload)

    async def remove(self, name: str) -> None:
        """See Backend.remove."""
        async with AsyncIPRoute() as ip:
            link = await find_link(ip, name)
            if link is not None and link.kind == "wireguard":
                await delete_link(ip, link.index)

    async def _request(self, name: str, command: int, flags: int, payload: bytes) -> list[bytes]:
        try:
            if self._family is None:
                self._family = await family_id("wireguard")
            return await request(self._family, command, flags, payload)
        except OSError as error:
            # The number changes when the module is loaded again, so it is asked for anew after any failure.
            self._family = None
            reason = error.strerror or str(error) or "no answer in time"  # a TimeoutError has no text
            raise BackendError(f"the kernel's WireGuard refused a request for {name}: {reason}") from error


@contextlib.contextmanager
def _kept(setting: Path) -> Iterator[None]:
    """Put a sysctl back when it changed meanwhile; where that is not allowed, the change stays."""
    before = _text(setting)
    try:
        yield
    finally:
        if before is not None and _text(setting) != before:
            with contextlib.suppress(OSError):
                setting.write_text(before)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


async def _add(ip: RtNetlink, name: str) -> None:
    try:
        await ip.link("add", ifname=name, kind="wireguard")
    except NetlinkError as error:
        raise BackendError(f"the interface {name} cannot be made: {error}") from error


async def kernel_has_wireguard(probe: str) -> bool:
    """Try it: make a link of kind wireguard and delete it.

    Args:
        probe: a name that nobody uses; a WireGuard link of that name left by a killed process is removed.

    Raises:
        BackendError: not allowed to make links.
    """
    async with AsyncIPRoute() as ip:
        try:
            await ip.link("add", ifname=probe, kind="wireguard")
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                return False
            if error.code in {errno.EPERM, errno.EACCES}:
                raise BackendError("no permission to make network interfaces: the agent needs NET_ADMIN") from error
            if error.code != errno.EEXIST:
                raise BackendError(f"the kernel refused a WireGuard interface: {error}") from error
        link = await find_link(ip, probe)
        if link is not None and link.kind == "wireguard":
            await delete_link(ip, link.index)
            return True
    return False
