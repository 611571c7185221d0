# SPDX-License-Identifier: Apache-2.0
"""Which of several relay processes carries a pair: a choice that both of its ends make alike without a word. Pure.

Rendezvous hashing: each process has a rank for each pair, and the highest of those that have both ends carries it. Pairs
spread evenly, and when a process comes or goes, only those pairs move that it wins or loses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def pair_of(one: bytes, other: bytes) -> bytes:
    """Return the name of a pair of public keys, whichever comes first."""
    return min(one, other) + max(one, other)


def best(pair: bytes, processes: Iterable[bytes]) -> bytes | None:
    """Return the process that carries the pair; None when there is none.

    Args:
        pair: from `pair_of`.
        processes: names of relay processes as `wire.Challenge.process` has them, in any order.
    """
    return max(processes, key=lambda process: _rank(pair, process), default=None)


def _rank(pair: bytes, process: bytes) -> bytes:
    return hashlib.blake2b(pair + process, digest_size=8).digest()
