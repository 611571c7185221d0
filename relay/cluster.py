# SPDX-License-Identifier: Apache-2.0
"""What a relay in a cluster asks of the API server: who is admitted, its own private key, a place for the public one.

All of it runs in a thread with an event loop of its own, so that the thread that passes packets never waits for it.
What the loop sees goes through a queue that the relay's thread empties twice a second.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import queue
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..api.constants import GROUP_VERSION
from ..runtime.client import Client
from ..runtime.errors import ApiError, Conflict, Misconfigured
from ..runtime.objects import Kind, Object
from ..runtime.reflector import Event, Pause, Reflector
from ..runtime.verbs import Verbs
from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from .keys import Unusable, decode_key
from .members import Members, News, news_of
from .sessions import Admission

log = get_logger("relay")

PEER: Final = Kind(GROUP_VERSION, "wirekubepeers", "WireKubePeer")
SECRET: Final = Kind("v1", "secrets", "Secret", namespaced=True)
CONFIG_MAP: Final = Kind("v1", "configmaps", "ConfigMap", namespaced=True)
PUBLIC_FIELD: Final = "publicKey"
REPUBLISH: Final = 10.0  # seconds; a ConfigMap that was lost and made anew is empty
FIELD: Final = "private-key"
FIELD_MANAGER: Final = "wirekube-relay"
LONGEST_PAUSE: Final = 5.0  # seconds; a server that answers again is used soon

T = TypeVar("T")


class ClusterError(Unusable):
    """The credentials or the Secret cannot be used; the text is one line without any key."""


class Cluster:
    """A connection to the API server; make it with `connected`.

    Args:
        portal: into the event loop.
        client: belongs to that loop.
        telemetry: counts lists and watches.
    """

    def __init__(self, portal: BlockingPortal, client: Client, telemetry: Telemetry) -> None:
        self._portal, self._client, self._telemetry = portal, client, telemetry

    def private_key(self, namespace: str, name: str) -> bytes:
        """Return the key in the Secret, however long that takes; an empty Secret gets a new one.

        Raises:
            ClusterError: the Secret holds something else.
        """
        return self._portal.call(private_key, self._client, namespace, name)

    @contextlib.contextmanager
    def published(self, public: bytes, namespace: str, name: str) -> Iterator[None]:
        """Keep the public key in the ConfigMap while the context lasts; nothing waits for it."""
        task = self._portal.start_task_soon(publish, self._client, namespace, name, public)
        try:
            yield
        finally:
            task.cancel()

    @contextlib.contextmanager
    def peers(self) -> Iterator[PeersAdmission]:
        """Follow the Peers while the context lasts."""
        # In the loop: a reflector belongs to the one that it is made in.
        admission = self._portal.call(lambda: PeersAdmission(Reflector(self._client, PEER, telemetry=self._telemetry)))
        admission.task = self._portal.start_task_soon(admission.follow)
        try:
            yield admission
        finally:
            admission.task.cancel()


@contextlib.contextmanager
def connected(telemetry: Telemetry, kubeconfig: str | None = None) -> Iterator[Cluster]:
    """Start the thread and connect, however long that takes.

    Args:
        telemetry: counts requests.
        kubeconfig: path; None takes the variable KUBECONFIG, then the pod's service account.

    Raises:
        ClusterError: no usable credentials.
    """
    with start_blocking_portal() as portal:
        client = portal.call(_connect, telemetry, kubeconfig)
        try:
            yield Cluster(portal, client, telemetry)
        finally:
            portal.call(client.close)


async def _connect(telemetry: Telemetry, kubeconfig: str | None) -> Client:
    try:
        return await _persist(
            lambda: Client.connect(kubeconfig=kubeconfig, telemetry=telemetry), "cannot use the API server yet"
        )
    except Misconfigured as error:
        raise ClusterError(error.message) from error


async def private_key(client: Verbs, namespace: str, name: str) -> bytes:
    """Return the private key of the Secret; make one when it has none. Relays that share the Secret share the key.

    Raises:
        ClusterError: what the Secret holds is no key.
    """
    return await _persist(
        lambda: _read_or_make(client, namespace, name), f"cannot use the Secret {namespace}/{name} yet"
    )


async def publish(client: Verbs, namespace: str, name: str, public: bytes) -> None:
    """Put the public key into the ConfigMap, and again whenever it is gone; until cancelled.

    Another key is replaced once, at the start: relays whose Secret was exchanged in between must not argue.
    """
    text, said = base64.b64encode(public).decode(), f"cannot use the ConfigMap {namespace}/{name} yet"
    await _persist(lambda: _publish(client, namespace, name, text, replace=True), said)
    log.info("published the public key", config_map=f"{namespace}/{name}")
    while True:
        await anyio.sleep(REPUBLISH)
        await _persist(lambda: _publish(client, namespace, name, text, replace=False), said)


async def _publish(client: Verbs, namespace: str, name: str, text: str, *, replace: bool) -> None:
    found = ((await client.get(CONFIG_MAP, name, namespace)).get("data") or {}).get(PUBLIC_FIELD)
    if not found or (replace and found != text):
        body = {"data": {PUBLIC_FIELD: text}}
        await client.patch(CONFIG_MAP, name, body, namespace=namespace, field_manager=FIELD_MANAGER)


async def _read_or_make(client: Verbs, namespace: str, name: str) -> bytes:
    while True:
        secret = await client.get(SECRET, name, namespace)
        if (text := (secret.get("data") or {}).get(FIELD)) is not None:
            return _decode(text, f"{namespace}/{name}")
        key = os.urandom(32)
        # The version makes a second writer fail: it reads what the first one wrote.
        body: Object = {
            "metadata": {"resourceVersion": secret["metadata"]["resourceVersion"]},
            "data": {FIELD: base64.b64encode(base64.b64encode(key)).decode()},
        }
        with contextlib.suppress(Conflict):
            await client.patch(SECRET, name, body, namespace=namespace, field_manager=FIELD_MANAGER)
            return key


def _decode(text: str, where: str) -> bytes:
    try:
        key = decode_key(base64.b64decode(text).decode("ascii").strip())
    except (binascii.Error, ValueError):
        key = None
    if key is None:
        raise ClusterError(f"the field {FIELD} of the Secret {where} does not hold one base64 key of 32 bytes")
    return key


async def _persist(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """Repeat until the API server lets it succeed; say each new reason once."""
    pause, said = Pause(random.Random(), longest=LONGEST_PAUSE), ""  # noqa: S311 - spreads requests, hides nothing
    while True:
        try:
            return await attempt()
        except Misconfigured:
            raise
        except ApiError as error:
            if error.message != said:
                said = error.message
                log.warning(f"{what}; trying again", error=said)
            await anyio.sleep(pause.next())


class PeersAdmission:
    """Admits the accepted keys of the cluster's Peers. While the API server is away, those that it showed last.

    Args:
        peers: not running yet.

    Attributes:
        task: what `follow` runs in.
    """

    def __init__(self, peers: Reflector) -> None:
        self._peers, self._synced = peers, False
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._members = Members()
        self._admitted: frozenset[bytes] = frozenset()
        self.task: Future[None] | None = None
        peers.add_handler(self._tell)

    async def follow(self) -> None:
        """Watch until cancelled; in the event loop."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._peers.run)
            await self._peers.synced.wait()
            self._synced = True
            log.info("admitting the accepted keys of the cluster's Peers", peers=len(self._peers.store))

    def _tell(self, event: Event) -> None:
        self._news.put(news_of(event.key[1], event.new))

    def poll(self) -> Admission | None:
        """Return the new admission when it is another one; for the thread that passes packets."""
        if self.task is not None and self.task.done():
            self.task.result()  # a bug ended it: so does the process
        now = time.monotonic()
        with contextlib.suppress(queue.Empty):
            while True:
                self._members.take(self._news.get_nowait(), now)
        admitted = self._members.admitted(now)
        if admitted == self._admitted:
            return None
        self._admitted = admitted
        return Admission(admitted)

    def unready(self) -> str | None:
        """Return why nobody is admitted yet; None once the Peers are known. Any thread may ask."""
        return None if self._synced else "the cluster's Peers are not known yet"
