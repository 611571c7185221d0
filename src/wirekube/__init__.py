# SPDX-License-Identifier: Apache-2.0
"""WireKube joins the nodes of one Kubernetes cluster into a WireGuard mesh."""
