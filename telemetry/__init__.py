# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry set-up, propagation, metric names, logs."""

from .provider import Telemetry, noop, setup

__all__ = ["Telemetry", "noop", "setup"]
