# SPDX-License-Identifier: Apache-2.0
"""The node agent: owns one node's WireGuard interface, routes and paths."""
