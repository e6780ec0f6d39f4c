"""What goes wrong goes wrong for the same reason on every way in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import connect
from qinfer.errors import BY_REASON
from qinfer.message import PROTOCOL_VERSION, Request, RequestFrame, Tensor, decode_response_frame, encode
from qinfer.proto import METHODS, ModelInferRequest, ModelStreamInferResponse
from tests.gateway.grpc.calls import CHANNEL, Calls, raw
from tests.helpers import served_models
from tests.helpers.http import connect as connection_to
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import GATED, PICKY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE

GONE = served_models.IDENTITY["FP32"]
"""A model that the fleet knows and nobody serves."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request that fails.

    Attributes:
        model, tensor: what is asked.
        reason: why it fails.
        over_nats: why it fails over NATS, where there is nobody to know it.
        timeout: seconds until its deadline.
    """

    model: str
    tensor: Tensor
    reason: str
    over_nats: str = ""
    timeout: float = PATIENCE


def x(value: Any, datatype: str = "FP32", dtype: Any = np.float32) -> Tensor:
    return Tensor.from_numpy("x", np.array(value, dtype=dtype), datatype)


CASES = {
    "wrong shape": Case(PICKY, x([[1, 2, 3]]), "invalid_request"),
    "wrong datatype": Case(PICKY, x([[1]], "INT64", np.int64), "invalid_request"),
    "wrong name": Case(PICKY, Tensor.from_numpy("z", np.ones((1, 1), np.float32)), "invalid_request"),
    "the model refuses": Case(PICKY, x([[served_models.REFUSED]]), "invalid_request"),
    "the model raises": Case(PICKY, x([[served_models.RAISES]]), "model_failed"),
    "the model answers wrong": Case(PICKY, x([[served_models.WRONG_COUNT]]), "model_failed"),
    "unknown model": Case("nothing", x([[1]]), "model_not_found", over_nats="no_worker"),
    # Over NATS it waits in the queue: a worker may come.
    "no worker": Case(GONE, x([[1]]), "no_worker", over_nats="deadline_exceeded", timeout=0.3),
}


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository, grpc_port=0) as made:
        await made.add_worker(PICKY, GATED)
        former = await made.add_worker(GONE)
        await former.drain()
        await made.unknown(former.id)
        yield made


def _target(running: Fleet) -> str:
    assert running.gateway.grpc is not None
    return f"127.0.0.1:{running.gateway.grpc.port}"


def _message(case: Case) -> ModelInferRequest:
    tensor = case.tensor
    made = raw(case.model, tensor.datatype, tensor.shape, bytes(tensor.data))
    made.inputs[0].name = tensor.name
    made.parameters["timeout"].int64_param = int(case.timeout * 1e6)
    return made


async def http(running: Fleet, case: Case) -> str:
    values = case.tensor.numpy().tolist()
    if case.tensor.datatype == "BYTES":
        values = [[element.decode() for element in row] for row in values]
    body = {
        "inputs": [tensor(values, case.tensor.datatype, case.tensor.shape, case.tensor.name)],
        "parameters": {"timeout": int(case.timeout * 1e6)},
    }
    async with connection_to(running.port) as connection:
        return (await connection.ask(infer(case.model, body))).reason or "answered"


async def unary(running: Fleet, case: Case) -> str:
    failure = await asyncio.to_thread(Calls(_target(running)).fails, "ModelInfer", _message(case))
    assert failure.code.value[0] == BY_REASON[failure.reason].grpc_status
    return failure.reason


async def stream(running: Fleet, case: Case) -> str:
    async with grpc.aio.insecure_channel(_target(running), CHANNEL) as channel:
        call = channel.stream_stream(
            METHODS["ModelStreamInfer"].path,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )(timeout=2 * PATIENCE)
        await call.write(_message(case))
        await call.done_writing()
        answer = await call.read()
        assert answer.error_message
        return str(answer.infer_response.parameters["x-qinfer-reason"].string_param)


async def nats(running: Fleet, case: Case) -> str:
    """A client that knows nothing of models but their names."""
    bus = connect(running.nats, namespace=running.namespace)
    await bus.start()
    reasons: asyncio.Queue[str] = asyncio.Queue()

    def hear(data: bytes) -> None:
        (response,) = decode_response_frame(data).responses
        reasons.put_nowait("answered" if response.error is None else response.error.reason)

    bus.on_reply(hear)
    now_us = time.time_ns() // 1000
    request = Request(1, "", [case.tensor], deadline_us=now_us + int(case.timeout * 1e6))
    frame = RequestFrame(PROTOCOL_VERSION, bus.reply_to, case.model, "", now_us, 1, [request])
    try:
        bus.publish(case.model, "", encode(frame), lambda error: reasons.put_nowait(error.reason))
        async with asyncio.timeout(case.timeout + 1.0):
            return await reasons.get()
    except TimeoutError:
        return "deadline_exceeded"  # which a sender watches by itself
    finally:
        await bus.close()


WAYS: tuple[Callable[[Fleet, Case], Awaitable[str]], ...] = (http, unary, stream, nats)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_reason_is_the_same(running: Fleet, case: Case) -> None:
    reasons = {way.__name__: await way(running, case) for way in WAYS}
    wanted = dict.fromkeys(reasons, case.reason)
    assert reasons == {**wanted, "nats": case.over_nats or case.reason}


async def test_a_deadline_passes_for_the_same_reason(running: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    case = Case(GATED, x([[str(gate).encode()]], "BYTES", object), "deadline_exceeded", timeout=0.3)
    try:
        reasons = await asyncio.gather(*(way(running, case) for way in WAYS))
    finally:
        gate.touch()
    assert reasons == [case.reason] * len(WAYS)
