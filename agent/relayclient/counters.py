# SPDX-License-Identifier: Apache-2.0
"""Totals of all relayed peers for the exporter; a removed peer's part stays counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from .events import PeerStats


def add(total: PeerStats, part: PeerStats) -> None:
    """Add each field of `part` to `total`."""
    for field in fields(PeerStats):
        setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))


def export(meter: Meter, total: Callable[[], PeerStats]) -> None:
    """Make `wirekube_relayclient_NAME` counters that are summed when they are collected."""

    def reader(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [Observation(getattr(total(), name))]

    for field in fields(PeerStats):
        meter.create_observable_counter(f"wirekube_relayclient_{field.name}", callbacks=[reader(field.name)])
