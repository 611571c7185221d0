# SPDX-License-Identifier: Apache-2.0
"""What the relay counts: plain integers where packets pass, read by the exporter when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation


@dataclass(slots=True)
class Counters:
    """Totals since the start, and two levels: `sessions`, `unauthenticated`."""

    sessions: int = 0
    unauthenticated: int = 0
    registered: int = 0
    replaced: int = 0
    refused: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    frames: int = 0
    dropped_full: int = 0
    dropped_absent: int = 0
    stun_answers: int = 0
    stun_ignored: int = 0


_LEVELS: Final = {"sessions", "unauthenticated"}


def export(meter: Meter, counters: Counters) -> None:
    """Make `wirekube_relay_NAME` instruments that read the counters when they are collected."""

    def reader(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [Observation(getattr(counters, name))]

    for field in fields(counters):
        create = meter.create_observable_gauge if field.name in _LEVELS else meter.create_observable_counter
        create(f"wirekube_relay_{field.name}", callbacks=[reader(field.name)])
