"""Idempotency keys in the metadata of RPCs; what becomes of them is tested over HTTP (`tests.e2e`)."""

from __future__ import annotations

from uuid import uuid4

import numpy as np
import pytest
from grpc import StatusCode

from qinfer.proto import ModelInferRequest
from tests.gateway.grpc.calls import Calls, Gate
from tests.gateway.grpc.conftest import MakeFleet, address
from tests.gateway.grpc.test_stream import channel_to, open_stream
from tests.helpers import http
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.system import System

MODEL = IDENTITY["INT64"]


def number(value: int, request_id: str = "") -> ModelInferRequest:
    request = ModelInferRequest(
        model_name=MODEL, id=request_id, raw_input_contents=[np.int64(value).tobytes()]
    )
    request.inputs.add(name="x", datatype="INT64", shape=[1, 1])
    return request


def value_of(answer: object) -> int:
    return int(np.frombuffer(answer.raw_output_contents[0], np.int64)[0])  # type: ignore[attr-defined]


def test_a_key_that_comes_with_another_request(calls: Calls) -> None:
    metadata = (("idempotency-key", uuid4().hex),)
    assert value_of(calls("ModelInfer", number(1), metadata=metadata)) == 1
    failure = calls.fails("ModelInfer", number(2), metadata=metadata)
    assert (failure.code, failure.reason) == (StatusCode.INVALID_ARGUMENT, "key_reused")
    again = calls("ModelInfer", number(1, "other id"), metadata=metadata)
    assert (value_of(again), again.id) == (1, "other id")


async def test_a_key_is_the_same_on_every_way_in(system: System, calls: Calls) -> None:
    key = uuid4().hex
    calls("ModelInfer", number(1), metadata=(("idempotency-key", key),))
    async with http.connect(system.http_port) as connection:
        for value, status in ((1, 200), (2, 422)):
            body = {"inputs": [tensor([value], "INT64", [1, 1])]}
            assert (await connection.ask(infer(MODEL, body, f"Idempotency-Key: {key}"))).status == status


@pytest.mark.parametrize("key", ["", "x" * 256], ids=["empty", "long"])
def test_what_can_be_no_key(calls: Calls, key: str) -> None:
    failure = calls.fails("ModelInfer", number(1), metadata=(("idempotency-key", key),))
    assert (failure.code, failure.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert "Idempotency-Key" in failure.message


async def test_a_stream_has_no_key(system: System) -> None:
    """It would be the key of all its requests."""
    async with channel_to(system.grpc) as channel:
        stream = open_stream(channel, metadata=(("idempotency-key", "k"),))
        await stream.write(number(1))
        answer = await stream.read()
        assert "ModelInfer" in answer.error_message
        parameters = answer.infer_response.parameters
        assert parameters["x-qinfer-reason"].string_param == "invalid_request"
        await stream.done_writing()


async def test_identifiers_are_keys_on_streams_too(make_fleet: MakeFleet, gate: Gate) -> None:
    gate.open()
    request = ModelInferRequest(model_name=GATED, id="7")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 1])
    path = gate.row[0, 0]
    request.raw_input_contents.append(len(path).to_bytes(4, "little") + path)
    async with make_fleet(GATED, idempotent_request_ids=True) as running:
        async with channel_to(address(running)) as channel:
            stream = open_stream(channel)
            for _ in range(2):
                await stream.write(request)
            await stream.done_writing()
            answers = [answer async for answer in stream]
        assert [answer.error_message for answer in answers] == ["", ""]
        (worker,) = running.workers
        assert sum(stats.executions for stats in worker.stats()) == 1
