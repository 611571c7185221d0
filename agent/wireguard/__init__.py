# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices: what they should be, what they are, and two backends that change the one into the other."""
