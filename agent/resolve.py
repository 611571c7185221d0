# SPDX-License-Identifier: Apache-2.0
"""Names to addresses, before and without the mesh.

The pod's resolver is cluster DNS, which may be reachable through the mesh alone; the host's works before it. Both are
asked at once, the first answer wins, and the last good one is kept, for a name server may be down when it is needed most.
Cluster names go to the pod's resolver only: nobody outside shall hear of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.resolver

from ..wire.endpoint import Endpoint

LIMIT_SECONDS = 2.0
CLUSTER_SUFFIXES = (".svc", ".cluster.local")


def split_host(text: str) -> tuple[str, int]:
    """Split `host:port` or `[IPv6]:port`.

    Raises:
        ValueError: the text has another form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Resolver:
    """Resolves `host:port` to IPv4 endpoints.

    Args:
        pod: the pod's resolv.conf.
        hosts: the host's resolv.conf files; absent ones are skipped.
    """

    def __init__(self, pod: Path, hosts: Sequence[Path]) -> None:
        self._pod, self._hosts = pod, tuple(hosts)
        self.last_good: dict[str, tuple[str, ...]] = {}

    async def resolve(self, text: str) -> tuple[Endpoint, ...]:
        """Return the endpoints; the last good ones when nobody answers, none when there never were any.

        Raises:
            ValueError: the text is not HOST:PORT.
        """
        host, port = split_host(text)
        try:
            return (Endpoint(ip_address(host), port),)
        except ValueError:
            pass
        found = await self._ask(host)
        if found:
            self.last_good[host] = found
        return tuple(Endpoint.of(address, port) for address in self.last_good.get(host, ()))

    async def _ask(self, host: str) -> tuple[str, ...]:
        files = [self._pod] if host.endswith(CLUSTER_SUFFIXES) else [self._pod, *self._hosts]
        tasks = [asyncio.ensure_future(_query(path, host)) for path in files]
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                for next_done in asyncio.as_completed(tasks):
                    if answer := await next_done:
                        return answer
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ()


async def _query(path: Path, host: str) -> tuple[str, ...]:
    try:
        resolver = dns.asyncresolver.Resolver(filename=str(path))
        answer = await resolver.resolve(host, "A", search=True, lifetime=LIMIT_SECONDS)
    except (dns.exception.DNSException, OSError):
        return ()
    return tuple(sorted(record.address for record in answer))
