"""The dispatcher on the memory bus; the tests are the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import Bus, Delivery, QueueSpec, connect
from qinfer.errors import InvalidRequest, PayloadTooLarge, QInferError, QueueFull, ShuttingDown
from qinfer.message import (
    BatchInfo,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    Tensor,
    WireError,
    decode_request_frame,
    encode,
)
from qinfer.registry import ModelRecord, TensorRecord
from qinfer.telemetry.gateway import GatewayStats
from qinfer_gateway.catalog import Target
from qinfer_gateway.dispatcher import Call, Dispatcher
from qinfer_gateway.observer import Observer
from tests.helpers.waiting import Mailbox, eventually

SPEC = QueueSpec(storage="memory", ack_wait=30.0, max_messages=100)


class StubCall(Call):
    """A call that keeps its answer."""

    protocol = "http"
    operation = "POST"

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop().time())
        self.answers: list[Response] = []
        self.errors: list[QInferError] = []

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        self.answers.append(response)

    def failed(self, error: QInferError) -> None:
        self.errors.append(error)

    @property
    def reason(self) -> str:
        """How it ended: "ok", a reason, or "" for not yet."""
        assert len(self.answers) + len(self.errors) <= 1
        return self.errors[0].reason if self.errors else "ok" if self.answers else ""


class Stage:
    """A dispatcher, and the worker's end of the bus."""

    def __init__(
        self,
        client: Bus,
        worker: Bus,
        *,
        max_in_flight: int = 100,
        timeout: float = 30.0,
        max_claim_bytes: int = 1 << 20,
    ) -> None:
        self.client, self.worker = client, worker
        self.stats = GatewayStats(lambda model: True)
        self.dispatcher = Dispatcher(
            client,
            Observer(self.stats),
            max_in_flight=max_in_flight,
            timeout=timeout,
            max_claim_bytes=max_claim_bytes,
        )
        self.deliveries = Mailbox()

    async def serve(self, model: str = "m", version: str = "") -> None:
        """Take what is published for a model."""
        await self.worker.declare(model, SPEC)
        (await self.worker.consume(model, version, self.deliveries)).grant(1000)

    def call(
        self,
        target: Target,
        rows: int = 1,
        *,
        columns: int = 2,
        timeout: float = 0.0,
        parameters: dict[str, Any] | None = None,
    ) -> StubCall:
        call = StubCall()
        array = np.zeros((rows, columns), np.float32)
        request = Request(0, "", [Tensor.from_numpy("x", array)], parameters=parameters or {})
        self.dispatcher.submit(call, target, request, timeout=timeout)
        return call

    async def frames(self, count: int = 1) -> list[RequestFrame]:
        """The next frames at the worker, acked."""
        taken: list[Delivery] = await self.deliveries.take(count)
        for delivery in taken:
            delivery.ack()
        return [decode_request_frame(delivery.payload) for delivery in taken]

    def answer(self, *numbers: int, attempt: int = 1, error: WireError | None = None) -> None:
        responses = [Response(number, attempt, error) for number in numbers]
        frame = ResponseFrame(1, "w", "1", BatchInfo(), responses)
        self.worker.reply(self.client.reply_to, encode(frame))

    @property
    def outcomes(self) -> dict[str, int]:
        """Counted calls by outcome."""
        return {outcome: latency.count for (_, _, outcome), latency in self.stats.requests.items()}


async def settled() -> None:
    """Let everything that is due now happen."""
    for _ in range(20):
        await asyncio.sleep(0)


@cache
def target(model: str = "m", version: str = "", *, max_batch_size: int = 8, columns: int = 2) -> Target:
    """A served model; the same one for the same arguments, as a catalog has it."""
    tensor = TensorRecord("x", "FP32", (columns,))
    record = ModelRecord(model, "1", "stub", "stub", max_batch_size, (tensor,), (tensor,), b"")
    return Target(version, record, served=True, subject=f"stub.{model}")


@pytest_asyncio.fixture
async def buses(namespace: str) -> AsyncIterator[tuple[Bus, Bus]]:
    client, worker = (connect("memory://dispatcher", namespace=namespace) for _ in range(2))
    await client.start()
    await worker.start()
    yield client, worker
    await client.close()
    await worker.close()


@pytest_asyncio.fixture
async def stage(buses: tuple[Bus, Bus]) -> AsyncIterator[Stage]:
    stage = Stage(*buses)
    await stage.serve()
    yield stage
    await stage.dispatcher.drain(0)


async def test_the_calls_of_one_tick_leave_in_one_frame(stage: Stage) -> None:
    calls = [stage.call(target()) for _ in range(5)]
    (frame,) = await stage.frames()
    assert [request.id for request in frame.requests] == [call.number for call in calls]
    assert (frame.version, frame.model, frame.model_version, frame.in_flight) == (1, "m", "", 5)
    assert frame.reply_to == stage.client.reply_to
    stage.answer(*(call.number for call in calls))
    await eventually(lambda: all(call.reason == "ok" for call in calls))
    assert stage.outcomes == {"ok": 5}
    assert stage.dispatcher.in_flight == {"m": 0}
    assert not stage.deliveries.items


async def test_calls_of_different_ticks_do_not_wait_for_each_other(stage: Stage) -> None:
    stage.call(target())
    (first,) = await stage.frames()
    stage.call(target())
    (second,) = await stage.frames()
    assert (len(first.requests), len(second.requests), second.in_flight) == (1, 1, 2)


async def test_models_and_versions_go_their_own_ways(stage: Stage) -> None:
    await stage.serve("n")
    await stage.serve("m", "3")
    stage.call(target("m"))
    stage.call(target("n"))
    stage.call(target("m", "3"))
    frames = await stage.frames(3)
    assert {(frame.model, frame.model_version, frame.in_flight) for frame in frames} == {
        ("m", "", 2),
        ("m", "3", 2),
        ("n", "", 1),
    }
    assert stage.dispatcher.in_flight == {"m": 2, "n": 1}


@pytest.mark.parametrize(
    ("max_batch_size", "rows", "expected"),
    [
        (8, [1] * 20, [8, 8, 4]),
        (8, [3, 3, 3, 8, 1], [6, 3, 8, 1]),
        (8, [8, 8], [8, 8]),
        (1, [1, 1], [1, 1]),
    ],
)
async def test_a_frame_is_no_more_than_a_batch(
    stage: Stage, max_batch_size: int, rows: list[int], expected: list[int]
) -> None:
    for count in rows:
        stage.call(target(max_batch_size=max_batch_size), count)
    frames = await stage.frames(len(expected))
    found = [sum(request.inputs[0].shape[0] for request in frame.requests) for frame in frames]
    assert found == expected
    numbers = [request.id for frame in frames for request in frame.requests]
    assert numbers == sorted(numbers)
    assert stage.stats.frames["m"].rows.total == sum(rows)
    assert stage.stats.frames["m"].requests.total == len(rows)


async def test_a_model_without_batches_gets_a_frame_a_request(stage: Stage) -> None:
    unbatched = target(max_batch_size=0)
    for _ in range(3):
        request = Request(0, "", [Tensor.from_numpy("x", np.zeros(2, np.float32))])
        stage.dispatcher.submit(StubCall(), unbatched, request)
    assert [len(frame.requests) for frame in await stage.frames(3)] == [1, 1, 1]


async def test_a_frame_takes_half_of_what_the_broker_does(stage: Stage) -> None:
    stage.client.max_payload = 10_000
    wide = target(columns=500)
    for _ in range(5):
        stage.call(wide, columns=500)  # 2000 bytes each
    frames = await stage.frames(3)
    assert [len(frame.requests) for frame in frames] == [2, 2, 1]
    stage.call(target(columns=2000), columns=2000)  # more than the half, but it fits alone
    assert len((await stage.frames())[0].requests) == 1


async def test_a_request_no_gateway_could_hold_is_refused_at_once(buses: tuple[Bus, Bus]) -> None:
    stage = Stage(*buses, max_claim_bytes=10_255)
    stage.client.max_payload = 5_000
    with pytest.raises(PayloadTooLarge, match=r"10256 bytes .* 10255 bytes \(--max-claim-bytes\)"):
        stage.call(target(columns=2500), columns=2500)
    assert not sum(stage.dispatcher.in_flight.values())
    await stage.dispatcher.drain(0)


async def test_parameters_too_large_cost_no_other_request_its_answer(stage: Stage) -> None:
    stage.client.max_payload = 10_000
    small = [stage.call(target()) for _ in range(2)]
    large = stage.call(target(), parameters={"text": "x" * 20_000})
    small.append(stage.call(target()))
    frames = await stage.frames(3)
    assert [request.id for frame in frames for request in frame.requests] == [call.number for call in small]
    assert large.reason == "payload_too_large"
    stage.answer(*(call.number for call in small))
    await eventually(lambda: all(call.reason == "ok" for call in small))
    assert stage.dispatcher.in_flight == {"m": 0}


async def test_what_does_not_fit_the_model_is_never_sent(stage: Stage) -> None:
    with pytest.raises(InvalidRequest, match="shape"):
        stage.call(target(), columns=3)
    with pytest.raises(InvalidRequest, match="batch of 9 rows"):
        stage.call(target(), rows=9)
    stage.call(target())
    assert len((await stage.frames())[0].requests) == 1


async def test_too_many_calls_are_refused(buses: tuple[Bus, Bus]) -> None:
    stage = Stage(*buses, max_in_flight=2)
    await stage.serve()
    calls = [stage.call(target()) for _ in range(2)]
    with pytest.raises(QueueFull) as caught:
        stage.call(target())
    assert caught.value.retry_after
    await stage.frames()
    stage.answer(calls[0].number)
    await eventually(lambda: calls[0].reason == "ok")
    stage.call(target())
    await stage.dispatcher.drain(0)


async def test_the_brokers_refusal_reaches_the_calls(stage: Stage) -> None:
    call = stage.call(target("unknown"))
    await eventually(lambda: call.reason)
    assert call.reason == "no_worker"
    await stage.worker.declare("m", QueueSpec(storage="memory", max_messages=0))
    calls = [stage.call(target()) for _ in range(2)]
    await eventually(lambda: all(call.reason == "queue_full" for call in calls))
    assert stage.outcomes == {"no_worker": 1, "queue_full": 2}
    assert stage.dispatcher.in_flight == {"unknown": 0, "m": 0}


async def test_a_lost_connection_reaches_the_calls(stage: Stage) -> None:
    await stage.client.close()
    call = stage.call(target())
    await eventually(lambda: call.reason)
    assert call.reason == "bus_unavailable"


async def test_the_workers_error_reaches_the_call(stage: Stage) -> None:
    call = stage.call(target())
    await stage.frames()
    stage.answer(call.number, error=WireError("model_failed", "model 'm': no", 2.5))
    await eventually(lambda: call.reason)
    (error,) = call.errors
    assert (error.reason, error.message, error.retry_after) == ("model_failed", "model 'm': no", 2.5)
    assert stage.outcomes == {"model_failed": 1}


async def test_only_the_first_answer_counts(stage: Stage) -> None:
    call = stage.call(target())
    await stage.frames()
    stage.answer(call.number, attempt=2)
    stage.answer(call.number, attempt=1)
    stage.answer(call.number, error=WireError("internal", "late"))
    stage.answer(987654)
    stage.worker.reply(stage.client.reply_to, b"garbage")
    await eventually(lambda: stage.dispatcher.dropped == 4)
    assert [response.attempt for response in call.answers] == [2]
    assert call.errors == []
    assert stage.outcomes == {"ok": 1}
    assert stage.dispatcher.in_flight == {"m": 0}


async def test_a_worker_that_cannot_read_is_named_in_the_log_and_does_not_flood_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    call = stage.call(target())
    await stage.frames()
    refusal = WireError("unsupported_version", "protocol version 1 is not supported; expected 2")
    for _ in range(100):
        frame = ResponseFrame(1, "worker-9", "", BatchInfo(), [], refusal)
        stage.worker.reply(stage.client.reply_to, encode(frame))
    await eventually(lambda: stage.dispatcher.dropped == 100)
    (line,) = caplog.messages
    assert "worker-9" in line
    assert "protocol version 1 is not supported" in line
    assert call.reason == "", "no request is named: another worker may have it"


async def test_an_answer_of_another_version_is_told_in_the_log(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.worker.reply(stage.client.reply_to, encode([2, "worker-9"]))  # type: ignore[arg-type]
    await eventually(lambda: stage.dispatcher.dropped == 1)
    assert "protocol version 2 is not supported" in caplog.text


async def test_a_call_ends_at_its_deadline(stage: Stage) -> None:
    call = stage.call(target(), timeout=0.02)
    (frame,) = await stage.frames()
    budget = frame.requests[0].deadline_us - frame.sent_us
    assert 0 < budget <= 20_000
    await eventually(lambda: call.reason)
    assert call.reason == "deadline_exceeded"
    stage.answer(call.number)
    await eventually(lambda: stage.dispatcher.dropped == 1)
    assert stage.outcomes == {"deadline_exceeded": 1}
    assert stage.dispatcher.in_flight == {"m": 0}


async def test_a_call_whose_deadline_has_passed_is_not_sent(stage: Stage) -> None:
    late, stays = stage.call(target(), timeout=1e-9), stage.call(target())
    (frame,) = await stage.frames()
    assert [request.id for request in frame.requests] == [stays.number]
    assert (late.reason, stays.reason) == ("deadline_exceeded", "")
    assert stage.outcomes == {"deadline_exceeded": 1}


async def test_calls_without_a_deadline_get_the_default(stage: Stage) -> None:
    stage.call(target())
    (frame,) = await stage.frames()
    assert 20e6 < frame.requests[0].deadline_us - frame.sent_us <= 30e6


async def test_an_abandoned_call_is_forgotten(stage: Stage) -> None:
    gone, stays = stage.call(target()), stage.call(target())
    stage.dispatcher.abandon(gone)  # in the very tick: it is not even sent
    (frame,) = await stage.frames()
    assert [request.id for request in frame.requests] == [stays.number]
    assert frame.in_flight == 1
    stage.dispatcher.abandon(stays)
    stage.dispatcher.abandon(stays)
    stage.answer(stays.number)
    await eventually(lambda: stage.dispatcher.dropped == 1)
    assert (gone.reason, stays.reason) == ("", "")
    assert stage.outcomes == {"cancelled": 2}
    assert stage.dispatcher.in_flight == {"m": 0}


async def test_a_tick_whose_calls_have_all_gone_sends_nothing(stage: Stage) -> None:
    stage.dispatcher.abandon(stage.call(target()))
    last = stage.call(target("n"))
    await eventually(lambda: last.reason == "no_worker")
    assert not stage.deliveries.items
    assert "m" not in stage.stats.frames


async def test_draining_refuses_and_waits(stage: Stage) -> None:
    call = stage.call(target())
    await stage.frames()
    draining = asyncio.create_task(stage.dispatcher.drain(20))
    await settled()
    with pytest.raises(ShuttingDown):
        stage.call(target())
    assert not draining.done()
    stage.answer(call.number)
    await draining
    assert call.reason == "ok"


async def test_draining_waits_for_a_call_made_right_after_another_left(stage: Stage) -> None:
    stage.dispatcher.abandon(stage.call(target()))
    call = stage.call(target())
    await stage.frames()
    draining = asyncio.create_task(stage.dispatcher.drain(20))
    await settled()
    assert not draining.done()
    stage.answer(call.number)
    await draining
    assert call.reason == "ok"


async def test_draining_fails_what_is_not_answered_in_time(stage: Stage) -> None:
    calls = [stage.call(target()) for _ in range(3)]
    await stage.frames()
    await stage.dispatcher.drain(0.01)
    assert [call.reason for call in calls] == ["shutting_down"] * 3
    assert all(call.errors[0].retry_after for call in calls)
    assert stage.dispatcher.in_flight == {"m": 0}


async def test_an_idle_dispatcher_drains_at_once(stage: Stage) -> None:
    await asyncio.wait_for(stage.dispatcher.drain(3600), 20)
