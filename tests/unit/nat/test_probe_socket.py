# SPDX-License-Identifier: Apache-2.0
"""The probe socket at the size of a large mesh."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import pytest

from wirekube.agent.nat.socket import ProbeSocket

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="a large buffer needs root")]


async def test_the_answers_of_a_thousand_peers_that_were_asked_at_once_fit() -> None:
    """After a restart or a change of the network all direct paths are asked together; a few losses end a path."""
    heard = asyncio.Queue[bytes]()
    probes = ProbeSocket(lambda data, _source: heard.put_nowait(data), random.Random(1))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peers:
            for _ in range(1000):
                peers.sendto(bytes(90), ("127.0.0.1", probes.port))
        async with asyncio.timeout(5):
            for _ in range(1000):
                assert await heard.get() == bytes(90)
    finally:
        probes.close()
