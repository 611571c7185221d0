# SPDX-License-Identifier: Apache-2.0
"""pyroute2's asyncio classes, without types: the package has no annotations and builds its names at import time."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias

_pyroute2 = import_module("pyroute2")

RtNetlink: TypeAlias = Any
"""An open AsyncIPRoute, for annotations."""

AsyncIPRoute: Any = _pyroute2.AsyncIPRoute
NetlinkError: Any = _pyroute2.NetlinkError
