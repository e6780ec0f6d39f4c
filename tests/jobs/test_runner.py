"""Which jobs are begun when, and what becomes of one whose gateway dies at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from qinfer.bus import Bus, QueueSpec, connect
from qinfer.claims import Claims
from qinfer.errors import BusUnavailable, NoWorker, QInferError, Unavailable
from qinfer.jobs import (
    InferWork,
    JobLimits,
    JobOptions,
    JobRecord,
    JobState,
    JobStore,
    Submission,
    transitions,
)
from qinfer.jobs.data import JobData
from qinfer.jobs.lanes import Lane
from qinfer.jobs.stored import DataRef
from qinfer.lifecycle import cancelled
from qinfer.message import BatchInfo, Request, Response, ResponseFrame, Tensor
from qinfer.registry import ModelRecord, TensorRecord
from qinfer_gateway.admission import Flight
from qinfer_gateway.catalog import Target
from qinfer_gateway.jobs import attempt as attempts_module
from qinfer_gateway.jobs.attempt import Attempts
from qinfer_gateway.jobs.call import JobCall
from qinfer_gateway.jobs.lane import ModelJobs, Shared, new_shares
from qinfer_gateway.jobs.runner import JobRunner
from qinfer_gateway.jobs.stats import JobStats
from tests.helpers.waiting import eventually

RECORD = ModelRecord(
    name="m",
    version="1",
    backend="b",
    platform="p",
    max_batch_size=4,
    inputs=(TensorRecord("x", "UINT8", (-1,)),),
    outputs=(TensorRecord("y", "UINT8", (-1,)),),
    config=b"",
)


@dataclass
class Model:
    """Stands for catalog and dispatcher: what jobs ask, and what they are answered."""

    held: bool = False
    served: bool = True
    looks: int = 0
    asked: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    calls: list[JobCall] = field(default_factory=list)
    abandoned: list[bool] = field(default_factory=list)
    done: list[JobCall] = field(default_factory=list)
    errors: list[QInferError] = field(default_factory=list)
    flights: dict[str, Flight] = field(default_factory=lambda: {"m": Flight()})

    def find(self, model: str, version: str = "") -> Target:
        self.looks += 1
        if not self.served:
            raise NoWorker("nobody")
        return Target(version, RECORD, served=True, subject="")

    def submit(self, call: JobCall, target: Target, request: Request, *, timeout: float) -> None:
        self.asked.append(bytes(request.inputs[0].data))
        self.keys.append(request.idempotency)
        self.traces.append(request.traceparent)
        self.calls.append(call)
        flight = self.flights["m"]
        flight.count += 1
        call.answer.add_done_callback(lambda _: setattr(flight, "count", flight.count - 1))
        if not self.held:
            self.answer(call)

    def answer(self, call: JobCall) -> None:
        self.done.append(call)
        if self.errors:
            call.failed(self.errors.pop(0))
        else:
            response = Response(1, 1, None)
            call.answered(ResponseFrame(1, "w", "1", BatchInfo(), [response]), response)

    async def looked_at(self) -> None:
        """Wait until a runner has looked several times whether it may begin something."""
        before = self.looks
        await eventually(lambda: self.looks > before + 2, "several looks")

    def abandon(self, call: JobCall, *, private: bool = False) -> None:
        if call not in self.done:
            self.done.append(call)
            self.abandoned.append(private)


@pytest_asyncio.fixture
async def bus(namespace: str) -> AsyncIterator[Bus]:
    bus = connect("memory://runner", namespace=namespace)
    await bus.start()
    yield bus
    await bus.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "_PAUSE", 0.01)


@asynccontextmanager
async def running(bus: Bus, model: Model, *, limit: int = 8) -> AsyncIterator[JobRunner]:
    store = JobStore(bus, JobLimits())
    stats = JobStats()
    attempts = Attempts(store, model, model, Claims(bus, max_bytes=1 << 20), stats)  # type: ignore[arg-type]
    shared = Shared(bus, model, lambda: model.flights, attempts.work_on, limit, new_shares())  # type: ignore[arg-type]
    runner = JobRunner(store, attempts, shared, stats)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.close(0.0)


@pytest_asyncio.fixture
async def store(bus: Bus) -> JobStore:
    store = JobStore(bus, JobLimits())
    await store.declare()
    await bus.declare("m", QueueSpec())
    return store


async def submit(
    store: JobStore, text: bytes, *, rows: int = 1, priority: int = 0, **options: object
) -> JobRecord:
    request = Request(0, "", [Tensor("x", "UINT8", [rows, len(text)], text)])
    return await store.submit(
        Submission(
            model="m",
            work=InferWork(request),
            priority=priority,
            options=JobOptions(**options),  # type: ignore[arg-type]
        )
    )


async def test_jobs_are_begun_in_the_order_of_their_lanes(store: JobStore, bus: Bus) -> None:
    model = Model(served=False)
    for text, told in ((b"spare", {"spare": True}), (b"patient", {"priority": 2}), (b"normal", {})):
        await submit(store, text, **told)  # type: ignore[arg-type]
    await submit(store, b"urgent", priority=1)
    async with running(bus, model, limit=1) as runner:
        await eventually(lambda: runner._models and len(runner._models["m", ""]._held) == 4, "all are here")
        model.served = True
        await eventually(lambda: len(model.asked) == 4, "all ran")
    assert model.asked == [b"urgent", b"normal", b"patient", b"spare"]


async def test_no_more_than_two_batches_are_with_the_model(store: JobStore, bus: Bus) -> None:
    model = Model(held=True)
    for number in range(6):
        await submit(store, b"%d" % number, rows=3)
    async with running(bus, model) as runner:
        await eventually(lambda: len(model.calls) == 2, "two jobs of three rows")
        share = runner._shared.shares["m"]
        assert (share.jobs, share.rows) == (2, 6)
        model.answer(model.calls[0])
        await eventually(lambda: len(model.calls) == 3, "the next")
        assert share.rows == 6
        await submit(store, b"urgent and small", rows=2, priority=1)
        await eventually(lambda: b"urgent and small" in model.asked, "it fits")
        assert share.rows == 8


async def test_jobs_step_back_when_others_wait_for_the_model(store: JobStore, bus: Bus) -> None:
    model = Model(held=True)
    flight = model.flights["m"]
    flight.backlog = 50  # as a worker told
    for number in range(4):
        await submit(store, b"%d" % number)
    await submit(store, b"spare", spare=True)
    async with running(bus, model):
        for done in range(4):
            await eventually(lambda done=done: len(model.calls) == done + 1, "one at a time")
            assert flight.count == 1
            model.answer(model.calls[-1])
        await model.looked_at()
        assert b"spare" not in model.asked
        flight.backlog = 0
        await eventually(lambda: b"spare" in model.asked, "nobody waits any more")


async def test_spare_jobs_wait_while_the_model_is_asked_through_other_gateways(
    store: JobStore, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = 3

    async def count(_model: str, _version: str) -> int:
        return queued

    model = Model()
    await submit(store, b"spare", spare=True)
    monkeypatch.setattr(bus, "queued", count)
    async with running(bus, model) as runner:
        await eventually(lambda: runner._models and runner._models["m", ""]._held, "it is here")
        await model.looked_at()
        assert not model.asked
        queued = 0
        await eventually(lambda: model.asked, "it ran")


async def test_the_trace_of_the_submission_goes_on(store: JobStore, bus: Bus) -> None:
    model = Model()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = Request(0, "", [Tensor("x", "UINT8", [1, 1], b"x")], traceparent=trace)
    record = await store.submit(Submission(model="m", work=InferWork(request)))
    async with running(bus, model):
        await store.wait(record.id, 20)
    assert model.traces == [trace]


async def test_a_limited_number_is_held_here(store: JobStore, bus: Bus) -> None:
    model = Model(held=True)
    for number in range(40):
        await submit(store, b"%d" % number)
    async with running(bus, model, limit=2) as runner:
        await eventually(lambda: len(model.calls) == 2, "two run")
        jobs = runner._models["m", ""]
        await eventually(lambda: len(jobs._held) == 2, "two wait")
        assert (await bus.backlog("/jobs", _lane(Lane.NORMAL))).waiting == 36


def _lane(lane: Lane) -> str:
    from qinfer.jobs.lanes import lane_number

    return lane_number("m", "", lane)


async def test_errors_that_pass_are_no_attempts(store: JobStore, bus: Bus) -> None:
    model = Model(errors=[BusUnavailable("away"), NoWorker("gone")])
    record = await submit(store, b"x", max_attempts=1)
    async with running(bus, model):
        ended = await store.wait(record.id, 20)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
    assert len(model.asked) == 3
    assert len(set(model.keys)) == 1  # one execution, however often it is asked for


class Death:
    """The end of a gateway's process at one of the steps of a job: nothing comes of it any more.

    Args:
        step: the name of the step.
        before: it is not taken; else the process dies right behind it.
    """

    def __init__(self, step: str, *, before: bool) -> None:
        self.step = step
        self.before = before
        self.came = False
        self._changes = 0

    def lie_in_wait(self, store: JobStore, patch: pytest.MonkeyPatch) -> None:
        for owner, name in (
            (store, "change"),
            (store, "work"),
            (store, "announce"),
            (store.data, "put"),
            (store.data, "remove"),
        ):
            patch.setattr(owner, name, self._deadly(name, getattr(owner, name)))

    def _deadly(
        self, name: str, original: Callable[..., Awaitable[object]]
    ) -> Callable[..., Awaitable[object]]:
        async def step(*arguments: object, **told: object) -> object:
            if not self._is_it(name):
                return await original(*arguments, **told)
            self.came = True
            if not self.before:
                await original(*arguments, **told)
            return await asyncio.get_running_loop().create_future()

        return step

    def _is_it(self, name: str) -> bool:
        if name != "change":
            return name == self.step
        self._changes += 1
        return self.step == {1: "begin", 2: "succeed"}.get(self._changes)


async def dead(runner: JobRunner, patch: pytest.MonkeyPatch) -> None:
    """Its leases are not renewed any more, and it takes no jobs."""
    for jobs in runner._models.values():
        patch.setattr(jobs, "alive", lambda: None)
        assert jobs._pump is not None
        await cancelled(jobs._pump)
        for consumer in jobs._consumers.values():
            await consumer.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", ["begin", "work", "put", "succeed", "remove", "announce"])
async def test_another_gateway_goes_on_where_one_died(
    namespace: str, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    monkeypatch.setattr("qinfer.jobs.lanes.ACK_WAIT", 0.2)
    monkeypatch.setattr("qinfer_gateway.jobs.runner.BEAT", 0.05)
    bus = connect("memory://runner", namespace=namespace)
    await bus.start()
    store = JobStore(bus, JobLimits())
    await store.declare()
    model, death = Model(), Death(step, before=before)
    async with running(bus, model) as first:
        death.lie_in_wait(first._store, monkeypatch)
        record = await submit(store, b"x", webhook="http://h/")
        await eventually(lambda: death.came, f"the gateway dies at {step!r}")
        await dead(first, monkeypatch)
        async with running(bus, model):
            ended = await store.wait(record.id, 20)
            assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
            assert len(set(model.keys)) == 1
            assert await store.result(record.id) is not None
            await eventually(lambda: _queued(bus, "/webhooks"), "its webhook is to be told")
            await eventually(lambda: not _queued_lane(bus), "it is done with")
    await bus.close()


async def test_another_gateway_waits_for_the_answer_that_one_asked_for(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.jobs.lanes.ACK_WAIT", 0.2)
    bus = connect("memory://runner", namespace=namespace)
    await bus.start()
    store = JobStore(bus, JobLimits())
    await store.declare()
    model = Model(held=True)
    async with running(bus, model) as first:
        record = await submit(store, b"x")
        await eventually(lambda: model.calls, "it is asked")
        await dead(first, monkeypatch)
        async with running(bus, model):
            await eventually(lambda: len(model.calls) == 2, "it is asked again")
            model.answer(model.calls[1])
            assert (await store.wait(record.id, 20)).attempts == 1
    assert len(set(model.keys)) == 1
    await bus.close()


def _queued(bus: Bus, name: str) -> int:
    queue = bus._connection.queues[name]  # type: ignore[attr-defined]
    return int(queue.count(""))


async def test_a_runner_that_stops_gives_its_jobs_back(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.jobs.lanes.ACK_WAIT", 1000.0)  # nothing comes back by itself
    bus = connect("memory://runner", namespace=namespace)
    await bus.start()
    store = JobStore(bus, JobLimits())
    await store.declare()
    model = Model(held=True)
    records = [await submit(store, b"%d" % number) for number in range(12)]
    async with running(bus, model):
        await eventually(lambda: len(model.calls) == 8, "some run")
    assert model.abandoned == [False] * 8  # their answers are kept for who goes on
    model.held = False
    async with running(bus, model):
        for record in records:
            assert (await store.wait(record.id, 20)).state is JobState.SUCCEEDED
    assert len(model.keys) == 20
    assert len(set(model.keys)) == 12
    await bus.close()


async def test_leases_are_renewed_whatever_the_broker_takes_to_tell_of_the_queue(
    store: JobStore, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer_gateway.jobs.runner.BEAT", 0.02)
    looks, renewed = 0, 0

    async def backlog(*_: str) -> None:
        nonlocal looks
        looks += 1
        await asyncio.Event().wait()

    def alive(_: ModelJobs) -> None:
        nonlocal renewed
        renewed += 1

    model = Model(held=True)
    await submit(store, b"x")
    async with running(bus, model):
        await eventually(lambda: model.calls, "it runs")
        monkeypatch.setattr(bus, "backlog", backlog)
        monkeypatch.setattr(ModelJobs, "alive", alive)
        await eventually(lambda: looks == 1, "it looks how many jobs wait")
        before = renewed
        await eventually(lambda: renewed > before + 3, "leases are renewed")
        assert looks == 1


async def test_nothing_is_left_of_a_job_that_is_forgotten_as_its_result_is_stored(
    store: JobStore, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = JobData.put

    async def put_and_forget(self: JobData, ref: DataRef, data: bytes, *, lifetime: float) -> None:
        await put(self, ref, data, lifetime=lifetime)
        await store.forget(record.id)

    record = await submit(store, b"x")
    monkeypatch.setattr(JobData, "put", put_and_forget)
    model = Model(held=True)
    async with running(bus, model):
        await eventually(lambda: model.calls, "it runs")
        model.answer(model.calls[0])
        await eventually(lambda: not _queued_lane(bus), "it is done with")
    assert await store.data.table.keys(record.id) == []
    assert await store.data.table.size() == 0


async def test_a_job_that_was_begun_elsewhere_did_not_wait_too_long(store: JobStore, bus: Bus) -> None:
    """That there is no room for it here does not undo that it was begun in time, and may run there still."""
    record = await submit(store, b"x", max_queue_time=3600.0)
    await store.change(record.id, lambda job: transitions.begun(job, store.now_us()))
    late = JobStore(bus, JobLimits(), clock=lambda: store.now_us() + 4_000_000_000)
    model = Model(errors=[Unavailable("another process is at it")])
    attempts = Attempts(late, model, model, Claims(bus, max_bytes=1 << 20), JobStats())  # type: ignore[arg-type]
    assert await attempts.work_on(record.id, lambda: None) is not None
    assert await attempts.work_on(record.id, lambda: None) is None
    assert (await store.get(record.id)).state is JobState.SUCCEEDED


async def test_a_cancelled_job_is_abandoned_for_good(store: JobStore, bus: Bus) -> None:
    model = Model(held=True)
    record = await submit(store, b"x")
    async with running(bus, model):
        await eventually(lambda: model.calls, "it runs")
        await store.cancel(record.id)
        await eventually(lambda: model.abandoned == [True], "the workers are told")
        await eventually(lambda: not _queued_lane(bus), "it is done with")
    assert (await store.get(record.id)).state is JobState.CANCELLED


def _queued_lane(bus: Bus) -> int:
    queue = bus._connection.queues["/jobs"]  # type: ignore[attr-defined]
    return int(queue.count(_lane(Lane.NORMAL)))


async def test_a_fault_of_ours_fails_the_job_and_nothing_else(store: JobStore, bus: Bus) -> None:
    model = Model()
    original = model.find
    broken = True

    def find(name: str, version: str = "") -> Target:
        if broken and model.asked == []:
            import inspect

            if any(frame.function == "_ask" for frame in inspect.stack()):
                raise ZeroDivisionError
        return original(name, version)

    model.find = find  # type: ignore[method-assign]
    record = await submit(store, b"x", max_attempts=2)
    async with running(bus, model):
        ended = await store.wait(record.id, 20)
        assert ended.error is not None
        assert (ended.state, ended.attempts, ended.error.reason) == (JobState.FAILED, 2, "internal")
        broken = False
        good = await submit(store, b"y")
        assert (await store.wait(good.id, 20)).state is JobState.SUCCEEDED
