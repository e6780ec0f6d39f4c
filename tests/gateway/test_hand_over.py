"""A gateway whose clients are to go to another: what they get until they have gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from qinfer.proto import METHODS, ServerReadyRequest
from qinfer_gateway.grpc.sockets import connections, stop_listening
from tests.helpers import http, served_models
from tests.helpers.served_models import GATED
from tests.helpers.steady import MODEL, SteadyLoad, write_model
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually


@pytest_asyncio.fixture
async def running(
    nats_url: str, namespace: str, tmp_path: Path, served_repository: Path
) -> AsyncIterator[Fleet]:
    root = write_model(served_models.copy(served_repository, tmp_path, GATED), number=10)
    async with fleet(nats_url, namespace, root, grpc_port=0, lame_duck=2.0) as made:
        await made.add_worker()
        yield made


def infer(value: int) -> bytes:
    return http.infer(MODEL, {"inputs": [http.tensor([value], "INT64", [1, 1])]})


async def test_every_answer_is_the_last_of_its_connection(running: Fleet) -> None:
    async with http.connect(running.port) as one, http.connect(running.port) as other:
        assert "connection" not in (await one.ask(infer(1))).headers
        assert (await other.ask(http.get("/v2/health/ready"))).status == 200
        handing = asyncio.create_task(running.gateway.hand_over())
        await eventually(lambda: running.front.leaving)
        answer = await one.ask(infer(2))
        assert answer.outputs() == {"y": [3, 10]}
        assert answer.headers["connection"] == "close"
        assert await one.ended() == b""
        answer = await other.ask(http.get("/v2/health/ready"))
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await other.ended() == b""
        async with asyncio.timeout(PATIENCE):
            await handing  # nobody is left


async def test_an_answer_that_is_on_its_way_is_the_last_too(running: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with http.connect(running.port) as connection:
        connection.send(http.infer(GATED, {"inputs": [http.tensor([str(gate)], "BYTES", [1, 1])]}))
        await eventually(lambda: running.in_flight == 1)
        handing = asyncio.create_task(running.gateway.hand_over())
        await eventually(lambda: running.front.leaving)
        gate.touch()
        assert (await connection.answer()).headers["connection"] == "close"
        async with asyncio.timeout(PATIENCE):
            await handing


async def test_what_the_kernel_has_queued_is_answered(running: Fleet) -> None:
    """And what comes after is refused, or goes to whoever else listens."""
    assert running.gateway.http is not None
    waiting = []
    for _ in range(50):  # nothing is awaited, so nothing is accepted
        one = socket.create_connection((http.HOST, running.port))
        one.sendall(infer(1))
        waiting.append(one)
    handing = running.gateway.http.hand_over(5.0)
    closed = asyncio.create_task(_refused(running.port))
    await handing
    await closed
    for one in waiting:
        with one:
            one.settimeout(PATIENCE)
            assert (await asyncio.to_thread(one.recv, 4096)).startswith(b"HTTP/1.1 200 OK")


async def _refused(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        async with http.connect(port):
            pass


async def test_idle_connections_end_with_the_time(running: Fleet) -> None:
    assert running.gateway.http is not None
    async with http.connect(running.port) as idle:
        assert (await idle.ask(infer(1))).status == 200
        await running.gateway.http.hand_over(0.1)
        assert (await idle.ask(infer(2))).outputs() == {"y": [3, 10]}, "until it is stopped it answers"


async def test_grpc_clients_go_elsewhere_without_an_error(running: Fleet) -> None:
    assert running.gateway.grpc is not None
    port = running.gateway.grpc.port
    refused = (14, "")  # there is no other gateway here
    async with SteadyLoad(0, port, allowed=lambda *told: told == refused) as load:
        await load.more()
        assert connections(port) == 4
        await running.gateway.hand_over()
        assert connections(port) == 0
        answered = [number for number in load.numbers if number != -1]
        await load.until(-1)
        assert set(answered) == {10}
    load.check()


async def test_it_is_not_ready_meanwhile(running: Fleet) -> None:
    assert running.gateway.grpc is not None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.gateway.grpc.port}") as channel:
        kind = METHODS["ServerReady"]
        call = channel.unary_unary(
            kind.path,
            request_serializer=ServerReadyRequest.SerializeToString,
            response_deserializer=kind.response.FromString,
        )
        assert (await call(ServerReadyRequest())).ready
        handing = asyncio.create_task(running.gateway.hand_over())
        await eventually(lambda: running.front.leaving)
        assert not (await call(ServerReadyRequest())).ready
        await handing


def test_sockets_of_a_port() -> None:
    with socket.create_server((http.HOST, 0)) as listener, socket.create_server((http.HOST, 0)) as other:
        port = listener.getsockname()[1]
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert (connections(port), connections(other.getsockname()[1])) == (1, 0)
                assert stop_listening(port) == 1
                assert stop_listening(port) == 0
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((http.HOST, port))
                client.sendall(b"still there")
                assert accepted.recv(100) == b"still there"
        assert connections(port) == 0
        socket.create_connection(other.getsockname()).close()
