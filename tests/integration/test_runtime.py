# SPDX-License-Identifier: Apache-2.0
"""Client and reflector against a real API server: what the scripted one in the unit tests can only claim."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from wirekube.lab.controlplane import ControlPlane
from wirekube.runtime.client import Client, Conflict, Forbidden, Invalid, NotFound
from wirekube.runtime.errors import Gone
from wirekube.runtime.objects import Kind
from wirekube.runtime.reflector import Event, Reflector

pytestmark = pytest.mark.anyio
MAP = Kind("v1", "configmaps", "ConfigMap", namespaced=True)
SECRET = Kind("v1", "secrets", "Secret", namespaced=True)
NOTHING = Kind("nobody.example/v1", "nothings", "Nothing")


def config_map(name: str, value: str = "x") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "data": {"v": value}}


@asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[Client]:
    client = await Client.connect(kubeconfig=kubeconfig)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def running(reflector: Reflector) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(reflector.run)
        with anyio.fail_after(20):
            await reflector.synced.wait()
        yield
        group.cancel_scope.cancel()


async def eventually(probe: Callable[[], bool], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not probe():  # noqa: ASYNC110 - the world outside has no event to wait for
            await anyio.sleep(0.02)


async def test_a_reflector_follows_and_forgets(control_plane: ControlPlane) -> None:
    async with connected(control_plane.kubeconfig) as client:
        events: list[Event] = []
        reflector = Reflector(client, MAP, namespace="default")
        reflector.add_handler(events.append)
        async with running(reflector):
            made = await client.apply(MAP, config_map("follow"), field_manager="test")
            again = await client.apply(MAP, config_map("follow"), field_manager="test")
            assert made["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]
            await client.patch(MAP, "follow", {"data": {"v": "y"}}, namespace="default", field_manager="test")
            await eventually(lambda: any(e.type == "MODIFIED" and e.key[1] == "follow" for e in events))
            stored = reflector.store.get(("default", "follow"))
            assert stored is not None
            assert stored["data"] == {"v": "y"}
            assert "managedFields" not in stored["metadata"]
            await client.delete(MAP, "follow", namespace="default")
            await eventually(lambda: reflector.store.get(("default", "follow")) is None)
        assert [e.type for e in events if e.key[1] == "follow"] == ["ADDED", "MODIFIED", "DELETED"]


async def test_errors_are_typed(control_plane: ControlPlane) -> None:
    async with connected(control_plane.kubeconfig) as client:
        with pytest.raises(NotFound) as absent:
            await client.get(MAP, "absent", "default")
        assert not absent.value.whole_resource
        with pytest.raises(NotFound) as unserved:
            await client.list(NOTHING)
        assert unserved.value.whole_resource
        made = await client.apply(MAP, config_map("typed"), field_manager="one")
        with pytest.raises(Conflict):
            await client.apply(MAP, config_map("typed", "other"), field_manager="two", force=False)
        stale = made | {"metadata": {**made["metadata"], "resourceVersion": "1"}, "data": {"v": "z"}}
        with pytest.raises(Conflict):
            await client.apply(MAP, stale, field_manager="one")
        with pytest.raises(Invalid):
            await client.apply(MAP, config_map("Not_A_Name"), field_manager="one")
        await client.delete(MAP, "typed", namespace="default")


async def test_a_version_that_was_compacted_away_is_gone(control_plane: ControlPlane) -> None:
    async with connected(control_plane.kubeconfig) as client:
        await client.apply(MAP, config_map("compacted"), field_manager="test")
    # A server answers from its watch cache, which a fresh one does not have.
    await anyio.to_thread.run_sync(_compact, control_plane)
    await anyio.to_thread.run_sync(control_plane.stop)
    await anyio.to_thread.run_sync(control_plane.launch)
    async with connected(control_plane.kubeconfig) as client:
        with pytest.raises(Gone), anyio.fail_after(20):
            async for _ in client.watch(MAP, resource_version="1", namespace="default"):
                pass
        await client.delete(MAP, "compacted", namespace="default")


def _compact(plane: ControlPlane) -> None:
    """Forget all history in etcd but the newest, through its JSON gateway."""
    key = base64.b64encode(b"/").decode()
    with httpx.Client(base_url=plane.etcd_url, timeout=10) as etcd:
        revision = etcd.post("/v3/kv/range", json={"key": key, "limit": 1}).json()["header"]["revision"]
        etcd.post("/v3/kv/compaction", json={"revision": revision}).raise_for_status()


async def test_a_forbidden_request_ends_nothing_else(control_plane: ControlPlane, tmp_path: Path) -> None:
    plane = control_plane
    plane.kubectl("create", "serviceaccount", "narrow", "-n", "default")
    plane.kubectl("create", "role", "narrow", "-n", "default", "--verb=get,list,watch", "--resource=configmaps")
    plane.kubectl(
        "create", "rolebinding", "narrow", "-n", "default", "--role=narrow", "--serviceaccount=default:narrow"
    )
    path = tmp_path / "narrow.kubeconfig"
    plane.service_account_kubeconfig("default", "narrow", None, path)
    async with connected(plane.kubeconfig) as admin, connected(str(path)) as client:
        reflector = Reflector(client, MAP, namespace="default")
        async with running(reflector):
            await eventually(reflector.fresh)
            for _ in range(3):
                with pytest.raises(Forbidden):
                    await client.list(SECRET, namespace="default")
            await admin.apply(MAP, config_map("narrow"), field_manager="test")
            await eventually(lambda: reflector.store.get(("default", "narrow")) is not None)
            assert reflector.last_error is None
        await admin.delete(MAP, "narrow", namespace="default")


async def test_a_restarted_server_is_found_again(control_plane: ControlPlane) -> None:
    async with connected(control_plane.kubeconfig) as client:
        reflector = Reflector(client, MAP, namespace="default")
        async with running(reflector):
            await anyio.to_thread.run_sync(control_plane.stop)
            await eventually(lambda: not reflector.fresh())
            await anyio.to_thread.run_sync(control_plane.launch)
            control_plane.kubectl("create", "configmap", "after", "-n", "default")
            await eventually(lambda: reflector.store.get(("default", "after")) is not None, 40)
            control_plane.kubectl("delete", "configmap", "after", "-n", "default")
