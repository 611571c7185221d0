# SPDX-License-Identifier: Apache-2.0
"""The relay: passes encrypted packets between agents that cannot reach each other, and answers STUN."""
