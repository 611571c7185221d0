# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from wirekube.agent.traces import MAX_EVENTS, PathTraces
from wirekube.telemetry import Telemetry, names, setup


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(exporter: InMemorySpanExporter) -> Iterator[Telemetry]:
    made = setup("wirekube-agent", span_exporter=exporter)
    yield made
    made.shutdown()


@pytest.fixture
def traces(telemetry: Telemetry) -> PathTraces:
    return PathTraces(telemetry.tracer, telemetry.meter, "n1")


def searched(telemetry: Telemetry) -> dict[str, tuple[float, float]]:
    """Count and sum of the seconds of searches, by the path that they found."""
    found: dict[str, tuple[float, float]] = {}
    name = names.PATH_SEARCH.replace(".", "_")
    for family in telemetry.registry.collect():
        if not family.name.startswith(name):
            continue
        for sample in family.samples:
            count, total = found.get(sample.labels["path"], (0.0, 0.0))
            if sample.name.endswith("_count"):
                found[sample.labels["path"]] = (sample.value, total)
            elif sample.name.endswith("_sum"):
                found[sample.labels["path"]] = (count, sample.value)
    return found


def test_one_span_tells_why_it_took_so_long(
    traces: PathTraces, exporter: InMemorySpanExporter, telemetry: Telemetry
) -> None:
    traces.search("n2", "PeerAdded", 10.0)
    traces.event("n2", "ping sent", address="203.0.113.2:51820")
    traces.event("n2", "pong received", mapped=True)
    traces.transition("n2", "Connecting", "Direct", "ProbeAnswered", 12.5)
    (span,) = exporter.get_finished_spans()
    assert [event.name for event in span.events] == ["ping sent", "pong received"]
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "wirekube.node": "n1",
        "wirekube.peer": "n2",
        "wirekube.cause": "PeerAdded",
        "wirekube.outcome": "Direct",
        "wirekube.reason": "ProbeAnswered",
    }
    assert searched(telemetry) == {"Direct": (1.0, 2.5)}


def test_a_relayed_pair_goes_on_searching_in_a_span_of_its_own(
    traces: PathTraces, exporter: InMemorySpanExporter
) -> None:
    traces.search("n2", "PeerAdded", 0.0)
    traces.transition("n2", "Connecting", "Relayed", "NoDirectPath", 30.0)
    traces.event("n2", "ping sent")
    traces.transition("n2", "Relayed", "Direct", "ProbeAnswered", 40.0)
    first, second = exporter.get_finished_spans()
    assert (first.attributes or {})["wirekube.outcome"] == "Relayed"
    assert (second.attributes or {})["wirekube.cause"] == "retry after NoDirectPath"
    assert len(second.events) == 1


def test_an_unreachable_peer_is_an_error(traces: PathTraces, exporter: InMemorySpanExporter) -> None:
    traces.search("n2", "PeerAdded", 0.0)
    traces.transition("n2", "Connecting", "Unreachable", "UDPBlocked", 1.0)
    assert exporter.get_finished_spans()[0].status.status_code is StatusCode.ERROR


def test_a_peer_that_stays_away_does_not_fill_the_memory(traces: PathTraces, exporter: InMemorySpanExporter) -> None:
    traces.search("n2", "PeerAdded", 0.0)
    for _ in range(MAX_EVENTS + 10):
        traces.event("n2", "ping sent")
    traces.close(1.0)
    traces.close(2.0)
    (span,) = exporter.get_finished_spans()
    assert len(span.events) == MAX_EVENTS


def test_what_is_not_searched_for_takes_no_events(traces: PathTraces, exporter: InMemorySpanExporter) -> None:
    traces.event("n2", "ping sent")
    traces.forget("n2", 1.0)
    assert exporter.get_finished_spans() == ()


def test_a_search_is_started_once_and_ends_when_the_peer_leaves(
    traces: PathTraces, exporter: InMemorySpanExporter, telemetry: Telemetry
) -> None:
    traces.search("n2", "PeerAdded", 0.0)
    traces.search("n2", "NetworkChanged", 1.0)
    traces.forget("n2", 2.0)
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["wirekube.cause"] == "PeerAdded"
    assert searched(telemetry) == {}
