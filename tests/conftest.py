# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the event loop of the agent, and hypothesis without a deadline (machines are noisy).

Hypothesis tries 40 examples of each property, so that the unit tests take seconds; `WIREKUBE_EXAMPLES=1000` tries more
where a test does not say otherwise.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

CLONE_NEWNET = 0x40000000

settings.register_profile("wirekube", deadline=None, max_examples=int(os.environ.get("WIREKUBE_EXAMPLES", "40")))
settings.load_profile("wirekube")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def network_namespace() -> Iterator[None]:
    """Put this thread into a network namespace of the test's own, which has no way out; needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)
