# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when talking to the Kubernetes API, as types; made from answers by pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request did not succeed.

    Attributes:
        status: HTTP status code; 0 when there was no answer.
        message: what the server (or the connection) said; no secrets.
        reason: the machine-readable reason of a Kubernetes `Status`, or empty.
        retry_after: seconds that the server asks to wait, or None.
    """

    def __init__(self, status: int, message: str, *, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after = retry_after


class Misconfigured(ApiError):
    """There are no usable credentials: no kubeconfig, an unreadable one, or none for this context."""

    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class NotFound(ApiError):
    """404. `whole_resource` is True when the server does not serve the kind, False when only the object is absent."""

    whole_resource = False


class Conflict(ApiError):
    """409: the object has changed meanwhile, or another field manager owns the field."""


class AlreadyExists(Conflict):
    """409 of a create."""


class Gone(ApiError):
    """410: the resource version is too old, list again."""


class Forbidden(ApiError):
    """403: RBAC or admission does not allow this."""


class Unauthorized(ApiError):
    """401: the credentials are not, or no longer, good."""


class Invalid(ApiError):
    """400, 415 or 422, or a field that the schema lacks: the same request can never succeed."""


class Throttled(ApiError):
    """429: wait `retry_after` seconds (always set)."""


class Unavailable(ApiError):
    """5xx, a connection that failed, or a time-out: try again later."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    415: Invalid,
    422: Invalid,
    429: Throttled,
}


def from_response(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """Make the error of an answer of 300 or more; the body need not be JSON."""
    retry_after = _seconds(headers.get("retry-after"))
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and parsed.get("kind") == "Status":
        return from_status({**parsed, "code": status}, retry_after)
    text = body[:300].decode(errors="replace").strip() or f"HTTP status {status}"
    error = _make(status, " ".join(text.split()), "", retry_after)
    if isinstance(error, NotFound):
        error.whole_resource = True
    return error


def from_status(status: Mapping[str, Any], retry_after: float | None = None) -> ApiError:
    """Make the error of a Kubernetes `Status` object, as in an answer or in the `ERROR` event of a watch."""
    details = status.get("details")
    details = details if isinstance(details, dict) else {}
    reason, code = str(status.get("reason") or ""), status.get("code")
    if not isinstance(code, int) or not code:
        code = 410 if reason in {"Expired", "Gone"} else 500
    asked = _seconds(details.get("retryAfterSeconds"))
    message = str(status.get("message") or reason or f"HTTP status {code}")
    error = _make(code, message, reason, retry_after if asked is None else asked)
    if isinstance(error, NotFound):
        error.whole_resource = not details.get("name")
    return error


def _make(code: int, message: str, reason: str, retry_after: float | None) -> ApiError:
    kind = _BY_STATUS.get(code, Unavailable if code >= 500 else ApiError)
    if kind is Conflict and reason == "AlreadyExists":
        kind = AlreadyExists
    if code == 500 and "not declared in schema" in message:
        kind = Invalid
    if kind is Throttled and retry_after is None:
        retry_after = 1.0
    return kind(code, message, reason=reason, retry_after=retry_after)


def _seconds(value: object) -> float | None:
    """Read a delay; None for nothing, for zero and for the date form of the header, which the API does not send."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 < seconds < 3600 else None
