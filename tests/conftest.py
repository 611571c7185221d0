# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the event loop of the agent, and hypothesis without a deadline (machines are noisy)."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("wirekube", deadline=None)
settings.load_profile("wirekube")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
