"""Deadlines, callers that leave, back-pressure: on a gateway whose insides can be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import nats
import pytest
from grpc import StatusCode
from tritonclient.utils import InferenceServerException

from qinfer.message import RequestFrame, decode_request_frame
from qinfer.naming import Names
from qinfer.proto import METHODS, ModelInferRequest
from tests.gateway.grpc.calls import CHANNEL, Calls, Failure, Gate, fp32
from tests.gateway.grpc.conftest import MakeFleet, address, client_of
from tests.helpers.served_models import GATED, VERSIONS
from tests.helpers.system import Fleet
from tests.helpers.waiting import PATIENCE, eventually


def outcomes(fleet: Fleet) -> dict[str, int]:
    """How gRPC requests ended, with how many did."""
    counted: dict[str, int] = {}
    for (_, protocol, outcome), latency in fleet.dispatcher._observer.stats.requests.items():
        if protocol == "grpc":
            counted[outcome] = counted.get(outcome, 0) + latency.count
    return counted


async def test_the_clients_deadline_is_the_requests(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, client_of(fleet) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(GATED, gate.inputs, client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the request")
        (outcome,) = outcomes(fleet)
        assert outcome in ("cancelled", "deadline_exceeded")
        gate.open()


async def test_the_timeout_parameter(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, client_of(fleet) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(GATED, gate.inputs, timeout=200_000, client_timeout=60)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert outcomes(fleet) == {"deadline_exceeded": 1}, "the server found out first"
        gate.open()


async def test_the_earlier_deadline_counts(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, client_of(fleet) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(GATED, gate.inputs, timeout=60_000_000, client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the request")
        gate.open()


async def test_a_caller_that_cancels(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet, client_of(fleet) as client:
        caller = asyncio.create_task(client.infer(GATED, gate.inputs))
        await gate.begun()
        assert fleet.in_flight == 1
        caller.cancel()
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the request")
        assert outcomes(fleet) == {"cancelled": 1}
        gate.open()


async def test_a_connection_that_breaks(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED) as fleet:
        async with client_of(fleet) as client:
            callers = [asyncio.create_task(client.infer(GATED, gate.inputs)) for _ in range(5)]
            await gate.begun()
            await eventually(lambda: fleet.in_flight == 5, "all are in flight")
        await eventually(lambda: not fleet.in_flight, "the gateway has forgotten the requests")
        gate.open()
        ended = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(end, BaseException) for end in ended)


async def test_full_gateway(make_fleet: MakeFleet, gate: Gate) -> None:
    async with make_fleet(GATED, VERSIONS, max_in_flight=1) as fleet, client_of(fleet) as client:
        held = asyncio.create_task(client.infer(GATED, gate.inputs))
        await gate.begun()
        failure = await _failure(fleet, VERSIONS)
        assert (failure.code, failure.reason) == (StatusCode.RESOURCE_EXHAUSTED, "queue_full")
        assert int(failure.retry_after) >= 1
        gate.open()
        assert (await held).as_numpy("y").shape == (1, 1)
        assert outcomes(fleet) == {"ok": 1, "queue_full": 1}


async def test_no_worker(make_fleet: MakeFleet) -> None:
    async with make_fleet(VERSIONS) as fleet, client_of(fleet) as client:
        await client.infer(VERSIONS, fp32(1, 1))
        (worker,) = fleet.workers
        await worker.drain()
        await fleet.unknown(worker.id)
        failure = await _failure(fleet, VERSIONS)
        assert (failure.code, failure.reason) == (StatusCode.UNAVAILABLE, "no_worker")
        assert int(failure.retry_after) >= 1
        assert not await client.is_server_ready()
        assert not await client.is_model_ready(VERSIONS)
        assert await client.is_server_live()
        assert (await client.get_model_metadata(VERSIONS)).name == VERSIONS


async def _failure(fleet: Fleet, model: str) -> Failure:
    """The error of a bare call, which unlike `tritonclient` shows trailing metadata."""
    calls = Calls(address(fleet))
    with calls.channel:
        return await asyncio.to_thread(
            calls.fails, "ModelInfer", ModelInferRequest(model_name=model, **_FP32)
        )


_FP32: Any = {
    "inputs": [ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])],
    "raw_input_contents": [bytes(4)],
}


@asynccontextmanager
async def onlooker(fleet: Fleet, model: str) -> AsyncIterator[Callable[[], Awaitable[RequestFrame]]]:
    """Gives the frames that are published for a model, one after the other."""
    client = await nats.connect(fleet.nats)
    try:
        published = await client.subscribe(Names(fleet.namespace).requests(model))
        await client.flush()

        async def next_frame() -> RequestFrame:
            return decode_request_frame((await published.next_msg(PATIENCE)).data)

        yield next_frame
    finally:
        await client.close()


async def test_trace_context_is_handed_on(make_fleet: MakeFleet) -> None:
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    async with make_fleet(VERSIONS) as fleet, grpc.aio.insecure_channel(address(fleet), CHANNEL) as channel:
        method = METHODS["ModelInfer"]
        infer = channel.unary_unary(method.path, request_serializer=ModelInferRequest.SerializeToString)
        metadata = (("traceparent", traceparent), ("tracestate", "vendor=1"))
        async with onlooker(fleet, VERSIONS) as next_frame:
            await infer(ModelInferRequest(model_name=VERSIONS, **_FP32), metadata=metadata)
            await infer(ModelInferRequest(model_name=VERSIONS, **_FP32))
            frames = [await next_frame() for _ in range(2)]
    seen = [(request.traceparent, request.tracestate) for frame in frames for request in frame.requests]
    assert seen == [(traceparent, "vendor=1"), ("", "")]


async def test_the_earlier_deadline_travels_with_the_request(make_fleet: MakeFleet) -> None:
    """Seconds of budget that the worker is given: the RPC's, the parameter's, or the gateway's default."""
    given: list[dict[str, Any]] = [{"client_timeout": 500}, {"timeout": 400_000_000}, {}]
    given.append({"client_timeout": 500, "timeout": 400_000_000})
    given.append({"client_timeout": 300, "timeout": 400_000_000})
    async with make_fleet(VERSIONS, request_timeout=900.0) as fleet, client_of(fleet) as client:
        budgets = []
        async with onlooker(fleet, VERSIONS) as next_frame:
            for told in given:
                await client.infer(VERSIONS, fp32(1, 1), **told)
                frame = await next_frame()
                budgets.append((frame.requests[0].deadline_us - frame.sent_us) / 1e6)
    for budget, limit in zip(budgets, (500, 400, 900, 400, 300), strict=True):
        assert limit - PATIENCE < budget <= limit + 1, budgets
