# SPDX-License-Identifier: Apache-2.0
"""What an agent knows of its own Peer, and when it asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

from wirekube.agent.ownpeer import OwnPeer


def shown(uid: str = "1", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "me", "uid": uid}, "spec": {"addresses": []}, "status": status}


async def due(own: OwnPeer, seconds: float = 0.05) -> bool:
    """Whether a GET is due at once."""
    try:
        async with asyncio.timeout(seconds):
            await own.due(3600)
    except TimeoutError:
        return False
    return True


async def test_it_is_read_when_it_is_seen_first_and_again_only_when_its_slice_says_something_else() -> None:
    own = OwnPeer()
    assert not await due(own)
    own.look(shown(publicKey="k"))
    assert await due(own)
    own.take(shown(publicKey="k", listenPort=7))
    own.look(shown(publicKey="k", keyAccepted=True))
    assert not await due(own)
    own.look(shown(publicKey="another"))
    assert await due(own)
    own.take(shown(publicKey="k", listenPort=7))
    own.look(shown(uid="2"))
    assert await due(own)


async def test_it_is_read_now_and_then_while_it_is_there() -> None:
    own = OwnPeer()
    own.look(shown(publicKey="k"))
    own.take(shown(publicKey="k"))
    assert await due(own)  # of the first look
    await asyncio.wait_for(own.due(0.01), 1)
    own.look(None)
    try:
        await asyncio.wait_for(own.due(0.01), 0.1)
    except TimeoutError:
        return
    raise AssertionError("asked for a Peer that is in no slice")


async def test_a_failed_read_is_repeated() -> None:
    own = OwnPeer()
    own.again()
    assert await due(own)


async def test_status_and_spec_are_joined_while_they_are_of_one_peer() -> None:
    own = OwnPeer()
    assert own.merged(None) is None
    seen = shown(publicKey="k")
    assert own.merged(seen) is seen
    own.take(shown(publicKey="k", listenPort=7))
    assert own.merged(seen) == seen | {"status": {"publicKey": "k", "listenPort": 7}}
    other = shown(uid="2")
    assert own.merged(other) is other


async def test_an_answer_that_was_overtaken_by_a_newer_one_changes_nothing() -> None:
    own, seen = OwnPeer(), shown(publicKey="k")
    newer, older = (
        {**shown(listenPort=port), "metadata": {"uid": "1", "resourceVersion": str(port)}} for port in (10, 9)
    )
    own.take(newer)
    own.take(older)
    assert (own.merged(seen) or {})["status"] == {"listenPort": 10}
    own.take({**older, "metadata": {"uid": "2", "resourceVersion": "3"}})
    assert own.merged(shown(uid="2")) == shown(uid="2") | {"status": {"listenPort": 9}}
