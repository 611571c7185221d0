# SPDX-License-Identifier: Apache-2.0
"""The agent runs on plain asyncio."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
