# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API of WireKube: typed models, CRD generation, rules that operator and agents share. No I/O."""
