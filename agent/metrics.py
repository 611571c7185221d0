# SPDX-License-Identifier: Apache-2.0
"""The agent's gauges and counters, read when they are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ..telemetry import names
from .paths.model import State
from .report import NodeView


def export(meter: Meter, view: Callable[[], NodeView]) -> None:
    """Export what a view shows. The exporter's thread calls it, so it is one that was made in the loop before."""

    def peers(_: CallbackOptions) -> Iterable[Observation]:
        states = [path.state for path in view().paths.values()]
        return [Observation(states.count(state), {"path": state.value}) for state in State]

    def received(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(each.rx_bytes for each in view().stats.values()))]

    def sent(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(each.tx_bytes for each in view().stats.values()))]

    meter.create_observable_gauge(names.PEERS, callbacks=[peers], description="peers by the state of their path")
    meter.create_observable_counter(names.RECEIVED, callbacks=[received], unit="By", description="WireGuard, all peers")
    meter.create_observable_counter(names.SENT, callbacks=[sent], unit="By", description="WireGuard, all peers")
