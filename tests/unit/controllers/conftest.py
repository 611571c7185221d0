# SPDX-License-Identifier: Apache-2.0
"""A client that takes down what is written, and a recorder of Events."""

from __future__ import annotations

from typing import Any

import pytest

from wirekube.runtime.errors import from_response


class Written:
    """Records writes; serves one Service range and the addresses of the API server."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.events: list[tuple[str, str]] = []
        self.reads = 0
        self.failure: Exception | None = None

    async def apply(self, _kind: Any, obj: Any, *, field_manager: str, force: bool = True) -> Any:
        self.calls.append(("apply", obj))
        return obj

    async def apply_status(self, _kind: Any, obj: Any, *, field_manager: str, force: bool = True) -> Any:
        self.calls.append(("status", obj))
        return obj

    async def delete(self, _kind: Any, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        self.calls.append(("delete", (name, uid)))

    async def get(self, kind: Any, _name: str, _namespace: str | None = None) -> Any:
        self.reads += 1
        if kind.kind != "EndpointSlice":
            raise from_response(404, b"", {})
        return {"endpoints": [{"addresses": ["203.0.113.6", "2001:db8::6"]}, {"addresses": ["203.0.113.5", "junk"]}, 7]}

    async def list(self, _kind: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return [{"spec": {"cidrs": ["198.18.0.0/16"]}}], "1"

    def event(self, regarding: Any, type: str, reason: str, _action: str, _note: str) -> None:
        self.events.append((regarding["metadata"]["name"], reason))


@pytest.fixture
def written() -> Written:
    return Written()
