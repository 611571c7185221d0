# SPDX-License-Identifier: Apache-2.0
"""The relay's key file and its file of admitted keys."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

from .sessions import Admission


class Unusable(Exception):
    """What the relay was told to use cannot be used; the text is one line without any key."""


class KeyFileError(Unusable):
    """A file that cannot be used; the text is one line with the path and without any key."""


def decode_key(text: str) -> bytes | None:
    """Return the 32 bytes of a base64 key, None when it is none."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None


def load_or_create(path: Path) -> bytes:
    """Return the private key of the file; an absent file is created with a new key, readable by its owner only.

    Raises:
        KeyFileError: the file cannot be read, written or understood.
    """
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(os.urandom(32)) + b"\n")
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot use the key file {path}: {_reason(error)}") from error
    key = decode_key(text.strip())
    if key is None:
        raise KeyFileError(f"cannot use the key file {path}: it does not hold one base64 key of 32 bytes")
    return key


class AllowFile:
    """Base64 public keys, one a line, '#' starts a comment. Read again when the file changes.

    Raises:
        KeyFileError: at first, the file cannot be read or has a line that is no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self.problem: str | None = None
        first = self._read()
        if first is None:
            raise KeyFileError(self.problem or f"cannot read {path}")
        self.admission = first

    def poll(self) -> Admission | None:
        """Return the new admission when the file changed and is valid. An invalid one leaves the old in force."""
        try:
            stamp = self._look()
        except OSError as error:
            self.problem = f"cannot read {self._path}: {_reason(error)}"
            return None
        return None if stamp == self._stamp else self._read()

    def _look(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self) -> Admission | None:
        try:
            self._stamp = self._look()
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.problem = f"cannot read {self._path}: {_reason(error)}"
            return None
        keys: set[bytes] = set()
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            key = decode_key(text) if text else None
            if text and key is None:
                self.problem = f"{self._path} line {number} is not a base64 key of 32 bytes"
                return None
            if key is not None:
                keys.add(key)
        self.problem = None
        return Admission(keys)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or "error" if isinstance(error, OSError) else "it is not text"
