# SPDX-License-Identifier: Apache-2.0
"""Waiting for conditions with a deadline, and what to wait for."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import TypeVar

from ..wire import stun
from .netns import inside
from .state import LabError
from .topology import STUN_ADDRESSES, STUN_PORT

T = TypeVar("T")

POLL_SECONDS = 0.02
STUN_SECONDS = 10.0


def until(condition: Callable[[], bool], seconds: float, poll: float = POLL_SECONDS) -> bool:
    """Wait until a condition holds; return whether it did before the time was up."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(poll)
    return True


def eventually(probe: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """Return what a probe returns once it is true.

    Raises:
        TimeoutError: it was not in time.
    """
    end = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() >= end:
            raise TimeoutError(f"not within {seconds:.0f} s{': ' if what else ''}{what}")
        time.sleep(POLL_SECONDS)
    return found


def missing_tools(names: Iterable[str]) -> list[str]:
    """Return those of the programs that are not in PATH."""
    return [name for name in names if shutil.which(name) is None]


def until_stun_answers(
    namespace: str, last_words: Callable[[], str], addresses: Sequence[IPv4Address] = STUN_ADDRESSES
) -> None:
    """Wait until the STUN server answers from both addresses, and from the other address and port when asked to.

    The last comes a moment later than the first; who asks in between takes the NAT for a stricter one.

    Raises:
        LabError: it does not, with the end of its log.
    """
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.1)
        for address in addresses:
            for changed in (False, True):
                if not until(partial(_answers, asker, (str(address), STUN_PORT), changed), STUN_SECONDS):
                    raise LabError(f"the STUN server does not answer on {address}: {last_words()}")


def _answers(asker: socket.socket, server: tuple[str, int], changed: bool) -> bool:
    txid = os.urandom(stun.TXID_BYTES)
    asker.sendto(stun.encode_request(txid, change_ip=changed, change_port=changed), server)
    try:
        while message := stun.decode(asker.recv(2048)):
            if message.txid == txid:
                return message.kind == stun.BINDING_SUCCESS
    except TimeoutError:
        pass
    return False
