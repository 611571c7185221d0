# SPDX-License-Identifier: Apache-2.0
"""Group wirekube.io, version v1alpha1."""
