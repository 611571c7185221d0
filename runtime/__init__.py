# SPDX-License-Identifier: Apache-2.0
"""List, watch, queue, reconcile, serve health: what operator and agent are built on."""
