"""What clients may do on a connection, well or badly behaved, and what is answered: bytes on a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.helpers import http
from tests.helpers.http import Connection, chunked, floats, get, infer, infer_path, post
from tests.helpers.system import System

MODEL = "identity_fp32"
GOOD = floats(1.5, 2.5)
BODY = json.dumps(GOOD).encode()
ANSWER = {"y": [1.5, 2.5]}
LIMIT = 64 << 20  # --max-body


@pytest_asyncio.fixture
async def connection(system: System) -> AsyncIterator[Connection]:
    async with http.connect(system.http_port) as opened:
        yield opened


def numbered(number: int, *headers: str) -> bytes:
    return infer(MODEL, {**floats(number), "id": str(number)}, *headers)


async def test_a_connection_serves_many_requests(connection: Connection) -> None:
    for number in range(50):
        answer = await connection.ask(numbered(number))
        assert answer.json()["id"] == str(number)
        assert answer.outputs() == {"y": [number]}
        assert "connection" not in answer.headers


async def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    """Slow and quick, infer and metadata, good and bad: all sent at once."""
    requests, expected = [], []
    for number in range(30):
        requests += [
            numbered(number),
            get("/v2/health/live"),
            infer("mlp_patient", {"inputs": [http.tensor([0.0] * 64, "FP32", [1, 64])], "id": str(number)}),
            infer(MODEL, b"bad"),
            get("/v2/models/nobody"),
            infer("nobody", GOOD),
            get(f"/v2/models/{MODEL}/versions/1"),
        ]
        expected += [str(number), {"live": True}, str(number), 400, 404, 404, MODEL]
    connection.send(*requests)
    for wanted in expected:
        answer = await connection.answer()
        if isinstance(wanted, int):
            assert answer.status == wanted
            assert answer.error
        elif isinstance(wanted, dict):
            assert answer.json() == wanted
        else:
            document = answer.json()
            assert document.get("id", document.get("name")) == wanted


async def test_a_refusal_does_not_overtake_what_was_asked_before(connection: Connection) -> None:
    """The length of a body is known from its header: still its 413 waits for its turn."""
    row = {"inputs": [http.tensor([0.0] * 64, "FP32", [1, 64])], "id": "first"}
    connection.send(infer("mlp_patient", row), post(infer_path(MODEL), b"{", length=LIMIT + 1))
    first, second = await connection.answer(), await connection.answer()
    assert first.json()["id"] == "first"
    assert second.status == 413
    assert str(LIMIT) in second.error
    assert await connection.ended() == b""


async def test_bodies_split_at_every_byte(system: System) -> None:
    request = infer(MODEL, GOOD)
    async with http.connect(system.http_port) as connection:
        for at in range(1, len(request)):
            connection.send(request[:at])
            await connection.flush()
            await asyncio.sleep(0)
            connection.send(request[at:])
            assert (await connection.answer()).outputs() == ANSWER
        for byte in request:
            connection.send(bytes([byte]))
            await connection.flush()
        assert (await connection.answer()).outputs() == ANSWER


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_chunked_bodies(connection: Connection, size: int) -> None:
    chunks = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    for _ in range(2):
        assert (await connection.ask(chunked(infer_path(MODEL), chunks))).outputs() == ANSWER


async def test_a_chunked_body_above_the_limit_is_cut_off(connection: Connection) -> None:
    chunk = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    connection.send(
        b"POST %s HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" % infer_path(MODEL).encode()
    )
    answer = asyncio.create_task(connection.answer())
    for _ in range(2 * LIMIT >> 20):
        connection.send(chunk)
        try:
            await connection.flush()
        except ConnectionError:
            break
        if answer.done():
            break
    assert (await answer).status == 413
    assert str(LIMIT) in (await answer).error


async def test_a_gigabyte_is_refused_at_its_announcement(connection: Connection) -> None:
    connection.send(post(infer_path(MODEL), b"", length=1 << 30))
    answer = await connection.answer()
    assert answer.status == 413
    assert str(LIMIT) in answer.error
    assert answer.headers["connection"] == "close"
    assert await connection.ended() == b""


async def test_a_large_body_need_not_be_sent_when_it_is_refused(connection: Connection) -> None:
    head = post(infer_path(MODEL), b"", "expect: 100-continue", length=1 << 30)
    assert (await connection.ask(head)).status == 413


async def test_expect_100_continue(connection: Connection) -> None:
    for _ in range(2):
        connection.send(post(infer_path(MODEL), b"", "expect: 100-continue", length=len(BODY)))
        assert (await connection.answer()).status == 100
        connection.send(BODY)
        assert (await connection.answer()).outputs() == ANSWER


async def test_100_continue_waits_for_its_turn(connection: Connection) -> None:
    head = post(infer_path(MODEL), b"", "expect: 100-continue", length=len(BODY))
    row = {"inputs": [http.tensor([0.0] * 64, "FP32", [1, 64])]}
    connection.send(infer("mlp_patient", row), head)
    assert [(await connection.answer()).status for _ in range(2)] == [200, 100]
    connection.send(BODY)
    assert (await connection.answer()).outputs() == ANSWER


@pytest.mark.parametrize(
    "request_bytes", [infer(MODEL, GOOD, "connection: close"), get("/v2", "connection: close")]
)
async def test_connection_close(connection: Connection, request_bytes: bytes) -> None:
    answer = await connection.ask(request_bytes)
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    assert await connection.ended() == b""


@pytest.mark.parametrize("more", [b"", b"connection: keep-alive\r\n"])
async def test_http_1_0(connection: Connection, more: bytes) -> None:
    """Its clients read until the end of the connection, unless told otherwise."""
    head = f"POST {infer_path(MODEL)} HTTP/1.0\r\ncontent-length: {len(BODY)}\r\n".encode()
    answer = await connection.ask(head, more, b"\r\n", BODY)
    assert answer.outputs() == ANSWER
    assert answer.headers["connection"] == "close"
    assert await connection.ended() == b""


async def test_absolute_urls(connection: Connection) -> None:
    for path in ("http://somewhere:80" + infer_path(MODEL), "HTTPS://else.where" + infer_path(MODEL)):
        assert (await connection.ask(post(path, BODY))).outputs() == ANSWER


async def test_a_query_is_no_part_of_the_name(connection: Connection) -> None:
    assert (await connection.ask(post(infer_path(MODEL) + "?a=/infer&b=%", BODY))).outputs() == ANSWER


async def test_escaped_names(connection: Connection) -> None:
    path = infer_path("identity%5Ffp32", version="%31")
    assert (await connection.ask(post(path, BODY))).outputs() == ANSWER


async def test_an_upgrade_that_is_not_known_is_not_made(connection: Connection) -> None:
    """Java's client offers HTTP/2 with its first request."""
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB")
    for _ in range(2):
        assert (await connection.ask(infer(MODEL, GOOD, *offer))).outputs() == ANSWER
    assert (await connection.ask(get("/v2/health/live", *offer))).status == 200
    assert (await connection.ask(infer(MODEL, GOOD))).outputs() == ANSWER


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        + bytes(64),  # TLS, as a client with https:// sends it
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT somewhere:80 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nab",
        b"POST %s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" % infer_path(MODEL).encode(),
        b"GET /v2/models/\xff HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_once_and_ended(connection: Connection, garbage: bytes) -> None:
    answer = await connection.ask(garbage)
    assert answer.status == 400, answer
    assert answer.reason == "invalid_request"
    assert "HTTP" in answer.error
    assert answer.headers["connection"] == "close"
    assert await connection.ended() == b""


async def test_garbage_does_not_spoil_the_answers_before_it(connection: Connection) -> None:
    row = {"inputs": [http.tensor([0.0] * 64, "FP32", [1, 64])], "id": "first"}
    connection.send(infer("mlp_patient", row), b"\x00\x01garbage\r\n\r\n")
    assert (await connection.answer()).json()["id"] == "first"
    assert b"200" not in await connection.ended()


async def test_an_endless_head_is_refused(connection: Connection) -> None:
    connection.send(b"GET /v2 HTTP/1.1\r\nx-long: ")
    answer = asyncio.create_task(connection.answer())
    for _ in range(64):
        connection.send(bytes(16 << 10).replace(b"\0", b"a"))
        try:
            await connection.flush()
        except ConnectionError:
            break
        if answer.done():
            break
    assert (await answer).status == 431
    assert (await answer).reason == "head_too_large"
    assert "65536" in (await answer).error


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", infer_path(MODEL), "POST"),
        ("PUT", infer_path(MODEL), "POST"),
        ("DELETE", infer_path(MODEL, "1"), "POST"),
        ("OPTIONS", infer_path(MODEL), "POST"),
        ("POST", "/v2", "GET"),
        ("POST", "/v2/health/ready", "GET"),
        ("PATCH", f"/v2/models/{MODEL}", "GET"),
        ("POST", f"/v2/models/{MODEL}/stats", "GET"),
    ],
)
async def test_wrong_verbs(connection: Connection, verb: str, path: str, allowed: str) -> None:
    answer = await connection.ask(
        f"{verb} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".encode()
    )
    assert answer.status == 405
    assert answer.error == "Method Not Allowed"
    assert answer.reason == "method_not_allowed"
    assert allowed in answer.headers["allow"]
    assert (await connection.ask(infer(MODEL, GOOD))).outputs() == ANSWER


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models/x",
        "/v2/nothing",
        "/v2/models//infer",
        f"/v2/models/{MODEL}/versions//infer",
        f"/v2/models/{MODEL}/infer/more",
        f"/v2/models/../models/{MODEL}/x",
        "/v2/models/..%2F..%2Fetc",
        "//v2",
        "/v2/",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_unknown_paths(connection: Connection, verb: str, path: str) -> None:
    answer = await connection.ask(
        f"{verb} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".encode()
    )
    assert answer.status == 404
    assert answer.error == "Not Found"
    assert answer.reason == "not_found"


async def test_head_has_no_body(connection: Connection) -> None:
    connection.send(b"HEAD /v2/health/ready HTTP/1.1\r\nhost: test\r\n\r\n")
    answer = await connection.answer(head_only=True)
    assert answer.status == 200
    assert (await connection.ask(infer(MODEL, GOOD))).outputs() == ANSWER


async def test_bodies_that_no_route_wants_are_skipped(connection: Connection) -> None:
    answer = await connection.ask(post("/v2/nothing", bytes(300_000)))
    assert answer.status == 404
    assert (await connection.ask(infer(MODEL, GOOD))).outputs() == ANSWER


async def test_a_slow_reader_gets_all_its_answers(system: System) -> None:
    """Its answers are far more than what sockets buffer; the server waits, and nobody else does."""
    count, size = 100, 400_000
    raw = bytes(size)
    given = {"name": "x", "datatype": "INT32", "shape": [1, size // 4]}
    head = json.dumps(
        {
            "inputs": [{**given, "parameters": {"binary_data_size": size}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    request = post(infer_path("identity_int32"), head + raw, f"inference-header-content-length: {len(head)}")
    async with http.connect(system.http_port) as slow, http.connect(system.http_port) as other:
        slow.send(request)
        alone = await slow.answer()
        assert alone.body.endswith(raw)
        for _ in range(count):
            slow.send(request)
        for _ in range(50):
            assert (await other.ask(infer(MODEL, GOOD))).outputs() == ANSWER
        for _ in range(count):
            assert await slow.answer() == alone
