# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240, PT012 - small files; a watch raises while it is read
from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from wirekube import telemetry
from wirekube.runtime.client import (
    AlreadyExists,
    Client,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    Kind,
    Misconfigured,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
)

THING = Kind("example.io/v1", "things", "Thing")
POD = Kind("v1", "pods", "Pod", namespaced=True)


def status(code: int, reason: str, **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"because {reason}", "details": details}


@pytest.fixture
async def client(kubeconfig: Path) -> AsyncIterator[Client]:
    made = await Client.connect(kubeconfig=str(kubeconfig), timeout=5)
    yield made
    await made.close()


async def test_get_uses_the_token_and_knows_the_server(stub: Any, client: Client) -> None:
    stub.answer(200, {"metadata": {"name": "a"}})
    assert await client.get(THING, "a") == {"metadata": {"name": "a"}}
    assert stub.requests[0]["path"] == "/apis/example.io/v1/things/a"
    assert stub.requests[0]["headers"]["Authorization"] == "Bearer first"
    assert client.server == stub.url
    assert [f"http://{address}" for address in client.server_addresses()] == [stub.url]


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (400, status(400, "BadRequest"), Invalid),
        (401, status(401, "Unauthorized"), Unauthorized),
        (403, status(403, "Forbidden"), Forbidden),
        (404, status(404, "NotFound", name="a"), NotFound),
        (409, status(409, "Conflict"), Conflict),
        (409, status(409, "AlreadyExists"), AlreadyExists),
        (410, status(410, "Expired"), Gone),
        (422, status(422, "Invalid"), Invalid),
        (429, status(429, "TooManyRequests"), Throttled),
        (500, {"kind": "Status", "message": "x: field not declared in schema"}, Invalid),
        (500, status(500, "InternalError"), Unavailable),
        (503, "service unavailable", Unavailable),
        (200, "no JSON", Unavailable),
        (200, ["no", "object"], Unavailable),
    ],
)
async def test_errors_are_typed_and_one_request(stub: Any, client: Client, code: int, body: Any, error: type) -> None:
    stub.answer(code, body)
    with pytest.raises(error) as caught:
        await client.get(THING, "a")
    assert type(caught.value) is error
    assert len(stub.requests) == 1


async def test_a_plain_text_404_means_the_kind(stub: Any, client: Client) -> None:
    stub.answer(404, "404 page not found\n")
    stub.answer(404, status(404, "NotFound", name="a", kind="things"))
    with pytest.raises(NotFound) as kind_missing:
        await client.get(THING, "a")
    with pytest.raises(NotFound) as object_missing:
        await client.get(THING, "a")
    assert kind_missing.value.whole_resource
    assert not object_missing.value.whole_resource


async def test_throttled_says_how_long(stub: Any, client: Client) -> None:
    stub.answer(429, status(429, "TooManyRequests", retryAfterSeconds=7))
    stub.answer(429, "slow down", Retry_After="3")
    for seconds in (7, 3):
        with pytest.raises(Throttled) as caught:
            await client.get(THING, "a")
        assert caught.value.retry_after == seconds


async def test_a_403_leaves_a_watch_alone(stub: Any, client: Client, thing: Any) -> None:
    stub.watch({"type": "ADDED", "object": thing("a", "2")}, None, {"type": "BOOKMARK", "object": thing("", "9")})
    async with aclosing(client.watch(THING, resource_version="1")) as events:
        assert (await anext(events))[0] == "ADDED"
        stub.answer(403, status(403, "Forbidden"))
        with pytest.raises(Forbidden):
            await client.get(THING, "a")
        stub.released.set()
        assert (await anext(events))[0] == "BOOKMARK"


async def test_list_follows_pages_and_types_the_items(stub: Any, client: Client) -> None:
    stub.items("5", "a", **{"continue": "more"})
    stub.items("5", "b")
    items, version = await client.list(THING, label_selector="x=y")
    assert [(i["kind"], i["apiVersion"], i["metadata"]["name"]) for i in items] == [
        ("Thing", "example.io/v1", "a"),
        ("Thing", "example.io/v1", "b"),
    ]
    assert version == "5"
    assert stub.requests[1]["params"] == {"limit": "500", "labelSelector": "x=y", "continue": "more"}


async def test_list_starts_over_without_pages_when_the_snapshot_expired(stub: Any, client: Client) -> None:
    stub.items("5", "a", **{"continue": "more"})
    stub.answer(410, status(410, "Expired"))
    stub.items("6", "b")
    items, version = await client.list(THING)
    assert ([i["metadata"]["name"] for i in items], version) == (["b"], "6")
    assert "limit" not in stub.requests[2]["params"]


@pytest.mark.parametrize("answer", ["in the stream", "as a status"])
async def test_watch_raises_gone_both_ways(stub: Any, client: Client, answer: str) -> None:
    if answer == "in the stream":
        stub.watch({"type": "ERROR", "object": status(410, "Expired")})
    else:
        stub.watch(status(410, "Expired"), status=410)
    with pytest.raises(Gone):
        async for _ in client.watch(THING, resource_version="1"):
            pytest.fail("there is no event")


async def test_a_truncated_event_is_unavailable(stub: Any, client: Client) -> None:
    stub.watch('{"type": "ADDED", "obj')
    with pytest.raises(Unavailable):
        async for _ in client.watch(THING, resource_version="1"):
            pytest.fail("there is no event")


NONSENSE = [
    "null",
    "[]",
    {"no": "type"},
    {"type": "ADDED"},
    {"type": "ADDED", "object": []},
    {"type": "ADDED", "object": {"metadata": None}},
    {"type": "ADDED", "object": {"metadata": {"name": "a"}}},
    {"type": "ADDED", "object": {"metadata": {"resourceVersion": "5"}}},
    {"type": "ERROR", "object": {"kind": "Status", "code": "x", "details": []}},
    {"type": "ERROR", "object": 5},
]


@pytest.mark.parametrize("line", NONSENSE)
async def test_nonsense_in_a_watch_is_unavailable(stub: Any, client: Client, line: Any) -> None:
    stub.watch(line if isinstance(line, dict) else line + "\n")
    with pytest.raises(Unavailable):
        async for _ in client.watch(THING, resource_version="1"):
            pytest.fail("there is no event")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"items": 5},
        {"items": [5]},
        {"items": [{"metadata": None}]},
        {"items": [{"metadata": {"name": "a"}}]},
        {"items": [], "metadata": [1]},
    ],
)
async def test_nonsense_in_a_list_is_unavailable(stub: Any, client: Client, answer: Any) -> None:
    stub.answer(200, answer)
    with pytest.raises(Unavailable):
        await client.list(THING)


@pytest.mark.parametrize(
    "answer", ["[]", "null", '{"kind": "Status", "details": 5}', '{"kind": "Status", "details": [1]}']
)
async def test_nonsense_in_an_error_is_that_error(stub: Any, client: Client, answer: str) -> None:
    stub.answer(503, answer)
    with pytest.raises(Unavailable):
        await client.list(THING)


async def test_writes_say_what_the_api_needs(stub: Any, client: Client) -> None:
    obj = {"metadata": {"name": "a", "namespace": "n", "managedFields": [1]}, "status": {}}
    for _ in range(5):
        stub.answer(200, {})
    await client.create(POD, obj, field_manager="me")
    await client.apply(POD, obj, field_manager="me", force=False)
    await client.apply_status(THING, obj, field_manager="me")
    await client.patch(POD, "a", [{"op": "remove"}], type="json", namespace="n", field_manager="me")
    await client.delete(THING, "a", uid="u")
    seen = [(r["method"], r["path"], r["params"], r["headers"]["Content-Type"]) for r in stub.requests]
    assert seen == [
        ("POST", "/api/v1/namespaces/n/pods", {"fieldManager": "me"}, "application/json"),
        (
            "PATCH",
            "/api/v1/namespaces/n/pods/a",
            {"fieldManager": "me", "force": "false"},
            "application/apply-patch+yaml",
        ),
        (
            "PATCH",
            "/apis/example.io/v1/things/a/status",
            {"fieldManager": "me", "force": "true"},
            "application/apply-patch+yaml",
        ),
        ("PATCH", "/api/v1/namespaces/n/pods/a", {"fieldManager": "me"}, "application/json-patch+json"),
        ("DELETE", "/apis/example.io/v1/things/a", {}, "application/json"),
    ]
    assert stub.requests[1]["body"]["kind"] == "Pod"
    assert "managedFields" not in stub.requests[1]["body"]["metadata"]
    assert stub.requests[4]["body"]["preconditions"] == {"uid": "u"}


async def test_a_401_reads_the_kubeconfig_again(stub: Any, client: Client, kubeconfig: Path) -> None:
    kubeconfig.write_text(kubeconfig.read_text().replace("first", "second"))
    stub.answer(401, status(401, "Unauthorized"))
    stub.answer(200, {})
    await client.get(THING, "a")
    assert [r["headers"]["Authorization"] for r in stub.requests] == ["Bearer first", "Bearer second"]


async def test_in_a_pod_the_token_file_is_followed(stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "namespace").write_text("mesh\n")
    client = await Client.connect(server=stub.url, service_account=tmp_path)
    (tmp_path / "token").write_text("two\n")
    stub.answer(200, {})
    stub.answer(401, status(401, "Unauthorized"))
    stub.answer(200, {})
    await client.get(THING, "a")
    await client.get(THING, "a")
    await client.close()
    assert client.namespace == "mesh"
    assert [r["headers"]["Authorization"] for r in stub.requests] == ["Bearer one", "Bearer one", "Bearer two"]


async def test_server_override_keeps_the_credentials(stub: Any, kubeconfig: Path) -> None:
    text = kubeconfig.read_text().replace(stub.url, "https://192.0.2.1:6443")
    kubeconfig.write_text(text)
    client = await Client.connect(kubeconfig=str(kubeconfig), server=stub.url)
    stub.answer(200, {})
    await client.get(THING, "a")
    await client.close()
    assert stub.requests[0]["headers"]["Authorization"] == "Bearer first"


async def test_requests_are_counted(stub: Any, kubeconfig: Path) -> None:
    tele = telemetry.setup("test")
    client = await Client.connect(kubeconfig=str(kubeconfig), telemetry=tele)
    stub.answer(404, "no")
    with pytest.raises(NotFound):
        await client.get(THING, "a")
    await client.close()
    labels = {"method": "GET", "code": "404"}
    assert tele.registry.get_sample_value("rest_client_requests_total", labels) == 1
    tele.shutdown()


async def test_no_server_is_unavailable(kubeconfig: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match=url):
            await Client.connect(kubeconfig=str(kubeconfig), server=url)


async def test_a_silent_server_is_unavailable_in_time(kubeconfig: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable):
            await Client.connect(kubeconfig=str(kubeconfig), server=url, timeout=0.2)


@pytest.mark.parametrize("text", [None, "token: [s3cret", "token: s3cret", '{"clusters": [1], "contexts": [1]}'])
async def test_a_bad_kubeconfig_is_one_line_without_secrets(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Misconfigured) as caught:
        await Client.connect(kubeconfig=str(path))
    assert "\n" not in caught.value.message
    assert "s3cret" not in caught.value.message


async def test_a_wrong_context_is_named(kubeconfig: Path) -> None:
    with pytest.raises(Misconfigured, match="elsewhere"):
        await Client.connect(kubeconfig=str(kubeconfig), context="elsewhere")


async def test_embedded_keys_do_not_stay_in_the_temporary_folder(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    config = json.loads(kubeconfig.read_text())
    config["users"][0]["user"]["client-key-data"] = "-----no key"
    kubeconfig.write_text(json.dumps(config))
    client = await Client.connect(kubeconfig=str(kubeconfig))
    await client.close()
    assert list(folder.iterdir()) == []


async def test_the_mark_is_on_every_socket(kubeconfig: Path) -> None:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 36, 7)
        except PermissionError:
            pytest.skip("SO_MARK needs CAP_NET_ADMIN")
    client = await Client.connect(kubeconfig=str(kubeconfig), mark=7)
    for api in (client._api, client._watch_api):
        async with api.call_api("GET", "", "/version", raise_for_status=False, stream=True) as response:
            marked = response.extensions["network_stream"].get_extra_info("socket")
            assert marked.getsockopt(socket.SOL_SOCKET, 36) == 7
    await client.close()
