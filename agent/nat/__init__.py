# SPDX-License-Identifier: Apache-2.0
"""What lies between this node and the internet: STUN through WireGuard's own port, and the NAT's behaviour (RFC 4787)."""
