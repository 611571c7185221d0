# SPDX-License-Identifier: Apache-2.0
"""The relay protocol, version 1, byte by byte. No sockets here.

A frame is, big-endian:

    offset 0   u32  length: bytes that follow this field (type and body), 1 to 65570
    offset 4   u8   type
    offset 5   body

Bodies; K is a 32-byte WireGuard public key:

    type 1  HELLO      u8 version, K client's key, 16 B client's nonce
    type 2  CHALLENGE  K relay's static key, 16 B relay's nonce: 8 B name of the process, 8 B random for this session
    type 3  PROOF      32 B MAC of the client
    type 4  WELCOME    32 B MAC of the relay
    type 5  DATA       K, u16 segment size, train of 0 to 65535 B. Size 0: the train is one datagram. Else the train is
                       datagrams of that size one after another; the last may be shorter
    type 6  SIGNAL     K, 0 to 1200 B that only the two ends understand
    type 7  WATCH      K   client asks: tell me at once, and at each change, whether K has a session
    type 8  UNWATCH    K
    type 9  PRESENT    K   relay says: K has a session (again after each new session of K, preceded by GONE)
    type 10 GONE       K
    type 11 PING       8 B token      type 12 PONG  the same 8 B
    type 13 CLOSE      UTF-8 text, 0 to 200 B: the sender ends the session on purpose
    type 14 ERROR      UTF-8 text, 0 to 200 B: the sender ends the session because of what the other did

A session: client HELLO, relay CHALLENGE, client PROOF, relay WELCOME, then anything but types 1 to 4. In DATA and SIGNAL
K names the other end: a client writes the destination, the relay replaces it by the sender. An unknown type is skipped;
a known type with a wrong body ends the session.

Several relay processes may share a key and an address. The name of a process is "WKP" and 5 B that are random at its
start, so a client knows before its PROOF whether it has a session with this very process: a second one would replace the
first. It then leaves by CLOSE instead, and nothing has happened to the session that it has. A relay from before processes
had names has 16 random bytes there: without "WKP" in front all processes of that key count as one, so none of its sessions
is ever replaced by the search for another. A client from before takes the 16 B as they are.

    secret     = X25519(own static private key, the other's static public key)
    key        = HKDF-SHA256(secret, salt = client's nonce | relay's nonce, info = "wirekube relay v1", 32 bytes)
    transcript = HELLO body | CHALLENGE body
    PROOF      = HMAC-SHA256(key, "client" | transcript)
    WELCOME    = HMAC-SHA256(key, "relay" | transcript)

So each side proves that it holds its private key, and a recorded proof is worth nothing. The session is not encrypted: DATA
is WireGuard's ciphertext and SIGNAL is sealed by the agents; who can change the bytes on the way can drop and delay
packets and lie about presence, as the relay itself could, and no more.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION: Final = 1
KEY: Final = 32
NONCE: Final = 16
PROCESS: Final = 8
MAX_TRAIN: Final = 65535
MAX_SIGNAL: Final = 1200
MAX_TEXT: Final = 200
MAX_LENGTH: Final = 1 + KEY + 2 + MAX_TRAIN
HEADER: Final = struct.Struct("!IB")
DATA_HEADER: Final = HEADER.size + KEY + 2
READ: Final = 256 << 10

HELLO: Final = 1
CHALLENGE: Final = 2
PROOF: Final = 3
WELCOME: Final = 4
DATA: Final = 5
SIGNAL: Final = 6
WATCH: Final = 7
UNWATCH: Final = 8
PRESENT: Final = 9
GONE: Final = 10
PING: Final = 11
PONG: Final = 12
CLOSE: Final = 13
ERROR: Final = 14

_PROCESS_TAG: Final = b"WKP"
_SEGMENT = struct.Struct("!H")
_DATA_HEADER = struct.Struct(f"!IB{KEY}sH")
_SIZES: Final[dict[int, tuple[int, int]]] = {
    HELLO: (1 + KEY + NONCE, 1 + KEY + NONCE),
    CHALLENGE: (KEY + NONCE, KEY + NONCE),
    PROOF: (32, 32),
    WELCOME: (32, 32),
    DATA: (KEY + 2, KEY + 2 + MAX_TRAIN),
    SIGNAL: (KEY, KEY + MAX_SIGNAL),
    WATCH: (KEY, KEY),
    UNWATCH: (KEY, KEY),
    PRESENT: (KEY, KEY),
    GONE: (KEY, KEY),
    PING: (8, 8),
    PONG: (8, 8),
    CLOSE: (0, MAX_TEXT),
    ERROR: (0, MAX_TEXT),
}


class ProtocolError(ValueError):
    """The other end sent what the protocol does not allow; the text is fit for an ERROR frame."""


class HandshakeError(ValueError):
    """The other end did not prove what it claims; the text names the reason and no secret."""


class Hello(NamedTuple):
    """The client's first frame."""

    version: int
    key: bytes
    nonce: bytes

    def body(self) -> bytes:
        """Return the 49 bytes after the frame's type."""
        return bytes((self.version,)) + self.key + self.nonce


class Challenge(NamedTuple):
    """The relay's answer to HELLO."""

    key: bytes
    nonce: bytes

    def body(self) -> bytes:
        """Return the 48 bytes after the frame's type."""
        return self.key + self.nonce

    @property
    def process(self) -> bytes:
        """Which process of which relay this is, 40 bytes. The key is part of it: no relay can pass for another one."""
        name = self.nonce[:PROCESS]
        return self.key + (name if name.startswith(_PROCESS_TAG) else bytes(PROCESS))


class Data(NamedTuple):
    """A train; segment 0 means one datagram. The train is a view into the body that was parsed."""

    key: bytes
    segment: int
    train: memoryview


def known(kind: int) -> bool:
    """Tell whether this version defines the frame type."""
    return kind in _SIZES


def check(kind: int, size: int) -> None:
    """Refuse a body size that the type does not allow; types that are not known pass.

    Raises:
        ProtocolError: the body is too short or too long.
    """
    low, high = _SIZES.get(kind, (0, MAX_LENGTH))
    if not low <= size <= high:
        raise ProtocolError(f"frame type {kind} with {size} bytes")


def frame(kind: int, body: bytes = b"") -> bytes:
    """Return one whole frame.

    Raises:
        ProtocolError: the type does not allow a body of this size.
    """
    check(kind, len(body))
    return HEADER.pack(1 + len(body), kind) + body


def data_frame(key: bytes, segment: int, train: bytes | memoryview) -> bytes:
    """Return a DATA frame. The hot paths write the header in place instead."""
    return frame(DATA, key + _SEGMENT.pack(segment) + bytes(train))


def put_data_header(buffer: bytearray, offset: int, key: bytes, segment: int, size: int) -> None:
    """Write the 39 bytes before a train of `size` bytes that stands at offset + 39."""
    _DATA_HEADER.pack_into(buffer, offset, 1 + KEY + 2 + size, DATA, key, segment)


def text_frame(kind: int, text: str) -> bytes:
    """Return a CLOSE or ERROR frame; a text that is too long is cut."""
    return frame(kind, text.encode(errors="replace")[:MAX_TEXT])


def parse_hello(body: bytes) -> Hello:
    """Read a HELLO body whose size was checked. Any version parses: the caller refuses those that it does not speak."""
    return Hello(body[0], body[1 : 1 + KEY], body[1 + KEY :])


def parse_challenge(body: bytes) -> Challenge:
    """Read a CHALLENGE body whose size was checked."""
    return Challenge(body[:KEY], body[KEY:])


def parse_data(body: memoryview) -> Data:
    """Read a DATA body whose size was checked."""
    return Data(bytes(body[:KEY]), _SEGMENT.unpack_from(body, KEY)[0], body[KEY + 2 :])


def parse_text(body: bytes) -> str:
    """Read a CLOSE or ERROR body; what is not printable is left out, because the text goes to logs and conditions."""
    return "".join(letter for letter in body.decode("utf-8", "replace") if letter.isprintable())


class Reader:
    """Cuts a byte stream into frames, a large read at a time.

    `space()` is where the next read goes, `filled(n)` says how much came, `frames()` yields what is complete.
    """

    def __init__(self, read: int = READ) -> None:
        self._buffer = bytearray(read + 4 + MAX_LENGTH)
        self._view = memoryview(self._buffer)
        self._start = 0  # where the first byte that is not part of a yielded frame stands
        self._have = 0
        self._read = read

    def space(self) -> memoryview:
        """Return room for one read; never empty once `frames()` ran to its end. Bodies are not valid any more."""
        if self._start:
            rest = self._have - self._start
            self._view[:rest] = self._view[self._start : self._have]
            self._start, self._have = 0, rest
        return self._view[self._have : self._have + self._read]

    def filled(self, size: int) -> None:
        """Note that a read put `size` bytes into `space()`."""
        self._have += size

    def frames(self) -> Iterator[tuple[int, memoryview]]:
        """Yield type and body of each complete frame; a body is valid until `space()`. Keeps the rest.

        Raises:
            ProtocolError: a length or a body size is outside the limits. The stream cannot be used any more.
        """
        while self._have - self._start >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer, self._start)
            if not 1 <= length <= MAX_LENGTH:
                raise ProtocolError(f"frame of {length} bytes")
            end = self._start + 4 + length
            if end > self._have:
                return
            check(kind, length - 1)
            start, self._start = self._start + HEADER.size, end
            yield kind, self._view[start:end]


def public_key(private: bytes) -> bytes:
    """Return the public key of a 32-byte X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_secret(private: bytes, public: bytes) -> bytes:
    """Return X25519(private, public), 32 bytes.

    Raises:
        HandshakeError: the public key is one of the points that give the same secret to everybody (RFC 7748, section 6.1).
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise HandshakeError("unusable public key") from error


def process_name(randomness: bytes) -> bytes:
    """Return the 8 bytes that name a relay process, made of 5 random ones."""
    return _PROCESS_TAG + randomness[: PROCESS - len(_PROCESS_TAG)]


class _Macs(NamedTuple):
    client: bytes
    relay: bytes


def _macs(secret: bytes, hello: Hello, challenge: Challenge) -> _Macs:
    salt = hello.nonce + challenge.nonce
    key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"wirekube relay v1").derive(secret)
    transcript = hello.body() + challenge.body()
    return _Macs(*(hmac.digest(key, label + transcript, hashlib.sha256) for label in (b"client", b"relay")))


class RelayHandshake:
    """The relay's side of one registration.

    Args:
        private: the relay's 32-byte static private key.
        nonce: 16 bytes: the name of the process, and 8 fresh random ones.
    """

    def __init__(self, private: bytes, nonce: bytes) -> None:
        self._private = private
        self._nonce = nonce
        self._hello: Hello | None = None
        self._challenge: Challenge | None = None

    def challenge(self, hello: Hello) -> Challenge:
        """Answer HELLO.

        Raises:
            HandshakeError: a second HELLO, or a version that is not spoken here.
        """
        if self._hello is not None:
            raise HandshakeError("second HELLO")
        if hello.version != VERSION:
            raise HandshakeError(f"protocol version {hello.version} is not spoken here, {VERSION} is")
        self._hello = hello
        self._challenge = Challenge(public_key(self._private), self._nonce)
        return self._challenge

    def welcome(self, proof: bytes) -> tuple[bytes, bytes]:
        """Check the client's PROOF; return its key, now proved, and the body of WELCOME.

        Raises:
            HandshakeError: the proof is wrong or came before HELLO.
        """
        if self._hello is None or self._challenge is None:
            raise HandshakeError("PROOF before HELLO")
        macs = _macs(shared_secret(self._private, self._hello.key), self._hello, self._challenge)
        if not hmac.compare_digest(macs.client, proof):
            raise HandshakeError("wrong proof")
        return self._hello.key, macs.relay


class ClientHandshake:
    """The client's side of one registration.

    Args:
        private: the node's 32-byte WireGuard private key.
        nonce: 16 fresh random bytes.
        expected: the relay's public key, or None to accept any; `seen` then tells which it was.
    """

    def __init__(self, private: bytes, nonce: bytes, expected: bytes | None) -> None:
        self._private = private
        self._expected = expected
        self._welcome: bytes | None = None
        self.hello = Hello(VERSION, public_key(private), nonce)
        self.seen: bytes | None = None

    def proof(self, challenge: Challenge) -> bytes:
        """Answer CHALLENGE with the body of PROOF.

        Raises:
            HandshakeError: the relay shows another key than the expected one, or an unusable one.
        """
        if self._expected is not None and challenge.key != self._expected:
            raise HandshakeError("the relay shows another key than the expected one")
        macs = _macs(shared_secret(self._private, challenge.key), self.hello, challenge)
        self.seen, self._welcome = challenge.key, macs.relay
        return macs.client

    def accept(self, welcome: bytes) -> None:
        """Check WELCOME; from here on the relay has proved its key.

        Raises:
            HandshakeError: the relay does not hold the private key of what it showed.
        """
        if self._welcome is None or not hmac.compare_digest(self._welcome, welcome):
            raise HandshakeError("the relay did not prove its key")
