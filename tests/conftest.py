# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the event loop of the agent, and hypothesis without a deadline (machines are noisy).

Hypothesis tries 40 examples of each property, so that the unit tests take seconds; `WIREKUBE_EXAMPLES=1000` tries more
where a test does not say otherwise.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("wirekube", deadline=None, max_examples=int(os.environ.get("WIREKUBE_EXAMPLES", "40")))
settings.load_profile("wirekube")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
