"""The server itself: addresses, limits, shutdown."""

from __future__ import annotations

import asyncio
import socket

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from qinfer.errors import SetupError
from qinfer.proto import METHODS
from tests.gateway.grpc.calls import CHANNEL, Failure, Gate, fp32, raw, triton_input
from tests.gateway.grpc.conftest import MakeFleet, address, client_of
from tests.helpers.served_models import GATED, IDENTITY, VERSIONS
from tests.helpers.waiting import PATIENCE, eventually

FP32 = IDENTITY["FP32"]
LIMIT = 256 * 1024


async def test_taken_port(make_fleet: MakeFleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"127\.0\.0\.1 port {port}.*in use"):
            async with make_fleet(grpc_port=port):
                pass


async def test_processes_share_a_port_only_if_told(make_fleet: MakeFleet) -> None:
    async with make_fleet(reuse_port=True, http_port=-1) as first:
        assert first.gateway.grpc is not None
        port = first.gateway.grpc.port
        async with make_fleet(reuse_port=True, http_port=-1, grpc_port=port) as second:
            assert second.gateway.grpc is not None
            assert second.gateway.grpc.port == port
        with pytest.raises(SetupError, match="in use"):
            async with make_fleet(http_port=-1, grpc_port=port):
                pass


async def test_ipv6(make_fleet: MakeFleet) -> None:
    async with make_fleet(host="::1", http_port=-1) as fleet:
        assert fleet.gateway.grpc is not None
        target = f"[::1]:{fleet.gateway.grpc.port}"
        async with triton_aio.InferenceServerClient(target, channel_args=CHANNEL) as client:
            assert await client.is_server_live()


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
async def test_too_large(make_fleet: MakeFleet, algorithm: str | None) -> None:
    """The limit holds for what a message is decompressed to: zeros shrink a thousandfold."""
    async with make_fleet(FP32, max_body_bytes=LIMIT) as fleet, client_of(fleet) as client:
        over = [triton_input(np.zeros((1, LIMIT // 4), np.float32), "FP32")]
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(FP32, over, compression_algorithm=algorithm)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert str(LIMIT) in caught.value.message()
        under = np.zeros((1, LIMIT // 8), np.float32)
        given = [triton_input(under, "FP32")]
        answer = await client.infer(FP32, given, compression_algorithm=algorithm)
        assert np.array_equal(answer.as_numpy("y"), under), "the connection goes on"


async def test_drain_answers_what_is_in_flight(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, client_of(fleet) as client, client_of(fleet) as late:
        held = asyncio.create_task(client.infer(GATED, gate.inputs))
        await gate.begun()
        assert fleet.gateway.grpc is not None
        stopping = asyncio.create_task(fleet.gateway.stop())
        await eventually(fleet.gateway.grpc._stopping.is_set, "the drain has begun")
        with pytest.raises(InferenceServerException) as caught:
            await late.infer(GATED, gate.inputs)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert not stopping.done()
        gate.open()
        assert (await held).as_numpy("y").shape == (1, 1)
        await stopping


async def test_drain_under_load_says_try_elsewhere(make_fleet: MakeFleet) -> None:
    """grpcio cancels what it has read and not yet handed over: not even that may end as CANCELLED."""
    request = raw(VERSIONS, "FP32", [1, 1], bytes(4)).SerializeToString()
    async with make_fleet(VERSIONS) as fleet, grpc.aio.insecure_channel(address(fleet), CHANNEL) as channel:
        infer = channel.unary_unary(METHODS["ModelInfer"].path)
        answered = 0

        async def call_until_refused() -> Failure:
            nonlocal answered
            while True:
                try:
                    await infer(request, timeout=PATIENCE)
                except grpc.aio.AioRpcError as error:
                    return Failure(error)
                answered += 1

        callers = [asyncio.create_task(call_until_refused()) for _ in range(64)]
        await eventually(lambda: answered > len(callers), "the load runs")
        await fleet.gateway.stop()
        ended = await asyncio.gather(*callers)
        assert {failure.code for failure in ended} == {grpc.StatusCode.UNAVAILABLE}, ended
        assert "shutting_down" in {failure.reason for failure in ended}


async def test_drain_gives_up(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED, drain_timeout=0.2) as fleet, client_of(fleet) as client:
        held = asyncio.create_task(client.infer(GATED, gate.inputs))
        await gate.begun()
        await fleet.gateway.stop()
        with pytest.raises(InferenceServerException) as caught:
            await held
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        gate.open()


async def test_one_process_serves_http_and_grpc(make_fleet: MakeFleet) -> None:
    async with make_fleet(VERSIONS) as fleet, client_of(fleet) as client:
        assert (await client.infer(VERSIONS, fp32(1, 1))).as_numpy("y").tolist() == [[0.0]]
        async with triton_http.InferenceServerClient(f"127.0.0.1:{fleet.port}") as http:
            given = triton_http.InferInput("x", [1, 1], "FP32")
            given.set_data_from_numpy(np.zeros((1, 1), np.float32))
            assert (await http.infer(VERSIONS, [given])).as_numpy("y").tolist() == [[0.0]]
