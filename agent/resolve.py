# SPDX-License-Identifier: Apache-2.0
"""Names to addresses, before and without the mesh.

The pod's resolver is cluster DNS, which may be reachable through the mesh alone; the host's works before it. Both are
asked at once, the first answer wins, and the last good one is kept, for a name server may be down when it is needed most.
Cluster names go to the pod's resolver only: nobody outside shall hear of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

from ..wire.endpoint import Endpoint, IPAddress

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
        last_good: what names resolved to before, by name; kept up to date here.
        port: of the name servers.
    """

    def __init__(
        self,
        pod: Path,
        hosts: Sequence[Path],
        last_good: dict[str, tuple[str, ...]] | None = None,
        *,
        port: int = 53,
    ) -> None:
        self._pod, self._hosts, self._port = pod, tuple(hosts), port
        self.last_good = {} if last_good is None else last_good

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

    def servers(self) -> frozenset[IPAddress]:
        """Return the addresses of the name servers of pod and host."""
        found = [each for each in map(self._read, (self._pod, *self._hosts)) if each is not None]
        return frozenset(ip for each in found for ip in _addresses(each))

    async def _ask(self, host: str) -> tuple[str, ...]:
        tasks = [asyncio.ensure_future(_query(resolver, host)) for resolver in self._resolvers(host)]
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

    def _resolvers(self, host: str) -> list[dns.asyncresolver.Resolver]:
        """Return who is asked for a name. The files are read each time: DHCP and the kubelet rewrite them."""
        pod = self._read(self._pod)
        if _is_cluster_name(host, pod.search if pod else ()):
            return [pod] if pod else []
        return [each for each in (pod, *map(self._read, self._hosts)) if each is not None]

    def _read(self, path: Path) -> dns.asyncresolver.Resolver | None:
        try:
            resolver = dns.asyncresolver.Resolver(filename=str(path))
        except (dns.exception.DNSException, OSError, ValueError):  # ValueError: a line that only glibc passes over
            return None
        resolver.port = self._port
        return resolver


def _is_cluster_name(host: str, search: Iterable[dns.name.Name]) -> bool:
    """Tell whether a name is cluster DNS' own; the pod's search list says `svc.DOMAIN` where DOMAIN is the cluster's."""
    name = host.lower().removesuffix(".")
    domains = (each.to_text(omit_final_dot=True).lower() for each in search)
    own = tuple(f".{domain}" for domain in domains if domain.startswith("svc."))
    return name.endswith((*CLUSTER_SUFFIXES, *own))


def _addresses(resolver: dns.asyncresolver.Resolver) -> Iterator[IPAddress]:
    for server in resolver.nameservers:
        with contextlib.suppress(ValueError):  # a link-local one with its interface
            yield ip_address(str(server))


async def _query(resolver: dns.asyncresolver.Resolver, host: str) -> tuple[str, ...]:
    try:
        answer = await resolver.resolve(host, "A", search=True, lifetime=LIMIT_SECONDS)
    except (dns.exception.DNSException, OSError):
        return ()
    return tuple(sorted(record.address for record in answer))
