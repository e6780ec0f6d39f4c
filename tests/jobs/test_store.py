"""Jobs at the broker, on every bus that has tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import Bus, connect
from qinfer.errors import (
    InternalError,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    KeyReused,
    ModelFailed,
    NoWorker,
    QueueFull,
)
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
from qinfer.jobs.lanes import JOB_QUEUE, Lane, lane_number, lane_of
from qinfer.jobs.stored import DataRef
from qinfer.message import BatchInfo, Request, Response, ResponseFrame, Tensor, encode
from tests.helpers.system import _forget as forget
from tests.helpers.waiting import Mailbox, eventually

LIMITS = JobLimits(max_jobs=1000, max_bytes=64 << 20)


@pytest_asyncio.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest, nats_url: str, namespace: str) -> AsyncIterator[Bus]:
    url = "memory://jobs" if request.param == "memory" else nats_url
    bus = connect(url, namespace=namespace)
    await bus.start()
    yield bus
    await bus.close()
    await forget(nats_url, namespace)


@pytest_asyncio.fixture
async def store(bus: Bus) -> JobStore:
    store = JobStore(bus, LIMITS)
    await store.declare()
    return store


def work(*values: float) -> InferWork:
    tensor = Tensor.from_numpy("x", np.array([values], np.float32))
    return InferWork(Request(0, "mine", [tensor], parameters={"p": 1}))


def submission(*values: float, model: str = "m", **told: object) -> Submission:
    return Submission(model=model, work=work(*(values or (1.0,))), **told)  # type: ignore[arg-type]


async def end(store: JobStore, record: JobRecord, *, data: bytes = b"") -> None:
    """What a runner does with a job that is answered."""
    frame = encode(ResponseFrame(1, "w", "3", BatchInfo(), [Response(1, 1, None)]))
    ref = store.data.place(record.id, "out", len(frame))
    await store.data.put(ref, data or frame, lifetime=60)
    await store.change(record.id, lambda job: transitions.begun(job, store.now_us()))
    await store.change(record.id, lambda job: transitions.succeeded(job, ref, store.now_us()))


async def fail(store: JobStore, record: JobRecord) -> None:
    error = ModelFailed("no luck")
    await store.change(record.id, lambda job: transitions.failed(job, error, store.now_us()))


async def test_a_job_is_stored_and_queued(store: JobStore, bus: Bus) -> None:
    record = await store.submit(submission(1, 2, version="3", owner="me", priority=1))
    assert (record.state, record.model, record.version, record.owner) == (JobState.QUEUED, "m", "3", "me")
    assert record.created_us > 1_600_000_000_000_000
    assert await store.get(record.id) == record
    inbox = Mailbox()
    consumer = await bus.consume(JOB_QUEUE, lane_number("m", "3", Lane.URGENT), inbox)
    consumer.grant(5)
    (delivery,) = await inbox.take()
    assert delivery.payload == f"{record.id} 1".encode()
    job, _ = await store.read(record.id)
    assert await store.work(job) == work(1, 2)
    notes = Mailbox()
    await store.table.watch("lane.*", notes)
    assert [key for key, _ in notes.items] == [f"lane.{lane_number('m', '3', Lane.URGENT)}"]


async def test_large_requests_and_results_are_cut_into_pieces(store: JobStore) -> None:
    values = np.arange(400_000, dtype=np.float32)
    large = InferWork(Request(0, "", [Tensor.from_numpy("x", values.reshape(1, -1))]))
    record = await store.submit(Submission(model="m", work=large))
    job, _ = await store.read(record.id)
    assert job.request is not None
    assert job.request.chunks > 1
    assert await store.work(job) == large
    await store.forget(record.id)
    assert (
        await store.data.table.keys(record.id) == []
        or await store.data.table.get(f"{job.request.name}.0") is None
    )


@pytest.mark.parametrize(
    ("priority", "default", "spare", "lane"),
    [
        (0, 0, False, Lane.NORMAL),
        (1, 0, False, Lane.URGENT),
        (2, 0, False, Lane.PATIENT),
        (0, 5, False, Lane.NORMAL),
        (5, 5, False, Lane.NORMAL),
        (4, 5, False, Lane.URGENT),
        (6, 5, False, Lane.PATIENT),
        (1, 5, True, Lane.SPARE),
    ],
)
def test_lanes(priority: int, default: int, spare: bool, lane: Lane) -> None:
    assert lane_of(priority, default, spare=spare) is lane


def test_lanes_of_models_are_numbers_of_their_own() -> None:
    numbers = {lane_number(*key, lane) for key in (("a", ""), ("a", "1"), ("ä/…", "")) for lane in Lane}
    assert len(numbers) == 12
    assert all(0 < int(number) < 1 << 63 for number in numbers)


async def test_owners_see_their_own(store: JobStore) -> None:
    mine = await store.submit(submission(owner="me"))
    theirs = await store.submit(submission(owner="them"))
    assert [record.id for record in (await store.list(owner="me")).jobs] == [mine.id]
    assert {record.id for record in (await store.list()).jobs} == {mine.id, theirs.id}
    with pytest.raises(JobNotFound):
        await store.get(theirs.id, owner="me")
    with pytest.raises(JobNotFound):
        await store.result(theirs.id, owner="me")
    for act in (store.cancel, store.retry, store.forget):
        with pytest.raises(JobNotFound):
            await act(theirs.id, owner="me")
    with pytest.raises(JobNotFound):
        await store.wait(theirs.id, 1, owner="me")
    assert (await store.get(theirs.id)).state is JobState.QUEUED


@pytest.mark.parametrize("job_id", ["", "x", "../../etc", "0" * 32, "*", ">", "0" * 31 + ".", "é" * 32])
async def test_ids_that_are_none(store: JobStore, job_id: str) -> None:
    for act in (store.get, store.result, store.cancel, store.retry, store.forget):
        with pytest.raises(JobNotFound):
            await act(job_id)  # type: ignore[operator]
    with pytest.raises(JobNotFound):
        await store.wait(job_id, 1)
    with pytest.raises(JobNotFound):
        [record async for record in store.follow(job_id)]


async def test_pages(store: JobStore) -> None:
    records = [
        await store.submit(submission(model="m" if number % 2 else "n", owner=str(number % 3)))
        for number in range(7)
    ]
    newest = [record.id for record in sorted(records, key=lambda record: record.id, reverse=True)]
    seen: list[str] = []
    page = await store.list(limit=3)
    while page.next:
        assert len(page.jobs) == 3
        seen += [record.id for record in page.jobs]
        page = await store.list(limit=3, after=page.next)
    assert [*seen, *(record.id for record in page.jobs)] == newest
    chosen = await store.list(model="m", owner="1")
    assert {record.id for record in chosen.jobs} == {records[1].id}
    await store.cancel(records[2].id)
    cancelled = await store.list(state=JobState.CANCELLED)
    assert [record.id for record in cancelled.jobs] == [records[2].id]
    assert len((await store.list(state=JobState.QUEUED)).jobs) == 6
    assert (await store.list(after=newest[-1])).jobs == []


async def test_a_record_that_cannot_be_read_hides_no_other(store: JobStore) -> None:
    first, broken, last = [await store.submit(submission()) for _ in range(3)]
    await store.table.write(f"job.{broken.id}", b"\xc1", lifetime=60.0)
    page = await store.list()
    assert {record.id for record in page.jobs} == {first.id, last.id}
    with pytest.raises(InternalError, match="cannot be read"):
        await store.get(broken.id)


async def test_a_page_of_a_long_list_reads_few_records(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        await store.submit(submission(owner="them"))
    mine = await store.submit(submission(owner="me"))
    read: list[str] = []
    original = store.read
    monkeypatch.setattr(store, "read", lambda job_id: (read.append(job_id), original(job_id))[1])
    assert [record.id for record in (await store.list(owner="me")).jobs] == [mine.id]
    assert read == [mine.id]
    read.clear()
    assert len((await store.list(limit=10)).jobs) == 10
    assert len(read) <= 32


async def test_places_in_the_queue(store: JobStore, bus: Bus) -> None:
    inbox = Mailbox()
    consumer = await bus.consume(JOB_QUEUE, lane_number("m", "", Lane.NORMAL), inbox)
    records = [await store.submit(submission()) for _ in range(4)]
    assert [record.queue_position for record in records] == [1, 2, 3, 4]
    consumer.grant(2)
    await inbox.take(2)
    later = JobStore(bus, LIMITS)  # what is seen of a queue is seen for half a second
    assert [(await later.get(record.id)).queue_position for record in records] == [1, 1, 1, 2]
    await later.cancel(records[3].id)
    assert (await later.get(records[3].id)).queue_position is None


async def test_keys_are_for_one_job(store: JobStore, bus: Bus) -> None:
    first = await store.submit(submission(1, owner="me", idempotency_key="k"))
    again = await JobStore(bus, LIMITS).submit(submission(1, owner="me", idempotency_key="k"))
    assert again.id == first.id
    for other in (
        submission(2, owner="me", idempotency_key="k"),
        submission(1, owner="me", idempotency_key="k", options=JobOptions(keep=7)),
    ):
        with pytest.raises(KeyReused):
            await store.submit(other)
    assert (await store.submit(submission(1, owner="them", idempotency_key="k"))).id != first.id
    assert (await store.submit(submission(1, model="n", owner="me", idempotency_key="k"))).id != first.id
    await store.forget(first.id)
    fresh = await store.submit(submission(2, owner="me", idempotency_key="k"))
    assert fresh.id != first.id


async def test_one_key_many_at_once(store: JobStore, bus: Bus) -> None:
    stores = [JobStore(bus, LIMITS) for _ in range(8)]
    records = await asyncio.gather(*(one.submit(submission(1, idempotency_key="k")) for one in stores))
    assert len({record.id for record in records}) == 1
    assert len((await store.list()).jobs) == 1
    inbox = Mailbox()
    (await bus.consume(JOB_QUEUE, lane_number("m", "", Lane.NORMAL), inbox)).grant(10)
    await inbox.take(1)
    assert (await bus.backlog(JOB_QUEUE, lane_number("m", "", Lane.NORMAL))).waiting == 0
    assert not inbox.items


async def test_a_submitter_that_died_half_way_is_helped_by_the_next(
    store: JobStore, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Mailbox()
    (await bus.consume(JOB_QUEUE, lane_number("m", "", Lane.NORMAL), inbox)).grant(10)

    async def die(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    for place, owner in ((store, "write"), (store._submitter, "enqueue")):
        wanted = submission(1, owner=owner, idempotency_key="k")
        with monkeypatch.context() as patch:
            patch.setattr(place, owner, die)
            with pytest.raises(asyncio.CancelledError):
                await store.submit(wanted)
        assert not inbox.items
        record = await store.submit(wanted)
        (delivery,) = await inbox.take()
        assert delivery.payload == f"{record.id} 1".encode()
        assert len((await store.list(owner=owner)).jobs) == 1


async def test_waiting_ends_with_the_job(store: JobStore, bus: Bus) -> None:
    record = await store.submit(submission())
    assert (await store.wait(record.id, 0.01)).state is JobState.QUEUED
    waiting = asyncio.create_task(JobStore(bus, LIMITS).wait(record.id, 60))
    followed: list[JobState] = []

    async def follow() -> None:
        async for seen in store.follow(record.id):
            followed.append(seen.state)  # noqa: PERF401 (it is looked at meanwhile)

    following = asyncio.create_task(follow())
    await eventually(lambda: followed == [JobState.QUEUED], "the first state")
    await store.change(record.id, lambda job: transitions.begun(job, store.now_us()))
    await eventually(lambda: followed[1:] == [JobState.RUNNING], "the second state")
    assert not waiting.done()
    await end(store, record)
    assert (await waiting).state is JobState.SUCCEEDED
    await following
    assert followed == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert [seen.state async for seen in store.follow(record.id)] == [JobState.SUCCEEDED]


async def test_who_follows_a_job_that_is_forgotten_is_let_go(store: JobStore) -> None:
    record = await store.submit(submission())
    followed: list[JobState] = []

    async def follow() -> None:
        async for seen in store.follow(record.id):
            followed.append(seen.state)  # noqa: PERF401 (it is looked at meanwhile)

    following = asyncio.create_task(follow())
    await eventually(lambda: followed, "the first state")
    await store.forget(record.id)
    async with asyncio.timeout(20):
        await following
    with pytest.raises(JobNotFound):
        await store.get(record.id)


async def test_results(store: JobStore) -> None:
    record = await store.submit(submission())
    assert await store.result(record.id) is None
    await end(store, record)
    result = await store.result(record.id)
    assert result is not None
    assert result.frame.model_version == "3"
    job, _ = await store.read(record.id)
    assert job.request is None
    failing = await store.submit(submission())
    await fail(store, failing)
    with pytest.raises(ModelFailed, match="no luck"):
        await store.result(failing.id)
    dropped = await store.submit(submission())
    await store.cancel(dropped.id)
    with pytest.raises(JobCancelled):
        await store.result(dropped.id)


async def test_a_result_that_is_gone(store: JobStore) -> None:
    record = await store.submit(submission())
    await end(store, record)
    job, _ = await store.read(record.id)
    await store.data.remove(job.result)
    with pytest.raises(JobNotFound, match="is not kept any more"):
        await store.result(record.id)


async def test_cancelling(store: JobStore, bus: Bus) -> None:
    notices = Mailbox()
    await bus.on_cancel(JOB_QUEUE, notices)
    record = await store.submit(submission())
    assert (await store.cancel(record.id)).state is JobState.CANCELLED
    assert await notices.take() == [record.id.encode()]
    before = await store.get(record.id)
    assert await store.cancel(record.id) == before
    done = await store.submit(submission())
    await end(store, done)
    assert (await store.cancel(done.id)).state is JobState.SUCCEEDED


async def test_retrying(store: JobStore, bus: Bus) -> None:
    inbox = Mailbox()
    (await bus.consume(JOB_QUEUE, lane_number("m", "", Lane.NORMAL), inbox)).grant(10)
    record = await store.submit(submission(5))
    (first,) = await inbox.take()
    first.ack()
    await fail(store, record)
    again = await store.retry(record.id)
    assert (again.state, again.error, again.ended_us, again.attempts) == (JobState.QUEUED, None, 0, 0)
    (second,) = await inbox.take()
    assert second.payload == f"{record.id} 1".encode()
    assert (await store.retry(record.id)).state is JobState.QUEUED  # asked for twice, queued once
    assert not inbox.items
    job, _ = await store.read(record.id)
    assert await store.work(job) == work(5)
    await store.change(record.id, lambda job: transitions.begun(job, store.now_us()))
    with pytest.raises(InvalidRequest, match="is running; expected one that failed or was cancelled"):
        await store.retry(record.id)
    await end(store, record)
    with pytest.raises(InvalidRequest, match="is succeeded"):
        await store.retry(record.id)


async def test_too_many_jobs(bus: Bus) -> None:
    store = JobStore(bus, JobLimits(max_jobs=2, max_bytes=1 << 20))
    await store.declare()
    for _ in range(2):
        await store.submit(submission())
    with pytest.raises(QueueFull, match=r"2 jobs wait or run, as many as may \(--max-jobs\)"):
        await store.submit(submission())
    assert len((await store.list()).jobs) == 2


async def test_too_many_bytes(bus: Bus) -> None:
    store = JobStore(bus, JobLimits(max_bytes=100_000))
    await store.declare()
    await store.submit(submission(*range(10_000)))
    with pytest.raises(QueueFull, match="--max-job-bytes"):
        await store.submit(submission(*range(11_000)))
    assert len((await store.list()).jobs) == 1
    await store.submit(submission())


async def test_nobody_runs_jobs_here(bus: Bus) -> None:
    client = JobStore(bus)
    with pytest.raises(NoWorker):
        await client.submit(submission())
    assert (await client.list()).jobs == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (JobOptions(max_queue_time=-1), "max_queue_time is -1"),
        (JobOptions(max_queue_time=float("nan")), "max_queue_time is nan"),
        (JobOptions(timeout=float("inf")), "timeout is inf; expected 0 to 86400 seconds"),
        (JobOptions(keep=1e9), "keep is 1000000000.0; expected 0 to 604800 seconds"),
        (JobOptions(max_attempts=0), "max_attempts is 0; expected 1 to 100"),
        (JobOptions(webhook="ftp://h/x"), "webhook is 'ftp://h/x'; expected http"),
        (JobOptions(webhook="https:///x"), "expected http"),
        (JobOptions(webhook="http://h:99999/"), "webhook is 'http://h:99999/'"),
        (JobOptions(webhook="http://[::1/"), "webhook is"),
        (JobOptions(webhook="http://127.1/"), "expected a name, or an address as 192.0.2.1"),
        (JobOptions(webhook="http://2130706433:80/"), "expected a name, or an address"),
        (JobOptions(webhook="http://0177.0.0.1/"), "expected a name, or an address"),
        (JobOptions(webhook="http://0x7f000001/"), "expected a name, or an address"),
        (JobOptions(webhook="http://me:secret@h/"), "has a user or password in it"),
        (JobOptions(webhook="http://h/a b"), "printable ASCII"),
        (JobOptions(webhook="http://h/\n"), "printable ASCII"),
        (JobOptions(webhook="http://h/" + 3000 * "x"), "of 3009 characters; expected a URL of at most 2048"),
    ],
)
async def test_options_that_cannot_be_met(options: JobOptions, told: str, namespace: str) -> None:
    bus = connect("memory://jobs", namespace=namespace)
    await bus.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            await JobStore(bus).submit(submission(options=options))
        assert told in caught.value.message
        assert "secret" not in caught.value.message
    finally:
        await bus.close()


async def test_what_a_job_is_remembered_for(store: JobStore) -> None:
    record = await store.submit(submission(options=JobOptions(keep=60, webhook="http://h/")))
    job, _ = await store.read(record.id)
    now = store.now_us()
    assert transitions.lifetime(job, now) > 7 * 86400
    ref = DataRef("x", 1, 1)
    ended = transitions.succeeded(job, ref, now)
    assert ended is not None
    assert transitions.lifetime(ended, now + 10_000_000) == 50 + transitions.WEBHOOK_WINDOW
    told = transitions.webhook_ended(ended, "")
    assert told is not None
    assert told.record.webhook_state == "delivered"
    assert transitions.lifetime(told, now + 10_000_000) == 50
    assert transitions.lifetime(told, now + 100_000_000) == 1
