# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry set-up, propagation, metric names, logs."""
