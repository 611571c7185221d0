# SPDX-License-Identifier: Apache-2.0
"""Tracer, meter and Prometheus registry of one process, passed on as one value.

The providers are never made global: a global one can be set only once, and a test could not have its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import NoOpTracerProvider, Tracer
from prometheus_client import CollectorRegistry

from .names import SECONDS_BUCKETS

SHUTDOWN_DEADLINE = 3.0


@dataclass
class Telemetry:
    """What a part needs to trace and to count; pass it on explicitly.

    Attributes:
        tracer: starts spans.
        meter: creates instruments; see `names` for what they are called.
        registry: what `/metrics` serves.
    """

    tracer: Tracer
    meter: Meter
    registry: CollectorRegistry
    _closers: list[Callable[[], object]] = field(default_factory=list, repr=False)

    def shutdown(self, timeout: float = SHUTDOWN_DEADLINE) -> None:
        """Flush and stop the exporters; returns after at most `timeout` seconds. The second call does nothing.

        A collector that is away makes the exporters wait, and an exit must not wait with them.
        """
        closers, self._closers = self._closers, []
        if not closers:
            return
        thread = threading.Thread(target=_call_all, args=(closers,), name="telemetry-shutdown", daemon=True)
        thread.start()
        thread.join(timeout)


def _call_all(closers: list[Callable[[], object]]) -> None:
    for close in closers:
        close()


def setup(service_name: str, *, instance: str = "", span_exporter: SpanExporter | None = None) -> Telemetry:
    """Make the providers of this process.

    Metrics always go to the registry. Traces and metrics go out by OTLP over HTTP as well when the usual variables
    (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`) say
    where to. Without them spans still exist, so that logs carry trace ids.

    Args:
        service_name: the resource's `service.name`, for example `wirekube-agent`.
        instance: the resource's `service.instance.id`, for example the node's name.
        span_exporter: gets every span at its end, before `setup`'s other exporters; for tests.
    """
    attributes = {"service.name": service_name}
    if instance:
        attributes["service.instance.id"] = instance
    resource = Resource.create(attributes)
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    for processor in _span_processors(span_exporter):
        tracers.add_span_processor(processor)
    registry = CollectorRegistry()
    meters = MeterProvider(
        metric_readers=_readers(registry), resource=resource, views=[_seconds_view()], shutdown_on_exit=False
    )
    closers: list[Callable[[], object]] = [tracers.shutdown, meters.shutdown]
    return Telemetry(tracers.get_tracer("wirekube"), meters.get_meter("wirekube"), registry, closers)


def noop() -> Telemetry:
    """Return telemetry that records nothing, for tests and for commands that end at once."""
    return Telemetry(
        NoOpTracerProvider().get_tracer("wirekube"), NoOpMeterProvider().get_meter("wirekube"), CollectorRegistry()
    )


def _seconds_view() -> View:
    """Give every histogram in seconds our buckets: the defaults (0, 5, 10 … 10000) are made for milliseconds."""
    return View(
        instrument_type=Histogram,
        instrument_unit="s",
        aggregation=ExplicitBucketHistogramAggregation(SECONDS_BUCKETS),
    )


def _wants_otlp(signal: str) -> bool:
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def _span_processors(span_exporter: SpanExporter | None) -> list[SpanProcessor]:
    processors: list[SpanProcessor] = []
    if span_exporter is not None:
        processors.append(SimpleSpanProcessor(span_exporter))
    if _wants_otlp("TRACES"):
        # Imported here: the exporter costs 90 ms and 22 MiB, which a node without a collector need not pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        processors.append(BatchSpanProcessor(OTLPSpanExporter()))
    return processors


def _readers(registry: CollectorRegistry) -> list[MetricReader]:
    readers: list[MetricReader] = [PrometheusMetricReader(scope_info_enabled=False, registry=registry)]
    if _wants_otlp("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    return readers
