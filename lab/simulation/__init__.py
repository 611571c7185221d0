# SPDX-License-Identifier: Apache-2.0
"""Many agents' control sides against a real API server: what they ask of it, without a data plane."""
