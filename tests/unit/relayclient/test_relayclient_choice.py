# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.relayclient.choice import best, pair_of

KEYS = st.binary(min_size=32, max_size=32)
PROCESSES = st.sets(st.binary(min_size=40, max_size=40), min_size=1, max_size=16)


@given(KEYS, KEYS, PROCESSES, st.randoms())
def test_both_ends_choose_alike_whatever_the_order(
    one: bytes, other: bytes, processes: set[bytes], rng: random.Random
) -> None:
    shuffled = sorted(processes)
    rng.shuffle(shuffled)
    chosen = best(pair_of(one, other), processes)
    assert chosen in processes
    assert best(pair_of(other, one), shuffled) == chosen


@given(KEYS, KEYS, PROCESSES, st.randoms())
def test_a_pair_moves_only_when_its_process_dies_or_a_better_one_comes(
    one: bytes, other: bytes, processes: set[bytes], rng: random.Random
) -> None:
    pair, gone = pair_of(one, other), rng.choice(sorted(processes))
    before, after = best(pair, processes), best(pair, processes - {gone})
    assert after == before if gone != before else after != before
    if after is not None:
        assert best(pair, {*processes, gone}) in {after, gone}


def test_without_a_process_there_is_no_choice() -> None:
    assert best(bytes(64), ()) is None


def test_pairs_spread_evenly() -> None:
    rng = random.Random(7)
    processes = [rng.randbytes(40) for _ in range(4)]
    won = Counter(best(pair_of(rng.randbytes(32), rng.randbytes(32)), processes) for _ in range(4000))
    assert all(900 < won[process] < 1100 for process in processes)
