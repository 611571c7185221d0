# SPDX-License-Identifier: Apache-2.0
"""Keys that two nodes share because each has the other's WireGuard public key: X25519(static, static) through HKDF.

WireGuard's own use of the same shared secret goes through its own KDF; the labels keep ours apart from it and from each
other.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
PROBE_LABEL = b"wirekube probe v1"
SIGNAL_LABEL = b"wirekube signal v1"


def public_key(private_key: bytes) -> bytes:
    """Return the public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


class PairKeys:
    """The keys of each pair that this node is part of.

    Args:
        private_key: our WireGuard private key, 32 bytes.
    """

    def __init__(self, private_key: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private_key)
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self._derived: dict[tuple[bytes, bytes], bytes] = {}

    def derive(self, peer: bytes, label: bytes) -> bytes | None:
        """Return the 32-byte key of a pair for one purpose; None for a public key of low order."""
        known = self._derived.get((peer, label))
        if known is None:
            try:
                secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
            except ValueError:
                return None
            # The order of the two keys in the salt must not depend on who computes it.
            salt = b"".join(sorted((self.public, peer)))
            known = HKDF(SHA256(), KEY_BYTES, salt, label).derive(secret)
            self._derived[(peer, label)] = known
        return known

    def forget(self, peer: bytes) -> None:
        """Drop what was derived for a peer that left."""
        for label in (PROBE_LABEL, SIGNAL_LABEL):
            self._derived.pop((peer, label), None)
