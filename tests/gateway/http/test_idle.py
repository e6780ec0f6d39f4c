"""What a connection may take from the server: time while nothing happens, and memory while nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.helpers import http
from tests.helpers.http import floats, infer, infer_path, post, tensor
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually

MODEL = IDENTITY["FP32"]
GOOD = infer(MODEL, floats(1.0))
ANSWER = {"y": [1.0]}
KEEP_ALIVE = 1  # seconds


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository, idle_timeout=KEEP_ALIVE) as made:
        await made.add_worker(MODEL, GATED)
        yield made


def protocols(fleet: Fleet) -> list[Any]:
    """The server's side of its connections."""
    assert fleet.gateway.http is not None
    return list(fleet.gateway.http._server.server_state.connections)


async def past(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await eventually(lambda: loop.time() > until)


async def test_connections_that_do_nothing_are_ended(running: Fleet) -> None:
    """Whatever they did before: nothing, infer, other routes, half a request."""
    row = [b"", GOOD, http.get("/v2/health/live"), GOOD + http.get("/v2"), http.get("/v2") + GOOD]
    halves = [GOOD[:-3], GOOD + GOOD[:40], b"GET /v2 HT", http.get("/v2") + b"GET /v2 HTTP/1.1\r\nx: "]

    async def until_ended(sent: bytes) -> bytes:
        async with http.connect(running.port) as connection:
            connection.send(sent)
            return await connection.ended()

    received = await asyncio.gather(*map(until_ended, row + halves))
    answers = [data.count(b"HTTP/1.1 200 OK\r\n") for data in received]
    assert answers == [0, 1, 1, 2, 2, 0, 1, 0, 1]
    assert protocols(running) == []


async def test_connections_at_work_are_not(running: Fleet, tmp_path: Path) -> None:
    """Neither a question before it nor the time it takes ends one whose request is being answered."""
    gate = tmp_path / "gate"
    async with http.connect(running.port) as connection:
        assert (await connection.ask(http.get("/v2/health/live"))).status == 200
        connection.send(infer(GATED, {"inputs": [tensor([str(gate)], "BYTES", [1, 1])]}))
        await eventually(lambda: running.in_flight == 1, "it is being answered")
        await past(2.5 * KEEP_ALIVE)
        gate.touch()
        assert (await connection.answer()).status == 200
        assert (await connection.ask(GOOD)).outputs() == ANSWER


async def test_what_a_client_does_not_read_is_not_piled_up(running: Fleet) -> None:
    """A client that only sends: the server stops reading, keeps little, and ends it when nothing moves."""
    size = 400_000
    one = {"name": "x", "datatype": "FP32", "shape": [1, size // 4], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    request = post(infer_path(MODEL), head + bytes(size), f"inference-header-content-length: {len(head)}")
    async with http.connect(running.port) as connection:
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        connection.send(request * 100)
        await eventually(lambda: protocols(running) and protocols(running)[0]._stalled, "the server waits")
        (protocol,) = protocols(running)
        assert protocol.transport.get_write_buffer_size() < 4 * size
        assert len(protocol.pipeline) <= 1
        async with http.connect(running.port) as other:
            assert (await other.ask(GOOD)).outputs() == ANSWER
        await eventually(lambda: protocol not in protocols(running), "the server has ended it")
    assert running.in_flight == 0


async def test_pipelined_requests_are_read_as_they_are_answered(running: Fleet, tmp_path: Path) -> None:
    """While the first is not answered, no more is read than comes at once."""
    gate = tmp_path / "gate"
    first = infer(GATED, {"inputs": [tensor([str(gate)], "BYTES", [1, 1])]})
    count = 20_000
    async with http.connect(running.port) as connection:
        connection.send(first)
        await eventually(lambda: running.in_flight == 1, "the first is being answered")
        connection.send(GOOD * count)
        (protocol,) = protocols(running)
        await eventually(lambda: protocol.flow.read_paused, "the server waits")
        waiting = len(protocol.pipeline)
        assert 0 < waiting < count / 4
        gate.touch()
        assert (await connection.answer()).status == 200
        most = waiting
        for _ in range(500):
            assert (await connection.answer()).outputs() == ANSWER
            most = max(most, len(protocol.pipeline))
        assert most <= 2 * waiting


async def test_a_head_that_is_known_is_still_a_head_of_its_own(running: Fleet) -> None:
    """The same bytes are not parsed anew; anything else is, between them, on the same connection."""
    others: list[tuple[bytes, int]] = [
        (http.get("/v2/health/live"), 200),
        (infer(MODEL, floats(3.0), "connection: keep-alive"), 200),
        (infer("nobody", floats(1.0)), 404),
        (infer(MODEL, b"{" * len(json.dumps(floats(1.0)))), 400),
        (http.chunked(infer_path(MODEL), [json.dumps(floats(1.0)).encode()]), 200),
    ]
    async with http.connect(running.port) as connection:
        for other, status in others:
            for value in (1.0, 2.0, 5.0):
                answer = await connection.ask(infer(MODEL, floats(value)))
                assert answer.outputs() == {"y": [value]}
            assert protocols(running)[0]._heads
            assert (await connection.ask(other)).status == status
        # Two at once, and one in two parts, are not what is known either.
        connection.send(GOOD, GOOD)
        assert [(await connection.answer()).outputs() for _ in range(2)] == [ANSWER, ANSWER]
        connection.send(GOOD[:70])
        await connection.flush()
        connection.send(GOOD[70:], GOOD)
        assert [(await connection.answer()).outputs() for _ in range(2)] == [ANSWER, ANSWER]
