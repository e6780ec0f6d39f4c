"""What a client over the broker makes of answers that no worker of ours gives, or seldom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgpack
import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import Bus, Delivery, QueueSpec, connect
from qinfer.client import connect as connect_client
from qinfer.client.nats import NatsClient
from qinfer.client.nats.streams import WINDOW
from qinfer.errors import BusUnavailable, InternalError, InvalidRequest, NoWorker, Unavailable
from qinfer.message import (
    END,
    FINAL,
    BatchInfo,
    CancelFrame,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    Tensor,
    WireError,
    decode_cancel_frame,
    decode_request_frame,
    encode,
)
from qinfer.registry import ModelRecord, Registration, TensorRecord, WorkerRecord
from tests.helpers.waiting import eventually

MODEL = "m"
X = {"x": [[1.0]]}
RECORD = ModelRecord(
    MODEL, "1", "b", "p", 4, (TensorRecord("x", "FP32", (1,)),), (TensorRecord("y", "FP32", (1,)),), b""
)


class Actor:
    """A worker that answers as it is told.

    Attributes:
        requests: what it was asked, with the frames they came in.
        notices: what it was told beside that.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.requests: list[Request] = []
        self.frames: list[RequestFrame] = []
        self.notices: list[CancelFrame] = []

    async def start(self, record: ModelRecord = RECORD) -> None:
        await self.bus.declare(MODEL, QueueSpec(storage="memory", max_bytes=1 << 20))
        (await self.bus.consume(MODEL, "", self._take)).grant(1000)
        await self.bus.on_cancel(MODEL, lambda data: self.notices.append(decode_cancel_frame(data)))
        worker = WorkerRecord("w", "host", 1, {MODEL: ["1"]})
        self.registration = Registration(self.bus, worker, [record])
        await self.registration.start()

    def _take(self, delivery: Delivery) -> None:
        delivery.ack()
        frame = decode_request_frame(delivery.payload)
        self.frames.append(frame)
        self.requests.extend(frame.requests)

    async def asked(self, count: int = 1) -> Request:
        """The latest request, when so many have come."""
        await eventually(lambda: len(self.requests) >= count, f"{count} requests")
        return self.requests[-1]

    def answer(self, request: Request, *values: float, start: int = 0, flags: int = 0, **more: Any) -> None:
        """Responses to a request, one for each value, numbered from `start`; the last one has `flags`."""
        for place, value in enumerate(values):
            outputs = [Tensor.from_numpy("y", np.array([[value]], np.float32))]
            last = flags if place == len(values) - 1 else 0
            self.say(Response(request.id, 1, None, outputs, index=start + place, flags=last, **more))

    def say(self, *responses: Response) -> None:
        self.send(encode(ResponseFrame(1, "w", "1", BatchInfo(), list(responses))))

    def send(self, data: bytes) -> None:
        self.bus.reply(self.frames[-1].reply_to, data)


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


@pytest_asyncio.fixture
async def actor(url: str) -> AsyncIterator[Actor]:
    bus = connect(url)
    await bus.start()
    actor = Actor(bus)
    await actor.start()
    yield actor
    await actor.registration.close()
    await bus.close()


@pytest_asyncio.fixture
async def client(url: str, actor: Actor) -> AsyncIterator[NatsClient]:
    async with connect_client(url, retries=0) as client:
        assert isinstance(client, NatsClient)
        yield client


async def values(stream: AsyncIterator[Any]) -> list[float]:
    return [float(result["y"][0, 0]) async for result in stream]


async def test_requests_of_a_moment_share_frames_no_larger_than_a_batch(
    actor: Actor, client: NatsClient
) -> None:
    tasks = [asyncio.create_task(client.infer(MODEL, X)) for _ in range(10)]
    await actor.asked(10)
    assert [len(frame.requests) for frame in actor.frames] == [4, 4, 2]
    assert [frame.in_flight for frame in actor.frames] == [10] * 3
    for request in reversed(actor.requests):
        actor.answer(request, request.id, flags=FINAL)
    assert [float((await task)["y"][0, 0]) for task in tasks] == [request.id for request in actor.requests]


async def test_what_is_for_nobody_is_dropped(actor: Actor, client: NatsClient) -> None:
    """Late and second answers, and what is no answer at all."""
    task = asyncio.create_task(client.infer(MODEL, X))
    request = await actor.asked()
    actor.answer(Request(request.id + 1, "", []), 6.0, flags=FINAL)
    for data in (
        b"nonsense",
        msgpack.packb([9, "w"]),
        msgpack.packb([1, "w", "", [], [], ["internal", "?"]]),
    ):
        actor.send(data)
    actor.answer(request, 7.0, flags=FINAL)
    actor.answer(request, 8.0, flags=FINAL)
    assert (await task)["y"].tolist() == [[7.0]]
    await eventually(lambda: client._exchange.dropped == 5, "all the rest is dropped")


async def test_an_answer_whose_data_are_lost(actor: Actor, client: NatsClient) -> None:
    bare = [Tensor("y", "FP32", [1, 1], b"")]
    task = asyncio.create_task(client.infer(MODEL, X))
    request = await actor.asked()
    actor.say(Response(request.id, 1, None, bare, claim="out-0", claim_bytes=8))
    with pytest.raises(BusUnavailable, match="the answer is lost"):
        await task
    await actor.bus.put_blob("out-1", b"nonsense")
    task = asyncio.create_task(client.infer(MODEL, X))
    request = await actor.asked(2)
    actor.say(Response(request.id, 1, None, bare, claim="out-1", claim_bytes=8))
    with pytest.raises(InternalError, match="cannot be read"):
        await task


async def test_one_answer_of_a_model_that_may_give_many(actor: Actor, client: NatsClient) -> None:
    """Of a fleet whose registry does not say that it is one."""

    async def ask(*answers: Response) -> float:
        task = asyncio.create_task(client.infer(MODEL, X))
        request = await actor.asked(len(actor.requests) + 1)
        for answer in answers:
            answer.id = request.id
            actor.say(answer)
        return float((await task)["y"][0, 0])

    def response(index: int, flags: int) -> Response:
        outputs = [] if flags & END else [Tensor.from_numpy("y", np.array([[5.0]], np.float32))]
        return Response(0, 1, None, outputs, index=index, flags=flags)

    assert await ask(response(0, 0), response(1, FINAL | END)) == 5.0
    with pytest.raises(InvalidRequest, match="more than one response"):
        await ask(response(0, 0), response(1, 0))
    with pytest.raises(InvalidRequest, match="no response"):
        await ask(response(0, FINAL | END))


async def test_a_stream_that_is_run_again_goes_on_where_it_was(actor: Actor, client: NatsClient) -> None:
    read = asyncio.create_task(values(client.stream(MODEL, X)))
    request = await actor.asked()
    assert request.window == WINDOW
    actor.answer(request, 0.0, 1.0, 2.0)
    actor.answer(request, 0.0, 1.0, 2.0, 3.0)  # another worker, from the start
    actor.answer(request, 5.0, start=5, flags=FINAL)  # out of turn
    actor.answer(request, 4.0, start=4)
    assert await read == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


async def test_a_second_run_that_is_shorter_ends_the_stream(actor: Actor, client: NatsClient) -> None:
    stream = client.stream(MODEL, X)
    first = asyncio.ensure_future(anext(stream))
    request = await actor.asked()
    actor.answer(request, 0, 1, 2)
    assert float((await first)["y"][0, 0]) == 0
    actor.answer(request, 0, 1, flags=FINAL)
    async with asyncio.timeout(10):
        assert await values(stream) == [1, 2]


async def test_the_end_of_a_stream_may_come_by_itself(actor: Actor, client: NatsClient) -> None:
    for count in (0, 2):
        read = asyncio.create_task(values(client.stream(MODEL, X)))
        request = await actor.asked(len(actor.requests) + 1)
        actor.answer(request, *map(float, range(count)))
        actor.say(Response(request.id, 1, None, index=count, flags=FINAL | END))
        assert await read == list(range(count))


async def test_a_reader_tells_how_far_it_is(actor: Actor, client: NatsClient) -> None:
    stream = client.stream(MODEL, X)
    first = asyncio.create_task(anext(stream))
    request = await actor.asked()
    actor.answer(request, *map(float, range(WINDOW)))
    await first
    for _ in range(WINDOW // 2 - 1):
        await anext(stream)
    await eventually(lambda: actor.notices, "it tells")
    assert [(notice.ids, notice.taken) for notice in actor.notices] == [([], [(request.id, WINDOW // 2)])]
    # A worker that begins anew has not heard it.
    actor.answer(request, 0.0)
    await eventually(lambda: len(actor.notices) == 2, "it tells again")
    assert actor.notices[1].taken == [(request.id, WINDOW // 2)]
    await stream.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: len(actor.notices) == 3, "it leaves")
    assert actor.notices[2].ids == [request.id]


async def test_an_error_ends_a_stream_after_what_came_before(actor: Actor, client: NatsClient) -> None:
    stream = client.stream(MODEL, X)
    first = asyncio.create_task(anext(stream))
    request = await actor.asked()
    actor.answer(request, 0.0, 1.0)
    actor.say(Response(request.id, 1, WireError("invalid_request", "no"), index=2))
    assert (await first)["y"].tolist() == [[0.0]]
    assert (await anext(stream))["y"].tolist() == [[1.0]]
    with pytest.raises(InvalidRequest, match="no"):
        await anext(stream)


async def test_data_that_nobody_reads_are_removed(actor: Actor, client: NatsClient) -> None:
    stream = client.stream(MODEL, X)
    first = asyncio.create_task(anext(stream))
    request = await actor.asked()
    actor.answer(request, 0.0)
    await first
    for index in (1, 2):
        await actor.bus.put_blob(f"out-{index}", b"x")
        actor.say(Response(request.id, 1, None, claim=f"out-{index}", claim_bytes=1, index=index, flags=0))
    await eventually(lambda: len(client._exchange._calls[request.id]._ready) == 2, "they are here")  # type: ignore[attr-defined]
    await stream.aclose()  # type: ignore[attr-defined]
    bus: Any = actor.bus
    await eventually(lambda: not bus._broker.blobs, "they are gone")


async def test_a_worker_that_goes_is_no_worker(actor: Actor, client: NatsClient) -> None:
    await actor.registration.close()
    await eventually(lambda: not client._models.info(MODEL).ready, "the client knows")
    with pytest.raises(NoWorker):
        await client.infer(MODEL, X)


async def test_what_was_not_sent_is_safe_to_try_again(
    actor: Actor, client: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise BusUnavailable("down")

    monkeypatch.setattr(client._bus, "publish", refuse)
    with pytest.raises(Unavailable) as caught:
        await client.infer(MODEL, X)
    assert type(caught.value) is Unavailable
