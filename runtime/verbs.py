# SPDX-License-Identifier: Apache-2.0
"""The verbs of the Kubernetes API over raw dictionaries: what URL, parameters and body each one takes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, TypeGuard
from urllib.parse import quote

import httpx

from .errors import Gone, Unavailable, from_response, from_status
from .objects import Kind, Object

Objects = list[Object]
PAGE = 500
WATCH_SLACK = 15.0
_PATCH_TYPES = {"merge": "application/merge-patch+json", "json": "application/json-patch+json"}
_APPLY = "application/apply-patch+yaml"


class Verbs(ABC):
    """Requests by verb; a subclass sends them.

    Every method raises a subclass of `ApiError`, and nothing else, when the request does not succeed. `namespace` is
    None for cluster-scoped kinds, and for lists and watches of all namespaces.
    """

    _timeout: float

    @abstractmethod
    async def _request(
        self,
        method: str,
        version: str,
        url: str,
        *,
        base: str = "",
        namespace: str | None = None,
        params: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send one request and return the JSON object of its answer."""

    @abstractmethod
    def _stream(self, version: str, arguments: dict[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        """Open a streaming GET on the connections that are for watches."""

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """Read one object."""
        return await self._request("GET", kind.group_version, _url(kind, name), namespace=namespace)

    async def list(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> tuple[Objects, str]:
        """Read all objects, by pages, as of one moment; return them and the resource version to watch from."""
        selectors = _selectors(label_selector, field_selector)
        try:
            return await self._pages(kind, namespace, {**selectors, "limit": str(PAGE)})
        except Gone:
            # The snapshot behind the pages has expired: once without pages. A Gone of this one is the caller's.
            return await self._pages(kind, namespace, selectors)

    async def _pages(self, kind: Kind, namespace: str | None, params: dict[str, str]) -> tuple[Objects, str]:
        items: Objects = []
        while True:
            page = await self._request("GET", kind.group_version, kind.plural, namespace=namespace, params=params)
            # Items of built-in kinds come without the two.
            base = {"apiVersion": kind.group_version, "kind": kind.kind}
            found, metadata = page.get("items") or [], page.get("metadata") or {}
            if not (isinstance(found, list) and all(map(_is_object, found)) and isinstance(metadata, dict)):
                raise Unavailable(200, f"the answer is no list of {kind.plural}")
            items += [base | item for item in found]
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion") or "")
            params = {**params, "continue": metadata["continue"]}

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: float = 300,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Yield (type, object) of changes after `resource_version`: ADDED, MODIFIED, DELETED and BOOKMARK.

        Ends when the server closes the watch, at the latest after `timeout_seconds`. An ERROR event is raised as the
        `ApiError` that it holds (Gone: list again). `on_open` is called once the server has accepted the watch. Close the generator (`contextlib.aclosing`) when leaving early.
        """
        params = _selectors(label_selector, field_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(timeout_seconds)),
        }
        limits = httpx.Timeout(self._timeout, read=timeout_seconds + WATCH_SLACK)
        arguments = {"url": kind.plural, "namespace": namespace, "params": params, "timeout": limits}
        async with self._stream(kind.group_version, arguments) as response:
            if response.status_code >= 300:
                raise from_response(response.status_code, await response.aread(), response.headers)
            if on_open is not None:
                on_open()
            async for line in response.aiter_lines():
                yield _event(line)

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        """Create an object; AlreadyExists if its name is taken."""
        return await self._request(
            "POST",
            kind.group_version,
            kind.plural,
            namespace=_namespace(kind, obj),
            params={"fieldManager": field_manager},
            body=_typed(kind, obj),
        )

    async def apply(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """Server-side apply: send the full set of fields that `field_manager` owns; what it leaves out is removed."""
        return await self._apply(kind, obj, "", field_manager, force)

    async def apply_status(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """Server-side apply of the status; NotFound if the object is absent. A wrong `metadata.uid` is ignored."""
        return await self._apply(kind, obj, "status", field_manager, force)

    async def _apply(self, kind: Kind, obj: Object, subresource: str, field_manager: str, force: bool) -> Object:
        return await self._request(
            "PATCH",
            kind.group_version,
            _url(kind, obj["metadata"]["name"], subresource),
            namespace=_namespace(kind, obj),
            params={"fieldManager": field_manager, "force": "true" if force else "false"},
            body=_typed(kind, obj),
            content_type=_APPLY,
        )

    async def patch(
        self,
        kind: Kind,
        name: str,
        body: Any,
        *,
        type: Literal["merge", "json"] = "merge",
        subresource: str | None = None,
        namespace: str | None = None,
        field_manager: str,
    ) -> Object:
        """Merge patch (a dictionary) or JSON patch (a list of operations)."""
        return await self._request(
            "PATCH",
            kind.group_version,
            _url(kind, name, subresource or ""),
            namespace=namespace,
            params={"fieldManager": field_manager},
            body=body,
            content_type=_PATCH_TYPES[type],
        )

    async def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """Delete an object, in the background; with `uid` only that very one, else Conflict."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        await self._request("DELETE", kind.group_version, _url(kind, name), namespace=namespace, body=options)


def _event(line: str) -> tuple[str, Object]:
    """Read one line of a watch.

    Raises:
        ApiError: it is an ERROR event.
        Unavailable: it is nothing that a watch sends.
        ValueError: it is not JSON.
    """
    event = json.loads(line)
    change, obj = (event.get("type"), event.get("object")) if isinstance(event, dict) else (None, None)
    if change == "ERROR" and isinstance(obj, dict):
        raise from_status(obj)
    if not (isinstance(change, str) and _is_object(obj, named=change != "BOOKMARK")):
        raise Unavailable(200, "the watch sent something that is no event")
    return change, obj


def _is_object(value: object, *, named: bool = True) -> TypeGuard[Object]:
    """Whether this is what stores and handlers rely on: metadata with a version and a name."""
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if not (isinstance(metadata, dict) and isinstance(metadata.get("resourceVersion"), str)):
        return False
    return not named or isinstance(metadata.get("name"), str)


def _url(kind: Kind, name: str, subresource: str = "") -> str:
    url = f"{kind.plural}/{quote(name, safe='')}"
    return f"{url}/{subresource}" if subresource else url


def _namespace(kind: Kind, obj: Object) -> str | None:
    return obj["metadata"].get("namespace") if kind.namespaced else None


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    chosen = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in chosen.items() if value}


def _typed(kind: Kind, obj: Object) -> Object:
    """Return the object with its type set and without `managedFields`, which an apply must not send."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "apiVersion": kind.group_version, "kind": kind.kind, "metadata": metadata}
