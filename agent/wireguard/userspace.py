# SPDX-License-Identifier: Apache-2.0
"""WireGuard in a process of its own (wireguard-go), spoken to over its UAPI socket.

The agent starts it where it finds the program, else asks the container beside its own for it (`helper.py`). Either way
it outlives the agent, so a restart of the agent finds the tunnels as they were. The socket is a file: it reaches a process
in any network namespace, so an answer alone does not prove that the interface is one of this namespace; the link is
looked up too.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio

from . import helper
from .backend import BackendError, ForeignInterface, delete_link, find_link, set_link
from .device import Device, DeviceChange, PeerStats
from .rtnl import AsyncIPRoute
from .uapi import GET, UapiError, check, decode_get, decode_stats, encode_set

ENV_BINARY: Final = "WIREKUBE_WIREGUARD_GO"
SOCKET_DIR: Final = Path("/var/run/wireguard")
START_DEADLINE: Final = 10.0  # seconds; a loaded machine needs about one
ANSWER_DEADLINE: Final = 5.0  # seconds for one request; 1000 peers take well under one
POLL: Final = 0.02  # seconds between looks at a socket that is about to appear
TUN: Final = Path("/dev/net/tun")


def find_binary() -> str | None:
    """Return the program that the environment names, else `wireguard-go` of PATH, else None."""
    return shutil.which(os.environ.get(ENV_BINARY) or "wireguard-go")


class UserspaceBackend:
    """wireguard-go.

    Args:
        socket_dir: where the program puts its sockets; compiled into it.
        fifo: where the helper listens that is asked when there is no program here.
    """

    kind = "userspace"

    def __init__(self, socket_dir: Path = SOCKET_DIR, fifo: Path = helper.FIFO) -> None:
        self._dir = socket_dir
        self._fifo = fifo

    async def ensure(self, name: str, mtu: int) -> bool:
        """See Backend.ensure. A socket that nobody listens on is removed before the program starts."""
        async with AsyncIPRoute() as ip:
            link = await find_link(ip, name)
            answers = await self.answers(name)
            if link is not None and (link.kind != "tun" or not answers):
                raise ForeignInterface(name, f"kind {link.kind or 'physical'}, without an answering WireGuard socket")
            if link is None and answers:
                raise BackendError(f"a WireGuard process for {name} answers, but in another network namespace")
            if link is None:
                await self._start(name)
            await set_link(ip, name, mtu)
        return link is None

    async def read(self, name: str) -> Device:
        """See Backend.read."""
        try:
            return decode_get(await self._transact(name, GET))
        except UapiError as error:
            raise BackendError(f"{name}: {error}") from error

    async def stats(self, name: str) -> Mapping[bytes, PeerStats]:
        """See Backend.stats; the protocol has no request for counters alone, so all is sent and little is read."""
        try:
            return decode_stats(await self._transact(name, GET))
        except UapiError as error:
            raise BackendError(f"{name}: {error}") from error

    async def apply(self, name: str, change: DeviceChange) -> None:
        """See Backend.apply."""
        if not change:
            return
        try:
            check(await self._transact(name, encode_set(change)))
        except UapiError as error:
            raise BackendError(f"{name}: {error}") from error

    async def remove(self, name: str) -> None:
        """See Backend.remove. The process ends by itself when its interface is deleted."""
        async with AsyncIPRoute() as ip:
            link = await find_link(ip, name)
            if link is not None and (link.kind != "tun" or not await self.answers(name)):
                return
            if link is not None:
                await delete_link(ip, link.index)
                with anyio.move_on_after(START_DEADLINE):
                    await self._until(name, answering=False)
        await self._remove_stale(name)

    async def answers(self, name: str) -> bool:
        """Whether a process listens on the interface's socket. A stale file counts as no."""
        return await self._refusal(name) == 0

    async def _until(self, name: str, *, answering: bool) -> None:
        while await self.answers(name) != answering:  # noqa: ASYNC110 - a process elsewhere; nothing to wait on
            await anyio.sleep(POLL)

    async def _refusal(self, name: str) -> int:
        """Return 0 when connecting works, else the error number."""
        try:
            async with await anyio.connect_unix(self._path(name)):
                return 0
        except OSError as error:
            return error.errno or errno.EIO

    def _path(self, name: str) -> str:
        return str(self._dir / f"{name}.sock")

    async def _remove_stale(self, name: str) -> None:
        if await self._refusal(name) == errno.ECONNREFUSED:
            await anyio.Path(self._path(name)).unlink(missing_ok=True)

    async def _start(self, name: str) -> None:
        """Start the program and wait until its socket answers."""
        await self._remove_stale(name)
        binary = find_binary()
        if binary is not None:
            await _launch(binary, name)
        else:
            await self._ask(name)
        try:
            with anyio.fail_after(START_DEADLINE):
                await self._until(name, answering=True)
        except TimeoutError:
            hint = "" if binary else f": see the log of the container {helper.CONTAINER} of the agent's pod"
            raise BackendError(f"no WireGuard process answered on {self._path(name)} in time{hint}") from None

    async def _ask(self, name: str) -> None:
        if (problem := tun_missing()) is not None:
            raise BackendError(problem)
        try:
            await helper.ask(self._fifo, name)
        except helper.NoHelper as error:
            raise BackendError(no_wireguard(self._fifo)) from error

    async def _transact(self, name: str, request: bytes) -> bytes:
        """Send one request and return the whole answer."""
        answer = bytearray()
        try:
            with anyio.fail_after(ANSWER_DEADLINE):
                async with await anyio.connect_unix(self._path(name)) as stream:
                    await stream.send(request)
                    while not answer.endswith(b"\n\n"):
                        answer += await stream.receive()
        except anyio.EndOfStream:
            pass
        except (OSError, anyio.BrokenResourceError) as error:  # TimeoutError is an OSError
            reason = str(error) or f"no answer within {ANSWER_DEADLINE:.0f} s"  # a TimeoutError has no text
            raise BackendError(f"the WireGuard process of {name} cannot be reached: {reason}") from error
        return bytes(answer)


async def _launch(binary: str, name: str) -> None:
    """Run the program until it has put itself into the background.

    It gets an environment of its own: the agent's may hold tokens, and WG_* variables would change what it does.
    """
    environment = {"LOG_LEVEL": "error", "PATH": os.environ.get("PATH", os.defpath)}
    try:
        with anyio.fail_after(START_DEADLINE):
            done = await anyio.run_process(
                [binary, name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                check=False,
            )
    except OSError as error:
        raise BackendError(f"{binary} cannot be started: {error.strerror or 'it took too long'}") from error
    if done.returncode:
        raise BackendError(tun_problem() or f"{binary} {name} ended with status {done.returncode}")


def no_wireguard(fifo: Path) -> str:
    """Return the line that says what is missing, and what helps."""
    return (
        f"the kernel has no WireGuard, there is no wireguard-go here (PATH, or the path in {ENV_BINARY}), and no helper "
        f"container listens on {fifo}: load the module wireguard, or see why the container {helper.CONTAINER} of the "
        "agent's pod does not run"
    )


def tun_missing() -> str | None:
    """Return what to do when the host has no tun device, else None."""
    if TUN.exists():
        return None
    return f"the kernel has no WireGuard, and {TUN} is missing, which wireguard-go needs: load the module tun"


def tun_problem() -> str | None:
    """Return why a tun device cannot be made by this process, or None."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return f"no permission to open {TUN}: the agent's container must be privileged or have the device"
    except OSError as error:
        return f"{TUN} cannot be opened ({error.strerror}): load the module tun, or mount the device"
    return None
