"""`ModelStreamInfer`, by unmodified `tritonclient` and by bare calls."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc import StatusCode

from qinfer.proto import METHODS, ModelInferRequest, ModelStreamInferResponse
from qinfer_gateway.grpc.stream import MAX_IN_FLIGHT
from tests.gateway.grpc.calls import CHANNEL, Failure, Gate, fp32, raw, triton_input
from tests.gateway.grpc.conftest import MakeFleet, address
from tests.helpers.served_models import GATED, VERSIONS
from tests.helpers.system import Fleet, System
from tests.helpers.waiting import PATIENCE, eventually


def open_stream(channel: Any, metadata: Any = ()) -> Any:
    method = METHODS["ModelStreamInfer"]
    return channel.stream_stream(
        method.path,
        request_serializer=lambda request: (
            request if isinstance(request, bytes) else request.SerializeToString()
        ),
        response_deserializer=ModelStreamInferResponse.FromString,
    )(timeout=PATIENCE, metadata=metadata)


def channel_to(target: str) -> Any:
    return grpc.aio.insecure_channel(target, CHANNEL)


def request(number: int, model: str = VERSIONS) -> ModelInferRequest:
    made = raw(model, "FP32", [1, 1], np.float32(number).tobytes())
    made.id, made.model_version = str(number), "2" if model == VERSIONS else ""
    return made


def test_unmodified_client(system: System) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(system.grpc, channel_args=CHANNEL) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        for number in range(40):
            array = np.full((1, 1), number, np.float32)
            client.async_stream_infer(
                VERSIONS,
                [triton_input(array, "FP32")],
                request_id=str(number),
                enable_empty_final_response=bool(number % 2),
            )
        for number in range(40):
            result, error = results.get(timeout=PATIENCE)
            assert error is None
            response = result.get_response()
            assert response.id == str(number), "answers come in the order of the requests"
            assert response.parameters["triton_final_response"].bool_param
            assert result.as_numpy("y").tolist() == [[2.0 * number]]
        client.async_stream_infer("nobody", fp32(1, 1))
        client.async_stream_infer(VERSIONS, fp32(1, 1))
        _, error = results.get(timeout=PATIENCE)
        assert "nobody" in error.message()
        result, error = results.get(timeout=PATIENCE)
        assert error is None, "one failed request does not end the stream"
        client.stop_stream()


async def test_unmodified_asyncio_client(aio_client: triton_aio.InferenceServerClient) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            model = VERSIONS if number != 3 else "nobody"
            yield {"model_name": model, "inputs": fp32(1, 2), "request_id": str(number)}

    seen = []
    async for result, error in aio_client.stream_infer(requests()):
        seen.append("error" if error else result.get_response().id)
    assert seen == ["0", "1", "2", "error", "4"]


async def test_an_error_says_which_request_and_why(system: System) -> None:
    async with channel_to(system.grpc) as channel:
        stream = open_stream(channel)
        await stream.write(request(7, "nobody"))
        await stream.write(b"\x0a\xffnonsense")
        await stream.done_writing()
        first, second = [response async for response in stream]
        assert "nobody" in first.error_message
        assert first.infer_response.id == "7"
        assert first.infer_response.parameters["x-qinfer-reason"].string_param == "model_not_found"
        assert first.infer_response.parameters["triton_final_response"].bool_param
        assert second.infer_response.parameters["x-qinfer-reason"].string_param == "invalid_request"
        assert await stream.code() == StatusCode.OK


async def test_errors_as_the_streams_status(system: System) -> None:
    async with channel_to(system.grpc) as channel:
        stream = open_stream(channel, metadata=(("triton_grpc_error", "true"),))
        await stream.write(request(1))
        assert (await stream.read()).infer_response.id == "1"
        await stream.write(request(2, "nobody"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        failure = Failure(caught.value)
        assert (failure.code, failure.reason) == (StatusCode.NOT_FOUND, "model_not_found")


async def test_a_fault_of_the_gateway(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered like any error, without a word of the gateway's insides, and ends nothing else."""

    def find(model: str, version: str) -> None:
        raise ZeroDivisionError("insides")

    async with make_fleet() as fleet, channel_to(address(fleet)) as channel:
        monkeypatch.setattr(fleet.front.catalog, "find", find)
        stream = open_stream(channel)
        for _ in range(2):
            await stream.write(request(1))
            answer = await stream.read()
            assert answer.infer_response.parameters["x-qinfer-reason"].string_param == "internal"
            assert "insides" not in answer.error_message
        infer = channel.unary_unary(METHODS["ModelInfer"].path, ModelInferRequest.SerializeToString)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(request(1), timeout=PATIENCE)
        failure = Failure(caught.value)
        assert (failure.code, failure.reason) == (StatusCode.INTERNAL, "internal")
        assert "insides" not in failure.message


async def test_order_is_kept_where_answers_are_not(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED, VERSIONS) as fleet, channel_to(address(fleet)) as channel:
        stream = open_stream(channel)
        await stream.write(_gated(gate, "slow"))
        await gate.begun()
        for number in range(3):
            await stream.write(request(number))
        await eventually(lambda: _answered(fleet) == 3, "the later requests are answered")
        gate.open()
        await stream.done_writing()
        assert [response.infer_response.id async for response in stream] == ["slow", "0", "1", "2"]


async def test_a_stream_reads_no_more_than_it_may_have_in_flight(make_fleet: MakeFleet, gate: Gate) -> None:
    surplus = 50
    async with make_fleet(GATED, VERSIONS) as fleet, channel_to(address(fleet)) as channel:
        stream = open_stream(channel)
        await stream.write(_gated(gate, "slow"))
        await gate.begun()

        async def write() -> None:
            for number in range(MAX_IN_FLIGHT + surplus):
                await stream.write(request(number))
            await stream.done_writing()

        writer = asyncio.create_task(write())
        await eventually(lambda: _answered(fleet) == MAX_IN_FLIGHT - 1, "as many as may be are read")
        gate.open()
        seen = [response.infer_response.id async for response in stream]
        assert seen == ["slow", *map(str, range(MAX_IN_FLIGHT + surplus))]
        await writer


async def test_a_caller_that_cancels(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, channel_to(address(fleet)) as channel:
        stream = open_stream(channel)
        for number in range(3):
            await stream.write(_gated(gate, str(number)))
        await eventually(lambda: fleet.in_flight == 3, "all are in flight")
        stream.cancel()
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the requests")
        gate.open()


async def test_the_streams_deadline(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, triton_aio.InferenceServerClient(address(fleet)) as client:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": GATED, "inputs": gate.inputs}

        answers = client.stream_infer(requests(), stream_timeout=0.3)
        with pytest.raises(Exception, match="Deadline Exceeded"):
            async for _ in answers:
                pass
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the request")
        gate.open()


async def test_drain_answers_what_is_in_flight_and_ends_the_stream(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, channel_to(address(fleet)) as channel:
        busy, idle = open_stream(channel), open_stream(channel)
        await idle.write(request(0, "nobody"))
        await idle.read()
        await busy.write(_gated(gate, "last"))
        await gate.begun()
        stopping = asyncio.create_task(fleet.gateway.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await idle.read()
        assert Failure(caught.value).reason == "shutting_down"
        gate.open()
        assert (await busy.read()).infer_response.id == "last"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await busy.read()
        failure = Failure(caught.value)
        assert (failure.code, failure.reason) == (StatusCode.UNAVAILABLE, "shutting_down")
        await stopping


def _gated(gate: Gate, identifier: str) -> ModelInferRequest:
    path = gate.row[0, 0]
    made = raw(GATED, "BYTES", [1, 1], len(path).to_bytes(4, "little") + path)
    made.id = identifier
    return made


def _answered(fleet: Fleet) -> int:
    requests = fleet.dispatcher._observer.stats.requests
    return sum(latency.count for (_, _, outcome), latency in requests.items() if outcome == "ok")
