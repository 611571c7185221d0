# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API over raw dictionaries, with typed errors and time-outs; the only module that imports kr8s.

kr8s gives the credentials of a kubeconfig and the HTTP client. Its own objects, watches and retries are not used: they
hide errors, loop on a 410, and close a shared client on one 403.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
from kr8s import APITimeoutError
from kr8s.asyncio import Api
from opentelemetry.metrics import Counter

from ..telemetry import Telemetry, names, noop
from ..wire.endpoint import Endpoint
from .credentials import SERVICE_ACCOUNT, TokenSource, drop_temporary, environment, load_config
from .errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    Misconfigured,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
    from_response,
)
from .objects import Key, Kind, Object, key_of
from .verbs import Verbs

__all__ = [
    "AlreadyExists",
    "ApiError",
    "Client",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "Key",
    "Kind",
    "Misconfigured",
    "NotFound",
    "Object",
    "Throttled",
    "Unauthorized",
    "Unavailable",
    "key_of",
]

SO_MARK = 36


class _Api(Api):
    """kr8s' shell with an HTTP client of our own: marked sockets, keep-alive, no redirects that carry a token away."""

    mark: int | None = None

    async def _create_session(self) -> None:
        proxy = self.auth.proxy
        verify: ssl.SSLContext | bool = await self.auth.ssl_context()  # type: ignore[no-untyped-call]
        transport = httpx.AsyncHTTPTransport(
            verify=verify,
            proxy=httpx.Proxy(proxy) if proxy else None,
            socket_options=_socket_options(self.mark),
        )
        self._session = httpx.AsyncClient(
            base_url=self.auth.server,
            headers={"User-Agent": "wirekube", "Content-Type": "application/json"},
            transport=transport,
            timeout=self._timeout,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.aclose()


def _socket_options(mark: int | None) -> list[tuple[int, int, int]]:
    """Notice a dead connection after about 30 s: a watch is silent for minutes and would hang on a half-open one."""
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    ]
    return options if mark is None else [*options, (socket.SOL_SOCKET, SO_MARK, mark)]


class Client(Verbs):
    """Requests to one API server; make it with `connect`.

    Attributes:
        server: the URL in use.
        namespace: the namespace of the pod or of the kubeconfig's context.
    """

    def __init__(self, api: _Api, watch_api: _Api, token: TokenSource, timeout: float, telemetry: Telemetry) -> None:
        self.server = str(api.auth.server)
        self.namespace = str(api.auth.namespace)
        self._api = api
        self._watch_api = watch_api
        self._token = token
        self._timeout = timeout
        self._requests: Counter = telemetry.meter.create_counter(names.REST_REQUESTS, description="API requests")
        self._addresses: dict[_Api, Endpoint] = {}

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        server: str | None = None,
        context: str | None = None,
        mark: int | None = None,
        timeout: float = 10,  # noqa: ASYNC109 - kept for every later request, not for this call
        telemetry: Telemetry | None = None,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> Client:
        """Load credentials and ask the server for its version.

        Args:
            kubeconfig: path; None takes the variable KUBECONFIG, then the pod's service account.
            server: another URL for the same server; CA and credentials stay.
            context: of the kubeconfig; None takes the current one.
            mark: SO_MARK of every socket; needs CAP_NET_ADMIN.
            timeout: seconds for each request.
            telemetry: counts requests.
            service_account: the folder of a pod's token, CA and namespace.

        Raises:
            Misconfigured: no usable credentials.
            ApiError: the server cannot be reached (Unavailable) or refuses us.
        """
        config = load_config(kubeconfig, service_account, environment())
        source = config if isinstance(config, str) else "the pod's service account"
        shells = [_shell(config, server, context, mark, timeout) for _ in range(2)]
        try:
            await _load(shells)
        except Exception as error:
            raise Misconfigured(f"cannot use the credentials of {source}: {_line(error)}") from error
        client = cls(shells[0], shells[1], _token_source(shells[0]), timeout, telemetry or noop())
        try:
            await client._request("GET", "", "", base="/version")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.close()
            raise
        return client

    def server_addresses(self) -> frozenset[Endpoint]:
        """Return the remote addresses of the last connections; behind a proxy, the proxy's."""
        return frozenset(self._addresses.values())

    async def close(self) -> None:
        """Close all connections; watches under way end with Unavailable."""
        await self._watch_api.close()
        await self._api.close()

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
        """Send one request, within the time-out as a whole, and return the JSON object of its answer."""
        arguments: dict[str, Any] = {"url": url, "base": base, "namespace": namespace, "params": params or {}}
        if body is not None:
            arguments |= {"content": json.dumps(body), "headers": {"Content-Type": content_type}}
        with self._mapped(method), anyio.fail_after(self._timeout):
            async with self._call(self._api, method, version, arguments) as response:
                if response.status_code >= 300:
                    raise from_response(response.status_code, response.content, response.headers)
                parsed = response.json()
        if not isinstance(parsed, dict):
            raise Unavailable(response.status_code, f"{method} {self.server}: the answer is no object")
        return parsed

    def _stream(self, version: str, arguments: dict[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        return self._call(self._watch_api, "GET", version, {**arguments, "stream": True})

    @contextlib.asynccontextmanager
    async def _call(
        self, api: _Api, method: str, version: str, arguments: dict[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        """Send with the current token; a 401 reads the token again, once, and repeats if it has changed."""
        retried = False
        while True:
            headers = {**arguments.get("headers", {}), **self._token.header()}
            with self._mapped(method):
                call = api.call_api(method, version, raise_for_status=False, **{**arguments, "headers": headers})
                async with call as response:
                    self._saw(api, method, response)
                    if response.status_code == 401 and not retried and await self._token.refresh():
                        retried = True
                        continue
                    yield response
                    return

    def _saw(self, api: _Api, method: str, response: httpx.Response) -> None:
        self._requests.add(1, {"method": method, "code": str(response.status_code)})
        stream = response.extensions.get("network_stream")
        address = stream.get_extra_info("server_addr") if stream is not None else None
        if isinstance(address, tuple):
            self._addresses[api] = Endpoint.of(address[0], address[1])

    @contextlib.contextmanager
    def _mapped(self, method: str) -> Iterator[None]:
        """Turn what httpx, kr8s and the socket raise into Unavailable."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, APITimeoutError, OSError, ValueError) as error:
            self._requests.add(1, {"method": method, "code": "<error>"})
            raise Unavailable(0, f"{method} {self.server}: {_line(error)}") from error


def _shell(
    config: str | dict[str, Any], server: str | None, context: str | None, mark: int | None, timeout: float
) -> _Api:
    api = _Api(url=server, kubeconfig=config, context=context, bypass_factory=True)
    api.mark = mark
    api.timeout = httpx.Timeout(timeout)
    return api


async def _load(shells: list[_Api]) -> None:
    """Load the credentials once for all (an exec plug-in runs once) and open the HTTP clients."""
    auth = shells[0].auth
    try:
        await auth.reauthenticate()
        for shell in shells:
            shell.auth = auth
            await shell._create_session()
    finally:
        drop_temporary(_temporary_files(shells[0]))


def _temporary_files(api: _Api) -> list[str]:
    """Return the files that kr8s wrote from data embedded in the kubeconfig."""
    auth = api.auth
    written = (
        (auth._user, "client-key-data", auth.client_key_file),
        (auth._user, "client-certificate-data", auth.client_cert_file),
        (auth._cluster, "certificate-authority-data", auth.server_ca_file),
    )
    return [str(path) for section, field, path in written if field in section and path]


def _token_source(api: _Api) -> TokenSource:
    async def reload() -> str | None:
        try:
            await api.auth.reauthenticate()
        except Exception as error:
            raise Unauthorized(401, f"cannot load the credentials again: {_line(error)}") from error
        finally:
            drop_temporary(_temporary_files(api))
        return api.auth.token

    file = api.auth._user.get("tokenFile")
    return TokenSource(Path(file) if file else None, reload, api.auth.token, time.monotonic)


def _line(error: BaseException) -> str:
    """Return an exception as one short line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
