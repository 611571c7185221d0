# SPDX-License-Identifier: Apache-2.0
"""Byte formats between processes: STUN, relay frames, endpoints. Sans-IO, total over garbage."""
