# SPDX-License-Identifier: Apache-2.0
"""Which WireGuard this node has."""

from __future__ import annotations

from pathlib import Path

from ...api.constants import DEFAULT_INTERFACE
from . import helper
from .backend import Backend, BackendError, find_link
from .kernel import KernelBackend, kernel_has_wireguard
from .rtnl import AsyncIPRoute
from .userspace import UserspaceBackend, find_binary, tun_missing, tun_problem

PROBE = "wkprobe"
"""The interface that is made and deleted to see whether the kernel can."""


async def choose_backend(name: str = DEFAULT_INTERFACE, fifo: Path = helper.FIFO) -> Backend:
    """Return the backend for an interface; it is not created yet.

    An interface that exists is adopted by the backend that made it, so that a node whose kernel learnt WireGuard keeps
    its tunnels until the next reboot. Otherwise the kernel is tried first.

    Args:
        name: the interface.
        fifo: where a helper listens, if there is one.

    Raises:
        BackendError: there is none: no permission, or neither a kernel with WireGuard nor what userspace needs.
    """
    userspace = UserspaceBackend(fifo=fifo)
    async with AsyncIPRoute() as ip:
        link = await find_link(ip, name)
    if link is not None and link.kind == "wireguard":
        return KernelBackend()
    if link is not None and link.kind == "tun" and await userspace.answers(name):
        return userspace
    if await kernel_has_wireguard(PROBE):
        return KernelBackend()
    # A helper opens the device in a container of its own: whether we may is no question then.
    if (problem := tun_problem() if find_binary() else tun_missing()) is not None:
        raise BackendError(problem)
    return userspace
