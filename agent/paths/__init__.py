# SPDX-License-Identifier: Apache-2.0
"""How each remote node is reached: authenticated probes, sealed signals, candidates, and the machine that decides."""
