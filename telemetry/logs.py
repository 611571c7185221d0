# SPDX-License-Identifier: Apache-2.0
"""Structured logs on standard error, each line with the trace and span that it belongs to.

An exception is shown as a plain traceback: prettier formats print local variables, and those may hold keys.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, FilteringBoundLogger, Processor

LEVELS = ("debug", "info", "warning", "error", "critical")


def configure(level: str, json: bool) -> None:
    """Set up logging of this process; a later call replaces the set-up.

    Args:
        level: `debug`, `info`, `warning`, `error` or `critical`, in any case. Libraries that log through the standard
            library are shown from `warning` on.
        json: one JSON object a line, else lines for people.

    Raises:
        ValueError: the level is none of these.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    _configure(level.lower(), json)
    _adopt_stdlib(json)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose lines carry `component=name`; until `configure` they are for people, from `info` on."""
    return cast(FilteringBoundLogger, structlog.get_logger(component=name))


def add_span(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add `trace_id` and `span_id` of the current span, in hexadecimal, when there is one."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _configure(level: str, json: bool) -> None:
    structlog.configure(
        processors=[*_shared(), *_renderers(json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_stderr_logger,
        cache_logger_on_first_use=False,
    )


def _stderr_logger(*_args: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def _shared() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_span,
    ]


def _renderers(json: bool) -> list[Processor]:
    if json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = sys.stderr.isatty()
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


class _LibraryHandler(logging.StreamHandler[TextIO]):
    """The handler that `configure` owns, so that a later call finds and replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _adopt_stdlib(json: bool) -> None:
    """Show the warnings of libraries in our form."""
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _LibraryHandler)]:
        root.removeHandler(old)
    handler = _LibraryHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_shared(), structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(json)],
        )
    )
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)


# structlog's own defaults write to standard output and print local variables with a traceback.
_configure("info", json=False)
