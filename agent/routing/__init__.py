# SPDX-License-Identifier: Apache-2.0
"""The host's routes, rules, addresses and sysctls of the mesh interface."""
