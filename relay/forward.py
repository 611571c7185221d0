# SPDX-License-Identifier: Apache-2.0
"""The hot path: from one read to one send for each run of frames with the same destination.

The work for a frame is a look at its header and 32 bytes written in place; look-ups and system calls are for runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..wire import relay as wire
from .connection import Connection
from .counters import Counters
from .sessions import Registry

FRAMES_A_TURN: Final = (
    1024  # more than 256 KiB of full-size packets; a flood of tiny frames waits for the others' turns
)

_unpack = wire.HEADER.unpack_from
_FIRST: Final = wire.HEADER.size
_AFTER_KEY: Final = _FIRST + wire.KEY
_DATA_LOW: Final = 1 + wire.KEY + 2
_SIGNAL_LOW: Final = 1 + wire.KEY
_SIGNAL_HIGH: Final = _SIGNAL_LOW + wire.MAX_SIGNAL


class Forwarder:
    """Cuts what a connection sent, hands packets on and everything else to `control`.

    Args:
        registry: destinations.
        counters: what to count in.
        control: called with connection, frame type and body of each other frame.

    Attributes:
        buffer: where the caller puts what it read.
        view: the same.
    """

    def __init__(
        self, registry: Registry[Connection], counters: Counters, control: Callable[[Connection, int, bytes], None]
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._control = control
        self._now = 0.0
        self.buffer = bytearray(wire.READ + 4 + wire.MAX_LENGTH)
        self.view = memoryview(self.buffer)

    def process(self, conn: Connection, have: int, now: float) -> int:
        """Handle whole frames at the front of `buffer[:have]`, at most FRAMES_A_TURN.

        Sets `conn.more` when it stopped at that number. An incomplete frame stays.

        Returns:
            How many bytes were used up.

        Raises:
            ProtocolError: a frame outside the limits; what came before it was handled.
        """
        self._now = now
        buffer, view = self.buffer, self.view
        me = conn.key
        position = start = run = 0
        last = b""
        limit = _limit(conn)
        left = FRAMES_A_TURN
        length: int
        while left and have - position >= _FIRST:
            length, kind = _unpack(buffer, position)
            if not 1 <= length <= limit:
                self._deliver(last, view[start:position], run)
                raise wire.ProtocolError(f"frame of {length} bytes")
            end = position + 4 + length
            if end > have:
                break
            if me is not None and (
                (kind == wire.DATA and length >= _DATA_LOW)
                or (kind == wire.SIGNAL and _SIGNAL_LOW <= length <= _SIGNAL_HIGH)
            ):
                key = buffer[position + _FIRST : position + _AFTER_KEY]
                if key != last:
                    self._deliver(last, view[start:position], run)
                    start, run, last = position, 0, bytes(key)
                alike = _readdress(buffer, position, have, 4 + length, me, left)
                run += alike
                left -= alike
                position += alike * (4 + length)
            else:
                self._deliver(last, view[start:position], run)
                start, run, last = end, 0, b""
                self._control(conn, kind, bytes(view[position + _FIRST : end]))
                left -= 1
                position = end
                if conn.closed:
                    return end
                me, limit = conn.key, _limit(conn)
        self._deliver(last, view[start:position], run)
        conn.more = not left
        return position

    def _deliver(self, key: bytes, run: memoryview, frames: int) -> None:
        if not frames:
            return
        self._counters.frames += frames
        destination = self._registry.get(key)
        if destination is None:
            self._counters.dropped_absent += frames
        else:
            destination.send_run(run, self._now)


def _readdress(buffer: bytearray, position: int, have: int, size: int, sender: bytes, most: int) -> int:
    """Write the sender's key into the whole frame at `position`, and into those behind it that start as it does.

    Frames that start alike (length, type, destination) are a stream of full-size packets; one comparison shows that each
    of them is as good as the first.

    Returns:
        How many frames, 1 to `most`.
    """
    alike = buffer[position : position + _AFTER_KEY]
    instead = alike[:_FIRST] + sender
    first, last = position, min(have, position + most * size) - size
    while position <= last and buffer[position : position + _AFTER_KEY] == alike:
        buffer[position : position + _AFTER_KEY] = instead
        position += size
    return (position - first) // size


def _limit(conn: Connection) -> int:
    """Return the largest frame length; before registration nothing is longer than HELLO."""
    return wire.MAX_LENGTH if conn.key is not None else 1 + 1 + wire.KEY + wire.NONCE
