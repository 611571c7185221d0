# SPDX-License-Identifier: Apache-2.0
"""Which WireGuard this node has."""

from __future__ import annotations

from ...api.constants import DEFAULT_INTERFACE
from .backend import Backend, BackendError, find_link
from .kernel import KernelBackend, kernel_has_wireguard
from .rtnl import AsyncIPRoute
from .userspace import UserspaceBackend, find_binary, no_binary, tun_problem

PROBE = "wkprobe"
"""The interface that is made and deleted to see whether the kernel can."""


async def choose_backend(name: str = DEFAULT_INTERFACE, helper_wait: float = 0.0) -> Backend:
    """Return the backend for an interface; it is not created yet.

    An interface that exists is adopted by the backend that made it, so that a node whose kernel learnt WireGuard keeps
    its tunnels until the next reboot. Otherwise the kernel is tried first.

    Args:
        name: the interface.
        helper_wait: seconds that the userspace backend waits for a process that somebody else starts, when there is no
            wireguard-go here (0: there is no such helper).

    Raises:
        BackendError: there is none: no permission, or neither a kernel with WireGuard nor what userspace needs.
    """
    userspace = UserspaceBackend(helper_wait=helper_wait)
    async with AsyncIPRoute() as ip:
        link = await find_link(ip, name)
    if link is not None and link.kind == "wireguard":
        return KernelBackend()
    if link is not None and link.kind == "tun" and await userspace.answers(name):
        return userspace
    if await kernel_has_wireguard(PROBE):
        return KernelBackend()
    if find_binary() is None:
        if not helper_wait:
            raise BackendError(no_binary())
        return userspace
    if (problem := tun_problem()) is not None:
        raise BackendError(problem)
    return userspace
