# SPDX-License-Identifier: Apache-2.0
"""The hot path against the slow model: one frame after another, each looked at."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from wirekube.relay import forward
from wirekube.relay.connection import Connection
from wirekube.relay.counters import Counters
from wirekube.relay.sessions import Registry
from wirekube.wire import relay as wire

ME, A, B, NOBODY = (bytes([letter]) * 32 for letter in b"mabn")


class Session:
    """What the forwarder needs of a connection, recording."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.closed = self.more = False
        self.got = b""

    def send_run(self, run: memoryview, now: float) -> None:
        self.got += bytes(run)


class World:
    def __init__(self) -> None:
        self.sessions = {key: Session(key) for key in (ME, A, B)}
        self.counters = Counters()
        self.controls: list[tuple[int, bytes]] = []
        registry: Registry[Connection] = Registry()
        for key, session in self.sessions.items():
            registry.register(key, cast("Connection", session))
        self.forwarder = forward.Forwarder(registry, self.counters, lambda _, kind, body: self.note(kind, body))

    def note(self, kind: int, body: bytes) -> None:
        self.controls.append((kind, body))

    def process(self, data: bytes) -> int:
        self.forwarder.buffer[: len(data) + 64] = data + data[:64].ljust(64, b"\0")  # stale bytes must not be looked at
        return self.forwarder.process(cast("Connection", self.sessions[ME]), len(data), 0.0)

    def feed(self, stream: bytes, cut: int) -> None:
        """Hand the stream over in reads of `cut` bytes, as the server does: the rest stays in front."""
        me = self.sessions[ME]
        rest = b""
        while stream or me.more:
            rest, stream = rest + stream[:cut], stream[cut:]
            rest = rest[self.process(rest) :]
        assert not rest


bodies = st.binary(max_size=3) | st.just(b"\xff" * 60)
data = st.builds(
    wire.data_frame,
    st.sampled_from((A, B, NOBODY, ME)),
    st.sampled_from((0, 1)),
    bodies,
)
signals = st.builds(lambda key, body: wire.frame(wire.SIGNAL, key + body), st.sampled_from((A, B)), bodies)
pings = st.builds(lambda body: wire.frame(wire.PING, body), st.binary(min_size=8, max_size=8))
runs = st.builds(lambda frame, count: [frame] * count, data | signals | pings, st.integers(1, 5))


def slowly(frames: list[bytes]) -> tuple[dict[bytes, bytes], int, list[tuple[int, bytes]]]:
    """What each session is to get, how many frames meet nobody, and what is not to be forwarded."""
    got = {ME: b"", A: b"", B: b""}
    absent, controls = 0, []
    for frame in frames:
        kind, key = frame[4], frame[5:37]
        if kind == wire.PING:
            controls.append((kind, frame[5:]))
        elif key in got:
            got[key] += frame[:5] + ME + frame[37:]
        else:
            absent += 1
    return got, absent, controls


@given(st.lists(runs, max_size=12), st.integers(1, 400))
def test_like_the_slow_model(groups: list[list[bytes]], cut: int) -> None:
    frames = [frame for group in groups for frame in group]
    world = World()
    world.feed(b"".join(frames), cut)
    got, absent, controls = slowly(frames)
    assert {key: session.got for key, session in world.sessions.items()} == got
    assert world.counters.dropped_absent == absent
    assert world.controls == controls
    assert world.counters.frames == len(frames) - len(controls)


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_turn_ends_after_its_frames(beyond: int, ahead: int) -> None:
    world = World()
    count = forward.FRAMES_A_TURN - ahead + beyond
    stream = wire.frame(wire.PING, bytes(8)) * ahead + wire.data_frame(A, 0, b"x") * count
    me = world.sessions[ME]
    used = world.process(stream)
    assert me.more
    assert len(world.controls) + world.counters.frames == forward.FRAMES_A_TURN
    assert used == 13 * ahead + 40 * (forward.FRAMES_A_TURN - ahead)
