# SPDX-License-Identifier: Apache-2.0
"""A WireGuard that does not answer in time is named as such: a time-out has no text of its own."""

import asyncio

import pytest

from wirekube.agent.wireguard import kernel, userspace
from wirekube.agent.wireguard.backend import BackendError


async def test_a_process_that_stays_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(userspace, "ANSWER_DEADLINE", 0.05)
    done = asyncio.Event()

    async def listen(reader, writer):
        await reader.read()
        writer.close()
        await writer.wait_closed()
        done.set()

    server = await asyncio.start_unix_server(listen, tmp_path / "wg9.sock")
    try:
        with pytest.raises(BackendError, match="wg9 cannot be reached: no answer within"):
            await userspace.UserspaceBackend(socket_dir=tmp_path).read("wg9")
        async with asyncio.timeout(5):
            await done.wait()
    finally:
        server.close()
        await server.wait_closed()


async def test_a_kernel_that_stays_silent(monkeypatch):
    async def family_id(name):
        raise TimeoutError

    monkeypatch.setattr(kernel, "family_id", family_id)
    with pytest.raises(BackendError, match="for wg9: no answer in time"):
        await kernel.KernelBackend().read("wg9")
