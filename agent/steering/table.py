# SPDX-License-Identifier: Apache-2.0
"""Keeps the steering table in the kernel as planned, by `nft`, in single transactions.

The kernel's table is compared with the plan every 10 s and after every notification of a change: firewalld and reloads
of nftables flush everything. What was adopted from an agent before us is read back, so that a restart moves no leg.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from ...telemetry.logs import get_logger
from ...wire.endpoint import Endpoint
from .plan import TABLE, Elements, PeerSteering, SteeringPlan, render, render_change

log = get_logger("wirekube.agent.steering")

VERIFY_SECONDS = 10.0
SETTLE_SECONDS = 0.2  # a reload comes in many notifications

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 270, 1, 7


class SteeringError(Exception):
    """nft refused or is missing; the message is its own first line."""


@dataclass(frozen=True)
class Snapshot:
    """The table as the kernel has it: its maps, and its chains and rules without handles."""

    maps: Elements
    rules: str


class Steering:
    """The table of this node."""

    def __init__(self) -> None:
        self._applied: SteeringPlan | None = None
        self._rules: str | None = None
        self._lock = asyncio.Lock()  # a comparison in the middle of a transaction would undo it

    async def apply(self, plan: SteeringPlan) -> bool:
        """Make the kernel's table equal to the plan; return whether anything was written.

        Raises:
            SteeringError: nft is missing, lacks permission, or refuses the table.
        """
        async with self._lock:
            change = render_change(self._applied, plan) if self._applied is not None else None
            if change == "":
                return False
            if change is None or not await _try(change):
                await self._replace(plan)
            self._applied = plan
            return True

    async def verify(self) -> bool:
        """Compare the kernel's table with what was applied and restore it; return whether that was needed."""
        async with self._lock:
            if self._applied is None:
                return False
            seen = await read()
            if seen is not None and seen.rules == self._rules and seen.maps == self._applied.maps:
                return False
            await self._replace(self._applied)
            return True

    async def _replace(self, plan: SteeringPlan) -> None:
        await _nft(render(plan), "-f", "-")
        written = await read()
        self._rules = written.rules if written else None


async def remove() -> None:
    """Delete the table; one that is absent is no error."""
    await _nft(f"table ip {TABLE}\ndelete table ip {TABLE}\n", "-f", "-")


async def read() -> Snapshot | None:
    """Read the table; None when there is none.

    Raises:
        SteeringError: nft is missing or lacks permission.
    """
    if f"table ip {TABLE}" not in (await _nft("", "list", "tables")).splitlines():
        return None
    return parse(await _nft("", "-j", "list", "table", "ip", TABLE))


def parse(text: str) -> Snapshot:
    """Read what `nft -j list table` prints."""
    maps: Elements = {"leg_src": {}, "leg_addr": {}, "leg_port": {}, "back": {}}
    rules: list[Any] = []
    for item in json.loads(text)["nftables"]:
        if "map" in item:
            maps[item["map"]["name"]] = {_key(key): str(value) for key, value in item["map"].get("elem", [])}
        elif "chain" in item or "rule" in item:
            ((kind, body),) = item.items()
            rules.append({kind: {name: value for name, value in body.items() if name not in ("handle", "index")}})
    return Snapshot(maps, json.dumps(rules, sort_keys=True))


def adopted(snapshot: Snapshot) -> dict[int, PeerSteering]:
    """Return the entries of a table that an agent before us left, by virtual port; none of another program's."""
    try:
        return _entries(snapshot.maps)
    except ValueError:
        return {}


def _entries(maps: Elements) -> dict[int, PeerSteering]:
    accept: dict[int, set[Endpoint]] = {}
    for source, port in maps["back"].items():
        host, _, number = source.partition(" . ")
        accept.setdefault(int(port), set()).add(Endpoint.of(host, int(number)))
    legs = {
        int(port): Endpoint.of(address, int(maps["leg_port"][port]))
        for port, address in maps["leg_addr"].items()
        if port in maps["leg_port"]
    }
    sources = {int(port): IPv4Address(address) for port, address in maps.get("leg_src", {}).items()}
    return {
        port: PeerSteering(port, legs.get(port), sources.get(port), frozenset(accept.get(port, ())))
        for port in legs.keys() | accept.keys()
    }


def watch(loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> socket.socket:
    """Call `changed` on each notification that some table changed; close the returned socket after removing its reader."""
    notifications = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    notifications.bind((0, 0))
    notifications.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def drain() -> None:
        try:
            while notifications.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:
            log.debug("notifications of nftables were lost; the table is compared all the same")  # ENOBUFS: too many
        changed()

    loop.add_reader(notifications, drain)
    return notifications


async def guard(verify: Callable[[], Awaitable[object]]) -> None:
    """Call `verify` at once, every 10 s, and when some table has changed; runs until it raises or is cancelled."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    notifications = watch(loop, changed.set)
    try:
        while True:
            changed.clear()
            await verify()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VERIFY_SECONDS):
                    await changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
    finally:
        loop.remove_reader(notifications)
        notifications.close()


async def _try(transaction: str) -> bool:
    """Write a transaction of elements; False when the kernel's table is not what it builds on."""
    try:
        await _nft(transaction, "-f", "-")
    except SteeringError:
        return False
    return True


async def _nft(text: str, *arguments: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise SteeringError("the program nft is missing; install nftables") from None
    try:
        out, err = await process.communicate(text.encode())
    finally:
        if process.returncode is None:  # we are cancelled; a transaction that was cut off did nothing
            process.kill()
            await process.wait()
    if process.returncode:
        raise SteeringError((err.decode(errors="replace").strip() or "nft failed").splitlines()[0])
    return out.decode()


def _key(key: Any) -> str:
    return " . ".join(str(part) for part in key["concat"]) if isinstance(key, dict) else str(key)
