"""Clients that are slow on purpose, and too many of them: bytes on sockets, with small limits."""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from qinfer.proto import METHODS
from qinfer_gateway.http import limits, protocol
from tests.helpers import http
from tests.helpers.http import floats, get, infer, infer_path, post
from tests.helpers.served_models import IDENTITY
from tests.helpers.waiting import PATIENCE, eventually
from tests.security.conftest import MakeFleet

MODEL = IDENTITY["FP32"]
GOOD = infer(MODEL, floats(1.0))
RECEIVE = 0.4


async def trickle(port: int, first: bytes, drop: bytes) -> bytes:
    """Send a little again and again until the server ends the connection; returns what it said to that."""
    async with http.connect(port) as connection:
        connection.send(first)
        for _ in range(first.count(GOOD)):
            assert (await connection.answer()).status == 200
        answer = asyncio.ensure_future(connection.ended())
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE
        while not answer.done():
            assert loop.time() < give_up, "the server puts up with it"
            connection.send(drop)
            await asyncio.wait({answer}, timeout=RECEIVE / 20)
        return answer.result()


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"G", b""),
        (b"GET /v2 HTTP/1.1\r\n", b"x: y\r\n"),
        (b"POST " + infer_path(MODEL).encode() + b" HTTP/1.1\r\n", b"x: y\r\n"),
        (post(infer_path(MODEL), b"", length=1_000_000), b" "),
        (post("/v2/repository/index", b"", length=1_000_000), b" "),
        (post(infer_path(MODEL), b"", "transfer-encoding: chunked")[:-2], b"1\r\n \r\n"),
        (GOOD + GOOD[:30], b"x"),
    ],
)
async def test_slow_senders_are_ended(make_fleet: MakeFleet, first: bytes, drop: bytes) -> None:
    """However steadily it comes: a head, a body on either path, a second request."""
    async with make_fleet(MODEL, receive_timeout=RECEIVE) as made:
        assert b"HTTP/1.1 200" not in await trickle(made.port, first, drop)
        assert made.in_flight == 0


async def test_a_body_that_comes_fast_enough_has_the_time_it_needs(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as fast as it has to be, for several times what a small request may take."""
    share = 100 * limits.MIN_RATE
    monkeypatch.setattr(protocol, "MIN_RATE", share)
    body = GOOD[GOOD.index(b"{") :] + b" " * (10 * share)
    request = post(infer_path(MODEL), body)
    async with make_fleet(MODEL, receive_timeout=RECEIVE) as made, http.connect(made.port) as connection:
        for start in range(0, len(request), share):
            connection.send(request[start : start + share])
            await asyncio.sleep(0.1)  # a pace, not a wait
        assert (await connection.answer()).outputs() == {"y": [1.0]}


async def test_idle_connections_stay_longer_than_slow_ones(make_fleet: MakeFleet) -> None:
    async with make_fleet(MODEL, receive_timeout=RECEIVE) as made, http.connect(made.port) as connection:
        for request in (GOOD, get("/v2"), GOOD):
            assert (await connection.ask(request)).status == 200
            (server_side,) = made.gateway.http._server.server_state.connections  # type: ignore[union-attr]
            await looked_at(server_side)


async def looked_at(server_side: Any) -> None:
    """The timer has looked at the connection, more than once, and let it be."""
    for _ in range(3):
        timer = server_side.timeout_keep_alive_task
        await eventually(lambda timer=timer: server_side.timeout_keep_alive_task is not timer, "it looked")


async def test_connections_above_the_limit_are_told_so(make_fleet: MakeFleet) -> None:
    async with make_fleet(MODEL, max_connections=3) as made, AsyncExitStack() as stack:
        let_in = [await stack.enter_async_context(http.connect(made.port)) for _ in range(3)]
        for connection in let_in:
            assert (await connection.ask(GOOD)).status == 200
        for request in (GOOD, b"", get("/v2")):
            async with http.connect(made.port) as turned_away:
                turned_away.send(request)
                answer = await turned_away.answer()
                assert (answer.status, answer.reason) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) >= 1
                assert "3 connections" in answer.error
                assert answer.headers["connection"] == "close"
                assert await turned_away.ended() == b""
        assert (await let_in[0].ask(GOOD)).status == 200
        await let_in.pop().close()
        state = made.gateway.http._server.server_state  # type: ignore[union-attr]
        await eventually(lambda: len(state.connections) < 3, "there is room")
        async with http.connect(made.port) as connection:
            assert (await connection.ask(GOOD)).status == 200


async def test_a_flood_of_connections_is_cut_off(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are told so take room, too: beyond some, connections are closed without a word."""
    monkeypatch.setattr(protocol, "_MAX_TURNED_AWAY", 2)
    async with make_fleet(max_connections=1) as made, AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(http.connect(made.port)) for _ in range(1)]
        assert (await opened[0].ask(get("/v2"))).status == 200
        late = [await stack.enter_async_context(http.connect(made.port)) for _ in range(8)]
        said = await asyncio.gather(*(connection.ended() for connection in late))
        told = [text for text in said if text]
        assert 2 <= len(told) < 8
        assert all(b"503" in text for text in told)


@pytest.mark.parametrize("path", [infer_path(MODEL), f"/v2/models/{MODEL}/generate", "/v2/jobs"])
async def test_bodies_that_arrive_have_a_limit_together(
    make_fleet: MakeFleet, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that each hold most of a body take memory, however many there may be."""
    limit = 100_000
    part = post(path, b" " * (limit - 1000), length=limit)
    async with make_fleet(MODEL, max_body_bytes=limit) as made, AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(http.connect(made.port)) for _ in range(17)]
        for connection in waiting[:16]:
            connection.send(part)
        await eventually(lambda: made.front.arriving == 16 * (limit - 1000), "they have come")
        waiting[16].send(part)
        answer = await waiting[16].answer()
        assert (answer.status, answer.reason) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        # What has come whole, and whose connection has gone, makes room.
        assert (await waiting[0].ask(b" " * 1000)).status == 400
        await waiting[1].close()
        await eventually(lambda: made.front.arriving == 14 * (limit - 1000), "there is room")
        async with http.connect(made.port) as connection:
            assert (await connection.ask(GOOD)).outputs() == {"y": [1.0]}
    assert made.front.arriving == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_grpc_connections_have_a_limit(make_fleet: MakeFleet) -> None:
    async with make_fleet(grpc_port=0, max_connections=2) as made, AsyncExitStack() as stack:
        assert made.gateway.grpc is not None
        address = f"127.0.0.1:{made.gateway.grpc.port}"

        async def ask() -> None:
            # Without a pool of its own each channel would use the connection of the one before it.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            await channel.unary_unary(METHODS["ServerLive"].path)(b"", timeout=5)

        await ask()
        await ask()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask()
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_connections_have_the_files_they_need(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        limits.allow_files(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (600, before[1])
        limits.allow_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 700
        assert not caplog.records
        if before[1] != resource.RLIM_INFINITY:
            limits.allow_files(before[1])
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
            assert "ulimit" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
