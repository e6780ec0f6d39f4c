"""Refusals under load, the same on every way in: a real worker with a model that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from qinfer.proto import METHODS, ModelInferRequest, ModelStreamInferResponse
from tests.gateway.grpc.calls import CHANNEL, Calls, Failure
from tests.helpers import http
from tests.helpers.http import Answer, infer
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually

MODEL, LIMITED = "slow", "limited"
BATCH = 4
_SOURCE = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.05)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
_CONFIG = f"""
backend: "python"
max_batch_size: {BATCH}
input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}
"""
BODY = http.floats(1.0)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    limits = "dynamic_batching { default_queue_policy { max_queue_size: 8 } }"
    for name, extra in ((MODEL, ""), (LIMITED, limits)):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.py").write_text(_SOURCE)
        (tmp_path / name / "config.pbtxt").write_text(_CONFIG + extra)
    return tmp_path


@asynccontextmanager
async def busy(
    nats_url: str, namespace: str, repository: Path, *, model: str = MODEL, callers: int = 64, **options: Any
) -> AsyncIterator[Fleet]:
    """A fleet whose model has a backlog, kept up by callers who are answered one after the other."""
    async with fleet(nats_url, namespace, repository, grpc_port=0, **options) as running:
        await running.add_worker(model)
        stop = asyncio.Event()
        refused = 0

        async def caller() -> None:
            nonlocal refused
            async with http.connect(running.port) as connection:
                while not stop.is_set():
                    answer = await connection.ask(infer(model, BODY))
                    refused += answer.status == 429

        asking = [asyncio.create_task(caller()) for _ in range(callers)]
        await eventually(
            lambda: model in running.dispatcher.flights and running.dispatcher.flights[model].drain_rate,
            "there is a backlog, and a rate",
        )
        try:
            yield running
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*asking)


async def ask(running: Fleet, *headers: str, model: str = MODEL) -> Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(infer(model, BODY, *headers))


def request(model: str = MODEL, timeout_us: int = 0) -> ModelInferRequest:
    made = ModelInferRequest(model_name=model, raw_input_contents=[bytes(4)])
    made.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    if timeout_us:
        made.parameters["timeout"].int64_param = timeout_us
    return made


async def fails(running: Fleet, message: ModelInferRequest) -> Failure:
    assert running.gateway.grpc is not None
    calls = Calls(f"127.0.0.1:{running.gateway.grpc.port}")
    with calls.channel:
        return await asyncio.to_thread(calls.fails, "ModelInfer", message)


def check_told(told: dict[str, str]) -> None:
    """What a refusal with a measured rate tells."""
    assert int(told["retry-after"]) >= 1
    assert int(told["x-qinfer-queue-position"]) > BATCH
    assert float(told["x-qinfer-estimated-wait"]) > 0.1
    assert "." in told["x-qinfer-estimated-wait"]


async def test_a_wait_beyond_the_deadline_is_refused_at_once(
    nats_url: str, namespace: str, repository: Path
) -> None:
    async with busy(nats_url, namespace, repository) as running:
        assert (await ask(running)).status == 200, "whoever has the time is let in"
        for answer in (
            await ask(running, "x-qinfer-timeout-ms: 100"),
            await ask(running, "x-qinfer-timeout-ms: 99.5"),
        ):
            assert (answer.status, answer.reason) == (429, "wait_too_long")
            assert MODEL in answer.error
            check_told(dict(answer.headers))
        failure = await fails(running, request(timeout_us=100_000))
        assert (failure.code, failure.reason) == (StatusCode.RESOURCE_EXHAUSTED, "wait_too_long")
        check_told(failure.metadata)
        outcomes = running.dispatcher._observer.stats.requests
        assert outcomes[MODEL, "http", "wait_too_long"].count == 2
        assert outcomes[MODEL, "grpc", "wait_too_long"].count == 1


async def test_a_refusal_on_a_stream_tells_the_same(nats_url: str, namespace: str, repository: Path) -> None:
    async with busy(nats_url, namespace, repository) as running:
        assert running.gateway.grpc is not None
        address = f"127.0.0.1:{running.gateway.grpc.port}"
        method = METHODS["ModelStreamInfer"]
        async with grpc.aio.insecure_channel(address, CHANNEL) as channel:
            stream = channel.stream_stream(
                method.path,
                request_serializer=ModelInferRequest.SerializeToString,
                response_deserializer=ModelStreamInferResponse.FromString,
            )(iter([request(timeout_us=100_000)]))
            async with asyncio.timeout(PATIENCE):
                message = await stream.read()
        parameters = message.infer_response.parameters
        assert parameters["x-qinfer-reason"].string_param == "wait_too_long"
        check_told({name: parameters[name].string_param for name in parameters})


async def test_the_models_own_limit_of_waiting_requests(
    nats_url: str, namespace: str, repository: Path
) -> None:
    async with busy(nats_url, namespace, repository, model=LIMITED) as running:
        flight = running.dispatcher.flights[LIMITED]
        while True:
            await eventually(lambda: flight.known_backlog >= 8, "as many wait as may")
            answer = await ask(running, model=LIMITED)
            if answer.status == 429 and "max_queue_size" in answer.error:
                break
        assert answer.reason == "queue_full"
        assert "max_queue_size is 8" in answer.error
        check_told(dict(answer.headers))


async def test_the_gateways_limit_of_rows(nats_url: str, namespace: str, repository: Path) -> None:
    async with busy(nats_url, namespace, repository, callers=64, max_queue_rows=64) as running:
        await eventually(lambda: running.dispatcher.flights[MODEL].rows == 64, "full")
        failure = await fails(running, request())
        assert (failure.code, failure.reason) == (StatusCode.RESOURCE_EXHAUSTED, "queue_full")
        assert "--max-queue-rows" in failure.message
        check_told(failure.metadata)


async def test_the_gateways_limit_of_requests(nats_url: str, namespace: str, repository: Path) -> None:
    async with busy(nats_url, namespace, repository, callers=64, max_in_flight=64) as running:
        await eventually(lambda: running.in_flight == 64, "full")
        answer = await ask(running)
        assert (answer.status, answer.reason) == (429, "queue_full")
        assert "--max-in-flight" in answer.error
        check_told(dict(answer.headers))


async def test_without_a_backlog_a_short_deadline_is_let_in(
    nats_url: str, namespace: str, repository: Path
) -> None:
    async with fleet(nats_url, namespace, repository) as running:
        await running.add_worker(MODEL)
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(ask(running, "x-qinfer-timeout-ms: 1") for _ in range(20)))
        assert {answer.reason for answer in answers} == {"deadline_exceeded"}, "too late, and not refused"


@pytest.mark.parametrize(
    "value", ["0", "-5", "abc", "1e3", "", "0.0", "1" * 13, "1,5", "inf", "+1", "1.", ".5"]
)
async def test_a_bad_deadline_header_is_400(system: Any, value: str) -> None:
    async with http.connect(system.http_port) as connection:
        for _ in range(2):  # the second time its head is known
            answer = await connection.ask(infer("identity_fp32", BODY, f"x-qinfer-timeout-ms: {value}"))
            assert (answer.status, answer.reason) == (400, "invalid_request")
            assert "x-qinfer-timeout-ms" in answer.error


async def test_the_earliest_deadline_counts(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """Of header and parameter, in either order; the parameter is in microseconds."""
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker("gated")
        path = tmp_path / "gate"
        gate = {"inputs": [http.tensor([str(path)], "BYTES", [1, 1])]}
        for header, parameter in (("60000", 50_000), ("50.5", 60_000_000)):
            body = {**gate, "parameters": {"timeout": parameter}}
            async with http.connect(running.port) as connection:
                answer = await connection.ask(infer("gated", body, f"x-qinfer-timeout-ms: {header}"))
            assert (answer.status, answer.reason) == (504, "deadline_exceeded")
        path.touch()


async def test_an_answer_in_time(system: Any) -> None:
    async with http.connect(system.http_port) as connection:
        for _ in range(3):
            answer = await connection.ask(infer("identity_fp32", BODY, "X-Qinfer-Timeout-Ms: 15000.25"))
            assert answer.outputs() == {"y": [1.0]}
