"""Calls that do not go the straight way, on the memory bus; the tests are the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from qinfer.answers import keep
from qinfer.bus import Bus, QueueSpec
from qinfer.bus.base import Data
from qinfer.bus.memory import MemoryBus
from qinfer.claims import Claims
from qinfer.errors import BusUnavailable, QueueFull
from qinfer.message import (
    KEPT,
    BatchInfo,
    Request,
    Response,
    ResponseFrame,
    Tensor,
    WireError,
    encode,
    redeem_claim,
)
from qinfer.naming import Names
from tests.gateway.test_dispatcher import Stage, StubCall, settled, target
from tests.helpers.waiting import eventually

COLUMNS = 5000  # 20 kB: more than a message may have here
NAME = "a" * 64


class Detoured(Stage):
    """A dispatcher for whose messages 10 kB are too much."""

    def __init__(self, client: MemoryBus, worker: MemoryBus, *, max_claim_bytes: int = 50_000) -> None:
        super().__init__(client, worker, max_claim_bytes=max_claim_bytes)
        client.max_payload = 10_000
        self.broker = client._connection

    @property
    def claims(self) -> Claims:
        return self.dispatcher._detours._claims

    def large(self, *, timeout: float = 0.0, key: str = "", value: float = 1.0) -> StubCall:
        call = StubCall()
        request = Request(0, "", [Tensor.from_numpy("x", np.full((1, COLUMNS), value, np.float32))])
        request.idempotency = key
        self.dispatcher.submit(call, target(columns=COLUMNS), request, timeout=timeout)
        return call

    def keyed(self, key: str = NAME, *, value: float = 1.0, timeout: float = 0.0) -> StubCall:
        call = StubCall()
        request = Request(0, "", [Tensor.from_numpy("x", np.full((1, 2), value, np.float32))])
        request.idempotency = key
        self.dispatcher.submit(call, target(), request, timeout=timeout)
        return call

    async def request(self) -> Request:
        """The next request at the worker, which came in a frame of its own."""
        (frame,) = await self.frames()
        (request,) = frame.requests
        return request

    async def answer_with_claim(
        self, number: int, *, flags: int = 1, name: str = "out-1", size: int = 0, attempt: int = 1
    ) -> None:
        """Answer with an output whose data lie in the store; the blob is not there where `size` says so."""
        data = np.arange(COLUMNS, dtype=np.float32).tobytes()
        blob = b"\x91\xc6" + len(data).to_bytes(4, "big") + data
        if not size:
            await self.worker.put_blob(name, blob)
        response = Response(number, attempt, None, [Tensor("y", "FP32", [1, COLUMNS], b"")], flags=flags)
        response.claim, response.claim_bytes = name, size or len(blob)
        self.worker.reply(self.client.reply_to, encode(frame_of(response)))

    async def keep(self, response: Response) -> None:
        """Keep an answer, as a worker does."""
        await keep(self.worker, NAME, encode(frame_of(response)))

    async def emptied(self) -> None:
        await eventually(lambda: not self.broker.blobs, "the store is empty")
        await eventually(lambda: not self.claims.held_bytes, "nothing is held")


def frame_of(response: Response) -> ResponseFrame:
    return ResponseFrame(1, "w", "1", BatchInfo(), [response])


def outputs(call: StubCall) -> list[float]:
    (response,) = call.answers
    values: list[float] = response.outputs[0].numpy().ravel().tolist()
    return values


@pytest_asyncio.fixture
async def buses(namespace: str) -> AsyncIterator[tuple[MemoryBus, MemoryBus]]:
    client, worker = (MemoryBus("detours", names=Names(namespace)) for _ in range(2))
    await client.start()
    await worker.start()
    yield client, worker
    await client.close()
    await worker.close()


@pytest_asyncio.fixture
async def stage(buses: tuple[MemoryBus, MemoryBus]) -> AsyncIterator[Detoured]:
    stage = Detoured(*buses)
    await stage.serve()
    yield stage
    await stage.dispatcher.drain(0)


# Large requests


async def test_the_tensors_of_a_large_request_go_through_the_store(stage: Detoured) -> None:
    call = stage.large(value=3)
    request = await stage.request()
    assert request.claim.startswith("in-")
    assert len(request.claim) == 3 + 32
    blob = stage.broker.blobs[request.claim]
    assert request.claim_bytes == len(blob)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.shape, bytes(tensor.data)) == ("x", [1, COLUMNS], b"")
    redeem_claim([tensor], blob)
    assert tensor.numpy().tolist() == [[3.0] * COLUMNS]
    assert stage.claims.held_bytes == 0, "it is the broker that has them now"
    stage.answer(call.number)
    await eventually(lambda: call.reason == "ok")
    await stage.emptied()


@pytest.mark.parametrize("end", ["error", "deadline", "hangs up", "drain", "refused"])
async def test_the_store_is_empty_however_the_call_ends(stage: Detoured, end: str) -> None:
    if end == "refused":
        await stage.worker.declare("m", QueueSpec(storage="memory", max_messages=0))
    call = stage.large(timeout=0.05 if end == "deadline" else 0.0)
    if end != "refused":
        await stage.request()
        assert stage.broker.blobs
    match end:
        case "error":
            stage.answer(call.number, error=WireError("model_failed", "no"))
        case "hangs up":
            stage.dispatcher.abandon(call)
        case "drain":
            await stage.dispatcher.drain(0)
    if end != "hangs up":
        await eventually(lambda: call.reason)
    await stage.emptied()
    assert not sum(stage.dispatcher.in_flight.values())


async def test_a_call_that_ends_while_its_tensors_are_on_their_way(stage: Detoured) -> None:
    uploading, go_on = slow_uploads(stage.client)
    call = stage.large()
    await uploading.wait()
    stage.dispatcher.abandon(call)
    go_on.set()
    await eventually(lambda: not stage.dispatcher._detours._tasks, "they have arrived")
    await stage.emptied()
    stage.call(target())
    assert [len(request.inputs) for request in (await stage.frames())[0].requests] == [1]
    assert not stage.deliveries.items, "nobody was told of it"


async def test_a_broker_that_does_not_take_the_tensors(
    stage: Detoured, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise BusUnavailable("the broker is away", retry_after=1.0)

    monkeypatch.setattr(stage.client, "put_blob", refuse)
    call = stage.large()
    await eventually(lambda: call.reason == "bus_unavailable")
    await stage.emptied()


async def test_more_than_the_gateway_may_hold_is_refused_until_there_is_room(stage: Detoured) -> None:
    _, go_on = slow_uploads(stage.client)
    calls = [stage.large() for _ in range(2)]
    with pytest.raises(QueueFull, match=r"--max-claim-bytes") as caught:
        stage.large()
    assert caught.value.retry_after
    stage.call(target())
    assert len((await stage.frames())[0].requests) == 1, "small ones are not held up"
    go_on.set()
    await stage.frames(2)
    stage.answer(*(call.number for call in calls))
    await eventually(lambda: all(call.reason == "ok" for call in calls))
    stage.large()
    await stage.request()


async def test_names_that_make_a_request_too_large(stage: Detoured) -> None:
    stage.client.max_payload = 9000
    call = StubCall()
    data = np.zeros((1, 2100), np.float32)  # 8400 bytes
    request = Request(0, "r" * 700, [Tensor.from_numpy("x", data)])
    stage.dispatcher.submit(call, target(columns=2100), request)
    assert (await stage.request()).claim in stage.broker.blobs
    stage.answer(call.number)
    await stage.emptied()


# Large answers


async def test_the_data_of_a_large_answer_are_read_and_removed(stage: Detoured) -> None:
    call = stage.call(target())
    await stage.frames()
    await stage.answer_with_claim(call.number)
    await eventually(lambda: call.reason == "ok")
    assert outputs(call) == list(range(COLUMNS))
    await stage.emptied()
    assert stage.outcomes == {"ok": 1}


@pytest.mark.parametrize("end", ["no call", "hangs up", "answered twice"])
async def test_an_answer_nobody_waits_for_leaves_nothing_behind(stage: Detoured, end: str) -> None:
    call = stage.call(target())
    await stage.frames()
    match end:
        case "no call":
            await stage.answer_with_claim(call.number + 100)
            await eventually(lambda: stage.dispatcher.dropped == 1)
            await stage.emptied()
            stage.answer(call.number)
            await eventually(lambda: call.reason == "ok")
            return
        case "hangs up":
            reading, go_on = slow_downloads(stage.client)
            await stage.answer_with_claim(call.number)
            await reading.wait()
            stage.dispatcher.abandon(call)
            go_on.set()
            await eventually(lambda: stage.dispatcher.dropped == 1)
        case "answered twice":
            reading, go_on = slow_downloads(stage.client)
            await stage.answer_with_claim(call.number)
            await reading.wait()
            await stage.answer_with_claim(call.number, name="out-2", attempt=2)
            await eventually(lambda: "out-2" not in stage.broker.blobs, "the second is not wanted")
            go_on.set()
            await eventually(lambda: call.reason == "ok")
            assert stage.dispatcher.dropped == 1
    await stage.emptied()


async def test_a_deadline_holds_while_an_answer_is_read(stage: Detoured) -> None:
    reading, go_on = slow_downloads(stage.client)
    call = stage.call(target(), timeout=0.05)
    await stage.frames()
    await stage.answer_with_claim(call.number)
    await eventually(lambda: call.reason == "deadline_exceeded")
    go_on.set()
    await stage.emptied()
    assert reading.is_set()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [("out-gone", 20_000, "bus_unavailable"), ("out-1", 50_001, "payload_too_large")],
    ids=["gone", "too large"],
)
async def test_an_answer_whose_data_cannot_be_read(
    stage: Detoured, name: str, size: int, reason: str
) -> None:
    call = stage.call(target())
    await stage.frames()
    await stage.answer_with_claim(call.number, name=name, size=size)
    await eventually(lambda: call.reason == reason)
    await stage.emptied()


async def test_answers_wait_for_room(buses: tuple[MemoryBus, MemoryBus]) -> None:
    stage = Detoured(*buses, max_claim_bytes=45_000)  # two of 20 kB
    await stage.serve()
    reading, go_on = slow_downloads(stage.client)
    calls = [stage.call(target()) for _ in range(4)]
    await stage.frames()
    for call in calls:
        await stage.answer_with_claim(call.number, name=f"out-{call.number}")
    await reading.wait()
    await settled()
    assert 40_000 <= stage.claims.held_bytes <= 45_000
    with pytest.raises(QueueFull):
        stage.large()
    go_on.set()
    await eventually(lambda: all(call.reason == "ok" for call in calls))
    await stage.emptied()
    await stage.dispatcher.drain(0)


# Idempotency keys


async def test_an_answer_that_is_kept_is_given_at_once(stage: Detoured) -> None:
    first = stage.keyed()
    request = await stage.request()
    assert (request.idempotency, len(request.fingerprint)) == (NAME, 64)
    response = Response(first.number, 1, None, [Tensor.from_numpy("y", np.full((1, 2), 7, np.float32))])
    response.fingerprint = request.fingerprint
    await stage.keep(response)
    again = stage.keyed()
    await eventually(lambda: again.reason == "ok")
    assert outputs(again) == [7, 7]
    assert again.answers[0].id == again.number
    assert not stage.deliveries.items
    stage.answer(first.number)
    await eventually(lambda: first.reason == "ok")


async def test_a_duplicate_waits_for_what_the_first_try_is_told(stage: Detoured) -> None:
    first = stage.keyed()
    request = await stage.request()
    second = stage.keyed()
    await settled()
    response = Response(first.number, 1, None, [Tensor.from_numpy("y", np.ones((1, 2), np.float32))])
    response.fingerprint = request.fingerprint
    await stage.keep(response)
    await eventually(lambda: second.reason == "ok")
    assert first.reason == ""
    stage.answer(first.number)
    await eventually(lambda: first.reason == "ok")
    assert not stage.deliveries.items, "it was queued once"
    assert stage.broker.watchers[stage.client.names.answers_bucket] == [], "nobody watches any more"


async def test_another_request_with_the_same_key_is_refused(stage: Detoured) -> None:
    stage.keyed(value=1)
    request = await stage.request()
    other = stage.keyed(value=2)
    await settled()
    response = Response(1, 1, WireError("model_failed", "no"))
    response.fingerprint = request.fingerprint
    await stage.keep(response)
    await eventually(lambda: other.reason == "key_reused")


async def test_a_try_that_came_to_nothing_does_not_block_the_key(stage: Detoured) -> None:
    first = stage.keyed()
    await stage.request()
    duplicate = stage.keyed()
    await settled()
    error = WireError("deadline_exceeded", "late")
    await stage.keep(Response(first.number, 1, error))
    stage.answer(first.number, error=error)
    await eventually(lambda: first.reason == "deadline_exceeded")
    request = await stage.request()
    assert request.id == duplicate.number, "nothing was run: it is queued again"
    third = stage.keyed()
    await settled()
    await stage.keep(Response(duplicate.number, 1, WireError("queue_full", "no")))
    stage.answer(duplicate.number, error=WireError("queue_full", "no"))
    await eventually(lambda: duplicate.reason == "queue_full")
    assert (await stage.request()).id == third.number
    stage.answer(third.number)
    await eventually(lambda: third.reason == "ok")


async def test_a_queue_that_is_full_does_not_block_the_key(stage: Detoured) -> None:
    await stage.worker.declare("m", QueueSpec(storage="memory", max_messages=0))
    refused = stage.keyed()
    await eventually(lambda: refused.reason == "queue_full")
    await stage.worker.declare("m", QueueSpec(storage="memory", max_messages=10))
    again = stage.keyed()
    assert (await stage.request()).id == again.number
    stage.answer(again.number)
    await eventually(lambda: again.reason == "ok")


async def test_a_kept_answer_that_cannot_be_read_is_an_error(stage: Detoured) -> None:
    await keep(stage.worker, NAME, b"\xc1")
    call = stage.keyed()
    await eventually(lambda: call.reason == "internal")


async def test_the_data_of_a_large_answer_that_is_kept_stay(stage: Detoured) -> None:
    first = stage.keyed()
    await stage.request()
    await stage.answer_with_claim(first.number, flags=1 | KEPT, name="keep-1")
    await eventually(lambda: first.reason == "ok")
    await settled()
    assert set(stage.broker.blobs) == {"keep-1"}


async def test_the_tensors_of_a_keyed_request_outlive_its_caller(stage: Detoured) -> None:
    """It is run although nobody waits, and needs them for that; not for longer than its deadline."""
    call = stage.large(key=NAME)
    request = await stage.request()
    stage.dispatcher.abandon(call)
    await settled()
    assert set(stage.broker.blobs) == {request.claim}


async def test_they_are_removed_when_it_would_not_be_run_any_more(
    stage: Detoured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer_gateway.detours._LINGER", 0.05)
    call = stage.large(key=NAME, timeout=0.05)
    await stage.request()
    await eventually(lambda: call.reason == "deadline_exceeded")
    await stage.emptied()


async def test_a_keyed_request_is_not_sent_where_its_answer_is_known(stage: Detoured) -> None:
    first = stage.large(key=NAME)
    request = await stage.request()
    stage.answer(first.number)
    await stage.emptied()
    response = Response(first.number, 1, None, [])
    response.fingerprint = request.fingerprint
    await stage.keep(response)
    again = stage.large(key=NAME)
    await eventually(lambda: again.reason == "ok")
    await stage.emptied()
    assert not stage.deliveries.items


async def test_the_same_tensors_have_the_same_fingerprint_large_or_small(stage: Detoured) -> None:
    stage.large(key=NAME)
    large = await stage.request()
    stage.client.max_payload = 100_000
    stage.large(key="b" * 64)
    small = await stage.request()
    assert large.claim
    assert not small.claim
    assert large.fingerprint == small.fingerprint


async def test_a_draining_gateway_ends_calls_with_a_key(stage: Detoured) -> None:
    call = stage.keyed()
    await stage.request()
    await stage.dispatcher.drain(0)
    assert call.reason == "shutting_down"
    assert not stage.dispatcher._detours._tasks


def slow_uploads(bus: Bus) -> tuple[asyncio.Event, asyncio.Event]:
    """Uploads begin (first event) and end only when they may (second)."""
    began, go_on = asyncio.Event(), asyncio.Event()
    put = bus.put_blob

    async def slowly(name: str, *parts: Data) -> None:
        began.set()
        await go_on.wait()
        await put(name, *parts)

    bus.put_blob = slowly  # type: ignore[method-assign]
    return began, go_on


def slow_downloads(bus: Bus) -> tuple[asyncio.Event, asyncio.Event]:
    """The same for downloads."""
    began, go_on = asyncio.Event(), asyncio.Event()
    get = bus.get_blob

    async def slowly(name: str, *, limit: int) -> Data:
        began.set()
        await go_on.wait()
        return await get(name, limit=limit)

    bus.get_blob = slowly  # type: ignore[method-assign]
    return began, go_on
