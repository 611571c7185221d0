# SPDX-License-Identifier: Apache-2.0
"""Lets tools that read the tree by path follow relative imports; nothing imports this."""
