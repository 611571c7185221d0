# SPDX-License-Identifier: Apache-2.0
"""The nftables table beneath WireGuard: which leg each peer's packets take, and the sharing of WireGuard's port."""
