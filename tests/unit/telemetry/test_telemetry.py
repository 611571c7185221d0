# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wirekube import telemetry
from wirekube.telemetry import logs, names


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for signal in ("", "TRACES_", "METRICS_"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT", raising=False)


@pytest.fixture
def tele() -> Iterator[telemetry.Telemetry]:
    made = telemetry.setup("test", instance="n1")
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    config, handlers = structlog.get_config(), list(logging.getLogger().handlers)
    yield
    structlog.configure(**config)
    logging.getLogger().handlers[:] = handlers


def test_series_have_plain_names_and_labels(tele: telemetry.Telemetry) -> None:
    tele.meter.create_counter(names.REST_REQUESTS).add(2, {"code": "200"})
    assert tele.registry.get_sample_value("rest_client_requests_total", {"code": "200"}) == 2
    assert tele.registry.get_sample_value("target_info", {"service_name": "test"}) is None
    assert any(
        sample.labels.get("service_instance_id") == "n1" for m in tele.registry.collect() for sample in m.samples
    )


def test_seconds_have_our_buckets(tele: telemetry.Telemetry) -> None:
    tele.meter.create_histogram(names.PATH_SEARCH, unit="s").record(0.3)
    buckets = [
        sample.labels["le"]
        for metric in tele.registry.collect()
        for sample in metric.samples
        if sample.name == "wirekube_path_search_seconds_bucket"
    ]
    assert [float(b) for b in buckets] == [*names.SECONDS_BUCKETS, float("inf")]


def test_two_processes_worth_do_not_meet(tele: telemetry.Telemetry) -> None:
    other = telemetry.setup("other")
    other.meter.create_counter("only_here").add(1)
    assert other.registry.get_sample_value("only_here_total") == 1
    assert tele.registry.get_sample_value("only_here_total") is None
    other.shutdown()
    other.shutdown()


def test_spans_reach_the_exporter() -> None:
    spans = InMemorySpanExporter()
    tele = telemetry.setup("test", span_exporter=spans)
    with tele.tracer.start_as_current_span("work"):
        pass
    assert [(s.name, s.resource.attributes["service.name"]) for s in spans.get_finished_spans()] == [("work", "test")]
    tele.shutdown()


def test_exporters_are_only_loaded_when_asked_for() -> None:
    import subprocess

    code = "import sys; from wirekube import telemetry; telemetry.setup('x'); print('opentelemetry.exporter.otlp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert found.stdout.strip() == "False"


def test_a_silent_collector_does_not_hold_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tele = telemetry.setup("test")
        with tele.tracer.start_as_current_span("work"):
            pass
        started = time.monotonic()
        tele.shutdown(timeout=0.2)
        assert time.monotonic() - started < 2
    # The exporter's retries must not run into other tests.
    for thread in [each for each in threading.enumerate() if each.name == "telemetry-shutdown"]:
        thread.join(20)


def test_noop_records_nothing() -> None:
    tele = telemetry.noop()
    tele.meter.create_counter("c").add(1)
    with tele.tracer.start_as_current_span("work") as span:
        assert not span.is_recording()
    assert list(tele.registry.collect()) == []
    tele.shutdown()


def test_json_lines_carry_the_span(tele: telemetry.Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", json=True)
    log = logs.get_logger("here")
    log.debug("hidden")
    with tele.tracer.start_as_current_span("work") as span:
        log.info("inside", peer="n2")
    log.info("outside")
    inside, outside = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    context = span.get_span_context()
    assert (inside["component"], inside["event"], inside["peer"]) == ("here", "inside", "n2")
    assert inside["trace_id"] == f"{context.trace_id:032x}"
    assert inside["span_id"] == f"{context.span_id:016x}"
    assert "trace_id" not in outside


@pytest.mark.parametrize("json", [True, False])
def test_tracebacks_show_no_variables(capsys: pytest.CaptureFixture[str], json: bool) -> None:
    logs.configure("info", json=json)
    private_key = "s3-cret"
    try:
        raise ValueError("it failed")
    except ValueError:
        logs.get_logger("here").exception("oops", length=len(private_key))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "it failed" in captured.err
    assert "s3-cret" not in captured.err


def test_libraries_are_shown_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", json=True)
    logs.configure("debug", json=True)
    logging.getLogger("lib").info("hidden")
    logging.getLogger("lib").warning("careful")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "careful"


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="loud"):
        logs.configure("loud", json=False)
