"""The client over HTTP, against a small real server that answers with prepared bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from qinfer.client import AsyncClient, Options, connect
from qinfer.client.http import models
from qinfer.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NoWorker,
    QInferError,
    QueueFull,
    SetupError,
    Unauthenticated,
)
from qinfer.message import Tensor

X = {"x": [[1, 2]]}
METADATA = {
    "name": "m", "versions": ["1"], "platform": "p",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}  # fmt: skip
CONFIG = {"max_batch_size": 8}
SHORT = b'{"outputs":[{"name":"y","datatype":"INT8","shape":[4],"parameters":{"binary_data_size":4}}]}'
"""An answer whose tensor is missing."""
ANSWER = {"model_name": "m", "model_version": "1", "outputs": []}


class Prepared:
    """What the server answers, and what it was asked.

    Attributes:
        metadata, config: of its model; no config is 404.
        answers: to infer requests, in turn; the last one stays.
        asked: the infer requests, with their bodies.
        paths: of all requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.metadata: dict[str, Any] = METADATA
        self.config: dict[str, Any] | None = CONFIG
        self.answers: list[Callable[[], web.Response]] = [lambda: web.json_response(ANSWER)]
        self.asked: list[tuple[web.Request, bytes]] = []
        self.paths: list[str] = []
        self.peers: set[Any] = set()

    async def handle(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        self.peers.add(request.transport.get_extra_info("peername"))  # type: ignore[union-attr]
        if not request.path.endswith("/infer"):
            told = self.config if request.path.endswith("/config") else self.metadata
            return web.json_response(told) if told is not None else web.Response(status=404)
        self.asked.append((request, await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            return answer()
        except ConnectionResetError:
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()


@pytest_asyncio.fixture
async def prepared() -> AsyncIterator[Prepared]:
    prepared = Prepared()
    server = web.Server(prepared.handle)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    prepared.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield prepared
    await runner.cleanup()


@pytest.fixture
def make(prepared: Prepared) -> Callable[..., AsyncClient]:
    return lambda path="", **options: connect(prepared.url + path, **options)


def refused(status: int, reason: str = "", **headers: str) -> Callable[[], web.Response]:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if reason:
        told["X-QInfer-Reason"] = reason
    return lambda: web.json_response({"error": "said so"}, status=status, headers=told)


def lost() -> web.Response:
    raise ConnectionResetError


async def test_what_is_sent_and_read(prepared: Prepared, make: Callable[..., AsyncClient]) -> None:
    header = json.dumps(
        {
            "model_name": "m",
            "model_version": "3",
            "id": "a",
            "parameters": {"note": 1},
            "outputs": [
                {"name": "a", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
                {"name": "j", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2]},
                {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
                {"name": "b", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
            ],
        }
    ).encode()
    body = header + np.array([7, -1], "<i4").tobytes() + b"\x01\0\0\0z"
    length = {"Inference-Header-Content-Length": str(len(header))}
    prepared.answers = [lambda: web.Response(body=body, headers=length)]
    options = Options(
        version="3", outputs=["y"], timeout=5.0, request_id="a", priority=2, parameters={"p": 1},
        idempotency_key="k", traceparent="00-1", tracestate="s=1",
    )  # fmt: skip
    async with make("/prefix/", key="secret") as client:
        result = await client.infer("a/b c", X, options)
    assert (result.model, result.version, result.parameters, result.request_id) == (
        "m",
        "3",
        {"note": 1},
        "a",
    )
    assert {name: array.tolist() for name, array in result.outputs.items()} == {
        "a": [7, -1],
        "j": [[0.5, 2.0]],
        "s": ["é".encode(), b""],
        "b": [b"z"],
    }
    ((request, sent),) = prepared.asked
    assert request.raw_path == "/prefix/v2/models/a%2Fb%20c/versions/3/infer"
    headers = {
        name: request.headers[name]
        for name in ("Authorization", "Idempotency-Key", "traceparent", "tracestate", "Accept-Encoding")
    }
    assert list(headers.values()) == ["Bearer secret", "k", "00-1", "s=1", "identity"]
    end = int(request.headers["Inference-Header-Content-Length"])
    asked = json.loads(sent[:end])
    assert 4_000_000 < asked["parameters"].pop("timeout") <= 5_000_000
    assert asked == {
        "id": "a",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"p": 1, "priority": 2, "binary_data_output": True},
    }
    assert sent[end:] == np.array([[1, 2]], "<f4").tobytes()


@pytest.mark.parametrize(
    ("answer", "kind", "message", "retry_after"),
    [
        (refused(503, "no_worker"), NoWorker, "said so", None),
        (refused(429, retry_after="3"), QueueFull, "said so", 3.0),
        (refused(429, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), QueueFull, "said so", None),
        (refused(401, "unauthenticated"), Unauthenticated, "said so", None),
        (refused(503, "of another time"), InternalError, "said so", None),
        (lambda: web.Response(status=404, text="<html>"), NotFound, "<html>", None),
        (lambda: web.Response(status=418), InternalError, "HTTP status 418", None),
        (lambda: web.Response(status=302, headers={"Location": "/"}), InternalError, "HTTP status 302", None),
        (lost, ConnectionLost, "ended before the answer came", None),
        *(
            (lambda body=body: web.Response(body=body), InternalError, "the server's answer is no", None)
            for body in (
                b"nonsense",
                b"[]",
                b'{"outputs": [{"name": "y"}]}',
                b'{"outputs": 3}',
                b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [1]}]}',
                SHORT,
            )
        ),
    ],
)
async def test_errors(
    prepared: Prepared,
    make: Callable[..., AsyncClient],
    answer: Callable[[], web.Response],
    kind: type[QInferError],
    message: str,
    retry_after: float | None,
) -> None:
    prepared.answers = [answer]
    async with make(retries=0) as client:
        with pytest.raises(kind, match=message) as caught:
            await client.infer("m", X)
    assert (type(caught.value), caught.value.retry_after) == (kind, retry_after)


@pytest.mark.parametrize(
    ("answer", "key", "tries"),
    [
        (refused(503, "no_worker"), "", 2),
        (refused(429), "", 2),
        (refused(504, "deadline_exceeded"), "", 1),
        (refused(504, "deadline_exceeded"), "k", 2),
        (lost, "", 1),
        (lost, "k", 2),
        (refused(500, "model_failed"), "k", 1),
        (refused(400, "invalid_request"), "k", 1),
    ],
)
async def test_only_what_is_safe_is_tried_again(
    prepared: Prepared,
    make: Callable[..., AsyncClient],
    answer: Callable[[], web.Response],
    key: str,
    tries: int,
) -> None:
    prepared.answers = [answer, prepared.answers[0]]
    async with make() as client:
        try:
            await client.infer("m", X, Options(idempotency_key=key))
        except QInferError:
            assert tries == 1
    assert len(prepared.asked) == tries


async def test_no_try_begins_after_the_deadline(prepared: Prepared, make: Callable[..., AsyncClient]) -> None:
    prepared.answers = [refused(429, retry_after="60")]
    async with make() as client:
        with pytest.raises(QueueFull):
            await client.infer("m", X, Options(timeout=5.0))
    assert len(prepared.asked) == 1


async def test_a_server_that_does_not_answer(
    prepared: Prepared, make: Callable[..., AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.client.http.session._GRACE", 0.0)
    silent = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        if request.path.endswith("/infer"):
            await silent.wait()
        return web.json_response(CONFIG if request.path.endswith("/config") else METADATA)

    monkeypatch.setattr(prepared, "handle", handle)
    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connect(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            with pytest.raises(DeadlineExceeded, match="deadline passed before http://"):
                await client.infer("m", X, Options(timeout=0.2))
    finally:
        silent.set()
        await runner.cleanup()


async def test_connections_and_signatures_are_used_again(
    prepared: Prepared, make: Callable[..., AsyncClient]
) -> None:
    async with make(max_connections=4) as client:
        await asyncio.gather(*(client.infer("m", X) for _ in range(50)))
    assert len(prepared.asked) == 50
    assert len(prepared.peers) <= 4
    assert [path for path in prepared.paths if not path.endswith("/infer")] == [
        "/v2/health/live",
        "/v2/models/m",
        "/v2/models/m/config",
        "/v2/models/m/ready",
    ]


async def test_a_model_that_has_become_another_one(
    prepared: Prepared, make: Callable[..., AsyncClient]
) -> None:
    async with make() as client:
        await client.infer("m", X)
        with pytest.raises(InvalidRequest, match="'z' is not one of x"):
            await client.infer("m", {"z": [[1]]})
        prepared.metadata = {**METADATA, "inputs": [{"name": "z", "datatype": "INT64", "shape": [-1, 1]}]}
        await client.infer("m", {"z": [[1]]})
    assert json.loads(prepared.asked[-1][1].partition(b"}]")[0] + b"}]}")["inputs"][0]["datatype"] == "INT64"


async def test_signatures_are_asked_for_again(
    prepared: Prepared, make: Callable[..., AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_FRESH_SECONDS", 0.0)
    async with make() as client:
        for _ in range(2):
            await client.infer("m", X)
    assert prepared.paths.count("/v2/models/m") == 2


async def test_a_server_that_tells_less(prepared: Prepared, make: Callable[..., AsyncClient]) -> None:
    """Of another make: shapes are as the server has them, and checked by it alone."""
    prepared.config = None
    async with make() as client:
        info = await client.model("m")
        assert (info.max_batch_size, info.inputs[0].dims) == (None, (-1, 2))
        await client.infer("m", X)
        await client.infer("m", [Tensor.from_numpy("other", np.ones(3))])
    assert len(prepared.asked) == 2


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://host", {}, "no bus for URL scheme 'ftp'"),
        ("http://", {}, "expected http://HOST:PORT"),
        ("http://host:port", {}, "expected http://HOST:PORT"),
        ("http://user:password@host", {}, "expected http://HOST:PORT"),
        ("http://host", {"namespace": "n"}, "namespace: found with http://; expected with the broker"),
        ("http://host", {"creds": "c"}, "creds: found with http://; expected with the broker"),
        ("http://host", {"ca": "c"}, "ca: found with http://; expected with https"),
        ("https://host", {"ca": "/missing"}, "ca /missing"),
        ("https://host", {"cert": "c"}, "cert and cert_key"),
        ("https://host", {"cert": "/missing", "cert_key": "/missing"}, "cert /missing"),
        ("nats://host", {"key": "k"}, "key: found with nats://; expected with a gateway"),
        ("http://host", {"timeout": 0}, "timeout"),
        ("http://host", {"retries": -1}, "retries"),
        ("http://host", {"max_in_flight": 0}, "max_in_flight"),
        ("http://host", {"when_full": "wiat"}, "when_full"),
    ],
)
def test_options_that_do_not_fit(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        connect(url, **options)
