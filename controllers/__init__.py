# SPDX-License-Identifier: Apache-2.0
"""The operator: Nodes and the Mesh become Peers and status."""
