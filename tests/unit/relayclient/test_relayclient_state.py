# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.relayclient.dialplan import Backoff
from wirekube.agent.relayclient.gate import INITIATION, Gate
from wirekube.agent.relayclient.liveness import Liveness
from wirekube.agent.relayclient.proxy import MAX_BYTES, MAX_SEGMENTS, pieces


def initiation(number: int) -> bytes:
    return INITIATION + bytes([number]) * 144


def test_the_newest_initiation_is_handed_over_once_when_present_and_released() -> None:
    gate = Gate()
    assert gate.hold(memoryview(initiation(1)), 0) == 0
    assert gate.hold(memoryview(b"\4" + bytes(147)), 0) == 1
    assert gate.hold(memoryview(initiation(2)), 0) == 0
    assert gate.release() is None
    assert gate.present() == initiation(2)
    assert gate.open
    assert gate.present() is None
    assert gate.release() is None


def test_gone_closes_until_both_are_said_again() -> None:
    gate = Gate()
    gate.release()
    gate.present()
    gate.close()
    gate.hold(memoryview(initiation(3)), 0)
    assert gate.present() is None
    assert not gate.open
    assert gate.release() == initiation(3)


def test_an_initiation_within_a_train_is_found() -> None:
    gate = Gate()
    assert gate.hold(memoryview(bytes(148) + initiation(1) + initiation(2) + b"rest"), 148) == 2
    assert gate.take() == initiation(2)
    assert gate.take() is None
    assert gate.hold(memoryview(b""), 0) == 0


def test_the_second_side_yields_until_its_time_is_up_or_the_other_came() -> None:
    gate = Gate(first=False)
    gate.present()
    assert gate.release() is None
    assert gate.open
    assert gate.yielding
    assert not gate.waiting
    gate.hold(memoryview(initiation(1)), 0)
    assert gate.waiting
    assert gate.end_yield() == initiation(1)
    assert not gate.yielding
    gate.close()
    gate.hold(memoryview(initiation(2)), 0)
    gate.present()
    gate.release()
    assert gate.waiting
    assert gate.heard(memoryview(initiation(9))) is None
    assert gate.open
    assert gate.waiting
    gate.hold(memoryview(initiation(3)), 0)  # left our WireGuard before it took theirs
    assert gate.end_yield() is None
    assert not gate.yielding
    assert gate.take() is None


def test_a_held_response_goes_as_soon_as_the_gate_opens() -> None:
    response = b"\2\0\0\0" + bytes(88)
    gate = Gate(first=False)
    gate.hold(memoryview(initiation(1)), 0)
    gate.theirs()
    assert gate.hold(memoryview(response), 0) == 0
    assert not gate.open
    assert gate.present() == response
    assert gate.waiting
    gate.hold(memoryview(initiation(2)), 0)
    assert gate.end_yield() is None


def test_data_of_the_peer_ends_the_yield() -> None:
    for theirs, sent in ((False, initiation(1)), (True, None)):
        gate = Gate(first=False)
        gate.present()
        gate.release()
        if theirs:
            gate.heard(memoryview(initiation(9)))
        gate.hold(memoryview(initiation(1)), 0)
        assert gate.heard(memoryview(b"\4" + bytes(31))) == sent
        assert not gate.yielding


def test_a_packet_of_the_peer_opens_the_gate_and_lets_ours_go_unless_it_is_an_initiation() -> None:
    for packet, sent in ((b"\2" + bytes(91), initiation(1)), (initiation(9), None)):
        gate = Gate()
        gate.hold(memoryview(initiation(1)), 0)
        assert gate.heard(memoryview(packet)) == sent
        assert gate.open


@given(st.lists(st.sampled_from(["present", "release", "close", "hold", "take"])))
def test_whatever_happens_an_initiation_leaves_once_and_only_through_an_open_gate(steps: list[str]) -> None:
    gate, number, out = Gate(), 0, []
    for step in steps:
        if step == "hold":
            if gate.open:
                continue
            number += 1
            gate.hold(memoryview(initiation(number)), 0)
        elif step == "close":
            gate.close()
        else:
            got = {"present": gate.present, "release": gate.release, "take": gate.take}[step]()
            assert got is None or gate.open or step == "take"
            out += [got] if got else []
    assert len(set(out)) == len(out)


def test_backoff_looks_each_second_at_first_then_doubles_to_its_cap_and_starts_anew() -> None:
    backoff = Backoff(random.Random(1))
    caps = [0.2, 0.4, 0.8] + [1.0] * 27 + [2.0, 4.0, 8.0, 10.0, 10.0]
    for cap in caps:
        assert cap / 2 <= backoff.delay() <= cap
    backoff.reset()
    assert [0.1 <= backoff.delay() <= 0.2, 0.2 <= backoff.delay() <= 0.4] == [True, True]


def test_a_busy_session_is_dead_after_three_seconds_and_an_idle_one_after_ten() -> None:
    busy = Liveness(0)
    busy.sent(0.5)
    assert busy.ping_due(1.0)
    assert not busy.ping_due(1.5)
    assert busy.ping_due(2.0)
    assert not busy.dead(3.4)
    assert busy.dead(3.5)
    idle = Liveness(0)
    assert not idle.ping_due(6.9)
    assert idle.ping_due(7.0)
    assert idle.dead(10.0)
    idle.heard()
    assert not idle.dead(10.0)
    assert not idle.ping_due(13.9)


@given(st.integers(0, 65535), st.integers(1, 65535))
def test_pieces_cover_a_train_in_whole_segments_within_the_kernels_limits(size: int, segment: int) -> None:
    spans = list(pieces(size, segment))
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert sum(end - start for start, end in spans) == size
    for start, end in spans:
        assert start % segment == 0
        assert end - start <= max(MAX_BYTES, segment)
        assert end - start <= MAX_SEGMENTS * segment
