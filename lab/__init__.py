# SPDX-License-Identifier: Apache-2.0
"""A whole mesh on one Linux machine, with real parts."""
