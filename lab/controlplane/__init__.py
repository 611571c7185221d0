# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes control plane (etcd and kube-apiserver) for the lab and for tests, on addresses of one's choice."""

from .binaries import BinariesMissing, find_or_build
from .server import ControlPlane

__all__ = ["BinariesMissing", "ControlPlane", "find_or_build"]
