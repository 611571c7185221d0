# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 client for thousands of connections in one process. It speaks to a kube-apiserver, and to nothing else.

The agents' own client spends most of its time in layers that a simulator of a thousand agents on one machine cannot pay
for. What goes over the wire is the same.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

LIMIT: Final = 4 << 20  # of a line of a watch
KEEP_SECONDS: Final = 5.0  # an idle connection, as the agents' client keeps it
APPLY: Final = "application/apply-patch+yaml"


class HttpError(Exception):
    """An answer of 300 and more, or none."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:200]}")
        self.status = status


class Wire:
    """Requests of one agent.

    Args:
        server: URL.
        token: bearer token.
        context: trusts the server's CA; shared by all agents.
    """

    def __init__(self, server: str, token: str, context: ssl.SSLContext) -> None:
        url = urlsplit(server)
        self._host, self._port = url.hostname or "", url.port or 443
        self._context = context
        self._head = f" HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n"
        self._idle: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._drop: asyncio.TimerHandle | None = None
        self._one = asyncio.Lock()

    async def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Send a request; return the JSON of its answer.

        Raises:
            HttpError: the server refuses, or the connection broke.
        """
        text = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path}{self._head}Content-Type: {content_type}\r\nContent-Length: {len(text)}\r\n\r\n"
        async with self._one:
            reader, writer = self._take() or await self._open()
            try:
                writer.write(head.encode() + text)
                status, headers = await _answer(reader)
                content = await _content(reader, headers)
            except (OSError, EOFError, ValueError) as error:
                writer.close()
                raise HttpError(0, str(error)) from error
            self._keep(reader, writer)
        if status >= 300:
            raise HttpError(status, content.decode(errors="replace"))
        return json.loads(content)

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch; yields its lines, each one event, until the server ends it.

        Raises:
            HttpError: the server refuses.
        """
        reader, writer = await self._open()
        try:
            writer.write(f"GET {path}{self._head}\r\n".encode())
            status, headers = await _answer(reader)
            if status >= 300:
                raise HttpError(status, (await _content(reader, headers)).decode(errors="replace"))
            yield _lines(reader)
        finally:
            writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection(self._host, self._port, ssl=self._context, limit=LIMIT)
        except OSError as error:
            raise HttpError(0, str(error)) from error

    def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        found, self._idle = self._idle, None
        if self._drop is not None:
            self._drop.cancel()
        return None if found is None or found[0].at_eof() else found

    def _keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._idle = reader, writer
        self._drop = asyncio.get_running_loop().call_later(KEEP_SECONDS, self.close)

    def close(self) -> None:
        """Close the idle connection."""
        if self._idle is not None:
            self._idle[1].close()
            self._idle = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = (line.partition(":") for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value.strip() for name, _, value in headers}


async def _content(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return b"".join([chunk async for chunk in _chunks(reader)])


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    try:
        async for chunk in _chunks(reader):
            if chunk.endswith(b"\n") and chunk.count(b"\n") == 1:  # nearly always: one event, one chunk
                yield rest + chunk
                rest = b""
                continue
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
    except (OSError, EOFError, ValueError):
        return
