"""One model on the memory bus, computed by stub instances in real instance threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import QueueSpec, connect
from qinfer.bus.memory import MemoryBus
from qinfer.bus.memory.queue import MemoryDelivery
from qinfer.errors import BusUnavailable, InvalidRequest
from qinfer.message import (
    Request,
    RequestFrame,
    Response,
    Tensor,
    decode_response_frame,
    encode,
)
from qinfer.repository import ModelConfig
from qinfer.signature import Signature
from qinfer.telemetry.stats import ModelStats
from qinfer_workers.backends.base import OutputsWithParameters
from qinfer_workers.execution import Executor
from qinfer_workers.instance import Completion, InstanceThread
from qinfer_workers.record import BatchRecorder
from qinfer_workers.served import ServedVersion
from qinfer_workers.service import ModelService
from tests.helpers.waiting import Mailbox, eventually
from tests.workers.support import StubInstance, config_of, double, request_of

Run = Callable[[Any], Any]
PATIENT = QueueSpec(storage="memory", ack_wait=30.0)


class Stage:
    """A worker's and a client's connection to one broker in memory."""

    def __init__(self, namespace: str) -> None:
        self._connect = partial(connect, "memory://service", namespace=namespace)
        self.client, self.worker = self._bus(), self._bus()
        self.replies = Mailbox()
        self.stack = AsyncExitStack()
        self.stubs: dict[str, StubInstance] = {}

    def _bus(self) -> MemoryBus:
        bus = self._connect()
        assert isinstance(bus, MemoryBus)
        return bus

    async def start(self) -> None:
        for bus in (self.client, self.worker):
            await bus.start()
            self.stack.push_async_callback(bus.close)
        self.client.on_reply(lambda data: self.replies(decode_response_frame(data)))

    async def serve(
        self,
        runs: Run | Mapping[str, Run] = double,
        *,
        spec: QueueSpec = PATIENT,
        bus: MemoryBus | None = None,
        config: ModelConfig | None = None,
    ) -> ModelService:
        """Serve the versions of `runs`, or version 1, and drain at the end of the test."""
        config = config or config_of()
        service: ModelService | None = None

        def completed(version: str, completion: Completion) -> None:
            assert service is not None
            service.completed(service.versions[version], completion)

        served = []
        for version, run in (runs if isinstance(runs, Mapping) else {"1": runs}).items():
            stub = self.stubs[version] = StubInstance(run)
            thread = InstanceThread("stub", partial(Executor, config, stub), partial(completed, version))
            await thread.start()
            self.stack.push_async_callback(thread.close, 20)
            served.append(
                ServedVersion(
                    version=version,
                    config=config,
                    instances=[thread],
                    recorder=BatchRecorder(ModelStats("stub", version)),
                    signature=Signature(config.inputs, config.outputs, config.max_batch_size),
                )
            )
        service = ModelService(bus or self.worker, "worker-1", "stub", served)
        await service.start(spec)
        self.stack.push_async_callback(service.drain, 5)
        return service

    def send(self, *requests: Request, version: str = "", subject: str | None = None, **frame: Any) -> None:
        """Publish a frame; it goes to its version's subject unless another is given."""
        fields = {"sent_us": time.time_ns() // 1000, "in_flight": 0, **frame}
        data = encode(
            RequestFrame(1, self.client.reply_to, "stub", version, requests=list(requests), **fields)
        )
        self.send_bytes(data, version if subject is None else subject)

    def send_bytes(self, data: bytes, version: str = "") -> None:
        self.client.publish("stub", version, data, _refused)

    async def responses(self, count: int) -> dict[int, Response]:
        """The next `count` responses by request number."""
        found: dict[int, Response] = {}
        while len(found) < count:
            (frame,) = await self.replies.take()
            assert frame.error is None
            for response in frame.responses:
                assert response.id not in found
                found[response.id] = response
        return found

    @property
    def queued(self) -> int:
        """Frames at the broker that are not acked."""
        broker = self.worker._broker
        return broker.queues["stub"]._messages if broker is not None else 0


def _refused(error: Exception) -> None:
    raise AssertionError(error)


@pytest_asyncio.fixture
async def stage(namespace: str) -> AsyncIterator[Stage]:
    stage = Stage(namespace)
    await stage.start()
    yield stage
    await stage.stack.aclose()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds batches up until it is set; it is set at the end of the test in any case."""
    event = threading.Event()
    yield event
    event.set()


def held_by(gate: threading.Event, run: Run = double) -> Run:
    def wait(batch: Any) -> Any:
        assert gate.wait(20)
        return run(batch)

    return wait


def reason_of(response: Response) -> str:
    return response.error.reason if response.error is not None else ""


async def test_requests_are_answered_and_their_frame_is_acked(stage: Stage) -> None:
    await stage.serve()
    stage.send(request_of(1), request_of(2, rows=3))
    (frame,) = await stage.replies.take()
    assert (frame.worker, frame.model_version, frame.version) == ("worker-1", "1", 1)
    assert (frame.batch.rows, frame.batch.requests) == (4, 2)
    assert frame.batch.compute_infer_ns > 0
    first, second = frame.responses
    assert (first.id, first.attempt, first.flags, second.id) == (1, 1, 1, 2)
    assert second.outputs[0].numpy().tolist() == [[4, 4]] * 3
    await eventually(lambda: stage.queued == 0)


async def test_a_frame_is_acked_only_after_its_replies_are_published(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    publish, ack = stage.worker.reply, MemoryDelivery.ack
    monkeypatch.setattr(stage.worker, "reply", lambda *args: (order.append("reply"), publish(*args)))
    monkeypatch.setattr(MemoryDelivery, "ack", lambda self: (order.append("ack"), ack(self)))
    await stage.serve()
    stage.send(request_of(1), Request(2, "", []), request_of(3))
    assert set(await stage.responses(3)) == {1, 2, 3}
    await eventually(lambda: "ack" in order)
    assert order == ["reply", "reply", "ack"]  # the refusal, the batch, and only then the frame


async def test_senders_of_one_batch_are_answered_apart(stage: Stage, gate: threading.Event) -> None:
    other = stage._bus()
    await other.start()
    stage.stack.push_async_callback(other.close)
    theirs = Mailbox()
    other.on_reply(lambda data: theirs(decode_response_frame(data)))
    service = await stage.serve(held_by(gate))
    stage.send(request_of(1))
    await eventually(lambda: stage.stubs["1"].executed)
    stage.send(request_of(2))
    frame = RequestFrame(1, other.reply_to, "stub", "", 0, 0, [request_of(2)])
    other.publish("stub", "", encode(frame), _refused)
    await eventually(lambda: service.versions["1"].batcher.waiting == 2)  # type: ignore[union-attr]
    gate.set()
    assert set(await stage.responses(2)) == {1, 2}
    (reply,) = await theirs.take()
    assert [response.id for response in reply.responses] == [2]
    assert (reply.batch.requests, stage.stubs["1"].executed) == (2, [[1], [2, 2]])


async def test_a_reply_that_cannot_be_sent_has_the_frame_delivered_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = stage.worker.reply
    failures = iter([True, True])

    def unreliable(reply_to: str, frame: bytes) -> None:
        if next(failures, False):
            raise BusUnavailable("the line is cut")
        publish(reply_to, frame)

    monkeypatch.setattr(stage.worker, "reply", unreliable)
    await stage.serve()
    stage.send(request_of(1))
    assert (await stage.responses(1))[1].attempt == 3
    assert stage.stubs["1"].executed == [[1], [1], [1]]
    await eventually(lambda: stage.queued == 0)


async def test_a_refusal_that_cannot_be_sent_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = stage.worker.reply
    failures = iter([True])

    def unreliable(reply_to: str, frame: bytes) -> None:
        if next(failures, False):
            raise BusUnavailable("the line is cut")
        publish(reply_to, frame)

    monkeypatch.setattr(stage.worker, "reply", unreliable)
    await stage.serve()
    stage.send(Request(1, "", []))
    response = (await stage.responses(1))[1]
    assert (reason_of(response), response.attempt) == ("invalid_request", 2)


async def test_what_cannot_be_read_is_answered_if_possible_and_dropped(stage: Stage) -> None:
    await stage.serve()
    stage.send_bytes(b"garbage")
    stage.send_bytes(encode([1, stage.client.reply_to, "stub"]))  # type: ignore[arg-type]
    stage.send_bytes(encode([2, stage.client.reply_to, {}]))  # type: ignore[arg-type]
    first, second = await stage.replies.take(2)
    assert (first.responses, second.responses) == ([], [])
    assert [frame.error.reason for frame in (first, second)] == ["malformed_message", "unsupported_version"]
    await eventually(lambda: stage.queued == 0)


async def test_a_frame_that_cannot_be_answered_is_not_run(stage: Stage) -> None:
    await stage.serve()
    data = encode(RequestFrame(1, "qinfer.default.infer.stub.latest", "stub", "", 0, 0, [request_of(1)]))
    stage.send_bytes(data)
    await eventually(lambda: stage.queued == 0)
    stage.send(request_of(2))
    assert set(await stage.responses(1)) == {2}
    assert stage.stubs["1"].executed == [[2]]


@pytest.mark.parametrize("what", ["garbage", "no requests", "refused"])
async def test_frames_that_run_nothing_use_up_no_credit(stage: Stage, what: str) -> None:
    await stage.serve()
    for _ in range(200):  # many times the credit
        if what == "garbage":
            stage.send_bytes(b"\xc1")
        elif what == "no requests":
            stage.send()
        else:
            stage.send(Request(9, "", []))
    stage.send(request_of(1))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    await eventually(lambda: stage.queued == 0)


async def test_versions_are_told_apart(stage: Stage) -> None:
    await stage.serve({"2": double, "10": lambda batch: {"y": -batch.inputs["x"]}})
    stage.send(request_of(1))
    stage.send(request_of(2), version="2")
    stage.send(request_of(3), version="10")
    stage.send(request_of(4), version="2", subject="")
    stage.send(request_of(5), version="7", subject="")
    got = await stage.responses(5)
    values = {number: r.outputs[0].numpy()[0, 0] for number, r in got.items() if r.error is None}
    assert values == {1: -1.0, 2: 4.0, 3: -3.0, 4: 8.0}  # 10 is newer than 2
    assert reason_of(got[5]) == "model_not_found"


async def test_requests_that_do_not_fit_are_refused_and_their_mates_are_run(stage: Stage) -> None:
    service = await stage.serve()
    wrong = Request(2, "", [Tensor.from_numpy("x", np.zeros((1, 3), np.float32))])
    short = Request(3, "", [Tensor("x", "FP32", [1, 2], b"1234")])
    scalar = Request(4, "", [Tensor("x", "FP32", [], b"1234")])
    stage.send(request_of(1), wrong, short, scalar, request_of(5, rows=9), request_of(6))
    got = await stage.responses(6)
    assert {number for number, response in got.items() if reason_of(response) == "invalid_request"} == {
        2,
        3,
        4,
        5,
    }
    assert stage.stubs["1"].executed == [[1, 6]]
    assert service.versions["1"].recorder.stats.failed == {"invalid_request": 4}
    await eventually(lambda: stage.queued == 0)


async def test_a_passed_deadline_never_reaches_the_model(stage: Stage) -> None:
    await stage.serve()
    now = time.time_ns() // 1000
    stage.send(request_of(1, deadline_us=now - 1), request_of(2, deadline_us=now + 10**8), sent_us=now)
    got = await stage.responses(2)
    assert {number: reason_of(response) for number, response in got.items()} == {
        1: "deadline_exceeded",
        2: "",
    }
    assert stage.stubs["1"].executed == [[2]]
    await eventually(lambda: stage.queued == 0)


async def test_what_expired_before_the_worker_came_never_reaches_the_model(stage: Stage) -> None:
    """All this worker finds in the queue is old: nothing else tells it what new is."""
    await stage.worker.declare("stub", PATIENT)
    sent = time.time_ns() // 1000
    due = sent + 20_000
    stage.send(request_of(1, deadline_us=due), request_of(2, deadline_us=sent + 10**8), sent_us=sent)
    await eventually(lambda: time.time_ns() // 1000 > due + 5_000)
    await stage.serve()
    got = await stage.responses(2)
    assert reason_of(got[1]) == "deadline_exceeded"
    assert stage.stubs["1"].executed == [[2]]


async def test_a_broker_that_does_not_tell_its_time_is_put_up_with(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(model: str) -> int:
        raise BusUnavailable(f"no answer about {model}")

    monkeypatch.setattr(stage.worker, "clock_us", silent)
    await stage.serve()
    stage.send(request_of(1))
    assert reason_of((await stage.responses(1))[1]) == ""
    assert "no answer about stub" in caplog.text


async def test_the_senders_clock_does_not_matter(stage: Stage) -> None:
    """A budget is a difference of two times of the sender's: a clock years off changes nothing."""
    await stage.serve()
    for number, clock in ((1, 0), (2, 1), (3, 4 * 10**15)):
        stage.send(request_of(number, deadline_us=clock + 10**8), sent_us=clock)
        assert reason_of((await stage.responses(1))[number]) == ""


async def test_a_batch_is_not_held_open_for_company_that_cannot_come(stage: Stage) -> None:
    service = await stage.serve(config=config_of(delay_us=3_600_000_000))
    stage.send(request_of(1), in_flight=2)
    stage.send(request_of(2), in_flight=2)
    assert set(await stage.responses(2)) == {1, 2}
    assert service.versions["1"].recorder.stats.closed == {"alone": 1}


async def test_a_response_that_is_too_large_does_not_cost_its_mates_theirs(stage: Stage) -> None:
    """Its parameters are: tensors go through the store."""
    stage.worker.max_payload = 4096

    def large(batch: Any) -> Any:
        return [
            OutputsWithParameters(
                {"y": np.zeros((1, 100), np.float64)},
                parameters={"text": "x" * 8000} if member.request.id == 3 else {},
            )
            for member in batch.members
        ]

    await stage.serve(large, config=config_of(outputs={"y": "FP64"}))
    stage.send(*(request_of(number) for number in range(1, 9)))
    got = await stage.responses(8)
    assert {number for number, response in got.items() if response.error is None} == {1, 2, 4, 5, 6, 7, 8}
    assert reason_of(got[3]) == "payload_too_large"
    assert got[3].error is not None
    assert "4096" in got[3].error.message
    assert stage.stubs["1"].executed == [list(range(1, 9))]
    await eventually(lambda: stage.queued == 0)


async def test_a_response_without_wire_form_does_not_cost_its_mates_theirs(stage: Stage) -> None:
    odd = {1: object(), 2: 2**70, 3: "\ud800", 4: "fine"}

    def run(batch: Any) -> Any:
        return [
            OutputsWithParameters({"y": m.inputs["x"]}, parameters={"odd": odd[m.request.id]})  # type: ignore[dict-item]
            for m in batch.members
        ]

    await stage.serve(run)
    stage.send(*(request_of(number) for number in odd))
    got = await stage.responses(4)
    assert {number: reason_of(r) for number, r in got.items()} == {
        1: "model_failed", 2: "model_failed", 3: "model_failed", 4: "",
    }  # fmt: skip
    assert got[4].parameters == {"odd": "fine"}
    await eventually(lambda: stage.queued == 0)


async def test_a_failing_request_does_not_cost_its_mates_their_answers(stage: Stage) -> None:
    def run(batch: Any) -> Any:
        if any(member.request.id == 2 for member in batch.members):
            raise InvalidRequest("not two")
        return double(batch)

    await stage.serve(run)
    stage.send(*(request_of(number) for number in (1, 2, 3)))
    got = await stage.responses(3)
    assert {number: reason_of(response) for number, response in got.items()} == {
        1: "",
        2: "invalid_request",
        3: "",
    }


async def test_drain_finishes_what_is_held(stage: Stage, gate: threading.Event) -> None:
    service = await stage.serve(held_by(gate), config=config_of(max_batch_size=1))
    for number in (1, 2, 3):
        stage.send(request_of(number))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    await eventually(lambda: service.versions["1"].batcher.waiting == 2)  # type: ignore[union-attr]
    draining = asyncio.create_task(service.drain(20))
    await asyncio.sleep(0)
    gate.set()
    assert set(await stage.responses(3)) == {1, 2, 3}
    await draining
    assert stage.queued == 0


async def test_drain_gives_back_what_does_not_finish(stage: Stage, gate: threading.Event) -> None:
    service = await stage.serve(held_by(gate))
    stage.send(request_of(1))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    stage.send(request_of(2))
    await service.drain(0.01)
    stuck = stage.stubs["1"]
    second = stage._bus()
    await second.start()
    stage.stack.push_async_callback(second.close)
    await stage.serve(bus=second)
    got = await stage.responses(2)
    assert (got[1].attempt, got[2].attempt) in ((2, 1), (2, 2))
    await eventually(lambda: stage.queued == 0)
    gate.set()  # the late answer is sent, but ends nothing that others hold
    assert (await stage.responses(1))[1].attempt == 1
    assert stuck.executed == [[1]]


async def test_nothing_is_pulled_after_a_drain(stage: Stage) -> None:
    service = await stage.serve()
    await service.drain(5)
    stage.send(request_of(1))
    await asyncio.sleep(0)
    assert stage.queued == 1
    assert stage.stubs["1"].executed == []
    await service.drain(5)


async def test_a_long_batch_is_not_delivered_to_another_worker(
    stage: Stage, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs: list[MemoryDelivery] = []
    in_progress = MemoryDelivery.in_progress
    monkeypatch.setattr(MemoryDelivery, "in_progress", lambda self: (signs.append(self), in_progress(self)))
    await stage.serve(held_by(gate), spec=QueueSpec(storage="memory", ack_wait=0.3))
    stage.send(request_of(1))
    await eventually(lambda: len(signs) >= 6)  # the delivery's own, then one each third of the ack wait
    gate.set()
    assert (await stage.responses(1))[1].attempt == 1
    assert stage.stubs["1"].executed == [[1]]


async def test_a_redelivered_request_is_answered_with_its_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ack that is lost: the request runs again and the sender can tell the answers apart."""
    acks = iter([True])
    ack = MemoryDelivery.ack
    monkeypatch.setattr(MemoryDelivery, "ack", lambda self: None if next(acks, False) else ack(self))
    await stage.serve(spec=QueueSpec(storage="memory", ack_wait=0.2))
    stage.send(request_of(1, attempt=4))
    assert (await stage.responses(1))[1].attempt == 5
    assert (await stage.responses(1))[1].attempt == 6
    await eventually(lambda: stage.queued == 0)
