# SPDX-License-Identifier: Apache-2.0
"""An IP address with a port, as one value for every part of the project."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address


class Endpoint(NamedTuple):
    """Where a datagram goes to or comes from. Sorts by address within one family."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        """`192.0.2.1:51820` or `[2001:db8::1]:51820`, the form of WireGuard and of the API."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @classmethod
    def of(cls, host: str, port: int) -> Endpoint:
        """Make one from a socket address' first two items; an IPv4-mapped IPv6 address becomes IPv4.

        Raises:
            ValueError: host is not an IP address, or port is outside 0 to 65535.
        """
        ip = ip_address(host.partition("%")[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is outside 0 to 65535")
        return cls(ip, port)

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `IPv4:port` or `[IPv6]:port`.

        Raises:
            ValueError: the text has another form; the message shows it.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
            raise ValueError(f"{text!r} is not ADDRESS:PORT (an IPv6 address stands in brackets)")
        return cls.of(host[1:-1] if bracketed else host, int(port))

    def sockaddr(self) -> tuple[str, int]:
        """Return the address in the form that a socket's sendto takes."""
        return str(self.ip), self.port
