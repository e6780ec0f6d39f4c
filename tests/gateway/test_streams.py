"""Calls that take many responses, on the memory bus; the tests are the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from qinfer.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelFailed,
    QInferError,
    Unsupported,
)
from qinfer.message import (
    END,
    FINAL,
    BatchInfo,
    CancelFrame,
    Request,
    Response,
    ResponseFrame,
    Tensor,
    WireError,
    decode_cancel_frame,
    encode,
)
from qinfer.proto import ModelConfig
from qinfer.registry import ModelRecord, TensorRecord
from qinfer_gateway.catalog import Target
from qinfer_gateway.streams import WINDOW, StreamCall
from tests.gateway.test_dispatcher import Stage, StubCall, buses, settled, stage, target
from tests.helpers.waiting import Mailbox, eventually

__all__ = ["buses", "stage"]

_TENSOR = TensorRecord("x", "FP32", (2,))
_CONFIG = ModelConfig(name="m", model_transaction_policy={"decoupled": True}).SerializeToString()
DECOUPLED = Target(
    "",
    ModelRecord("m", "1", "stub", "stub", 8, (_TENSOR,), (_TENSOR,), _CONFIG),
    served=True,
    subject="stub.m",
)


class Reader(StreamCall):
    """A call as a transport makes it."""

    protocol = "http"
    operation = "POST"


class Script:
    """A dispatcher's call, and what the worker says and hears."""

    def __init__(self, stage: Stage, notices: Mailbox) -> None:
        self.stage = stage
        self.notices = notices
        self.call = Reader(monotonic())

    async def begin(self, *, timeout: float = 0.0) -> Request:
        """Submit the call; returns its request as it reached the worker."""
        request = Request(0, "", [Tensor.from_numpy("x", np.zeros((1, 2), np.float32))])
        self.stage.dispatcher.submit(self.call, DECOUPLED, request, timeout=timeout)
        (frame,) = await self.stage.frames()
        return frame.requests[0]

    def say(self, *indexes: int, attempt: int = 1, flags: int = 0, **more: Any) -> None:
        """The worker publishes responses with these indexes, each of which is its output, too."""
        number = self.call.number
        responses = [
            Response(number, attempt, None, [_output(index)], flags=flags, index=index, **more)
            for index in indexes
        ]
        self.publish(*responses)

    def publish(self, *responses: Response) -> None:
        frame = ResponseFrame(1, "w", "1", BatchInfo(), list(responses))
        self.stage.worker.reply(self.stage.client.reply_to, encode(frame))

    async def read(self, count: int) -> list[int]:
        """The next values."""
        seen = []
        for _ in range(count):
            async with asyncio.timeout(5):
                streamed = await self.call.next()
            assert streamed is not None
            seen.append(int(streamed.response.outputs[0].numpy()[0]))
        return seen

    async def rest(self) -> list[int]:
        """All values until the end."""
        seen = []
        async with asyncio.timeout(5):
            while (streamed := await self.call.next()) is not None:
                if not streamed.empty:
                    seen.append(int(streamed.response.outputs[0].numpy()[0]))
        return seen

    async def told(self) -> CancelFrame:
        (notice,) = await self.notices.take()
        return decode_cancel_frame(notice)


def _output(value: int) -> Tensor:
    return Tensor.from_numpy("y", np.array([value], np.int32))


@pytest_asyncio.fixture
async def script(stage: Stage) -> AsyncIterator[Script]:
    notices = Mailbox()
    watcher = await stage.worker.on_cancel("m", notices)
    yield Script(stage, notices)
    await watcher.close()


async def test_responses_are_read_in_their_order(script: Script) -> None:
    request = await script.begin()
    assert request.window == WINDOW
    script.say(0, 1)
    script.say(2)
    assert await script.read(3) == [0, 1, 2]
    script.say(3, flags=FINAL)
    assert await script.rest() == [3]
    assert await script.call.next() is None
    assert script.stage.outcomes == {"ok": 1}
    assert script.stage.stats.first_responses["m", "http"].count == 1


async def test_an_end_of_its_own(script: Script) -> None:
    await script.begin()
    script.say(0)
    script.publish(Response(script.call.number, 1, None, flags=FINAL | END, index=1))
    assert await script.rest() == [0]


async def test_what_was_had_is_dropped_and_a_gap_is_waited_out(script: Script) -> None:
    await script.begin()
    script.say(0, 1)
    script.say(4, 5)  # what was between them is lost
    script.say(9, flags=FINAL)
    assert await script.read(2) == [0, 1]
    script.say(0, 1, 2, 3, attempt=2)  # and comes again
    script.say(5)  # late, of the first worker
    script.say(4, attempt=2)
    script.say(5, attempt=2, flags=FINAL)
    assert await script.rest() == [2, 3, 4, 5]


async def test_a_second_run_that_is_shorter_ends_the_stream(script: Script) -> None:
    await script.begin()
    script.say(0, 1, 2, 3)
    script.say(0, 1, attempt=2)
    script.say(2, attempt=2, flags=FINAL)
    assert await script.rest() == [0, 1, 2, 3]
    assert not script.stage.dispatcher.in_flight["m"]


async def test_the_worker_is_told_when_half_of_the_window_is_taken(script: Script) -> None:
    await script.begin()
    script.say(*range(WINDOW))
    await script.read(WINDOW // 2 - 1)
    await settled()
    assert not script.notices.items
    await script.read(1)
    notice = await script.told()
    assert (notice.ids, notice.taken) == ([], [(script.call.number, WINDOW // 2)])


async def test_a_worker_that_begins_anew_is_told_at_once(script: Script) -> None:
    await script.begin()
    script.say(0, 1, 2)
    await script.read(3)
    script.say(0, attempt=2)
    assert (await script.told()).taken == [(script.call.number, 3)]


async def test_a_worker_that_heeds_no_window_fails_the_call(script: Script) -> None:
    await script.begin()
    script.say(*range(10 * WINDOW))
    await eventually(lambda: not script.stage.dispatcher.in_flight["m"])
    assert await script.read(4 * WINDOW) == list(range(4 * WINDOW))
    with pytest.raises(InternalError, match="more than the 16 responses"):
        await script.call.next()


async def test_an_error_comes_after_what_was_given_before_it(script: Script) -> None:
    await script.begin()
    script.say(0, 1)
    script.publish(Response(script.call.number, 1, WireError("model_failed", "no more"), index=2))
    assert await script.read(2) == [0, 1]
    with pytest.raises(ModelFailed, match="no more"):
        await script.call.next()
    assert script.stage.outcomes == {"model_failed": 1}


async def test_a_deadline_in_the_middle(script: Script) -> None:
    await script.begin(timeout=0.2)
    script.say(0)
    assert await script.read(1) == [0]
    with pytest.raises(DeadlineExceeded):
        await script.rest()
    assert (await script.told()).ids == [script.call.number]


async def test_a_reader_that_leaves_cancels_and_leaves_nothing_in_the_store(script: Script) -> None:
    await script.begin()
    await script.stage.worker.put_blob("out-1", b"\x90")
    script.say(0)
    script.say(1, claim="out-1", claim_bytes=1)
    assert await script.read(1) == [0]
    script.stage.dispatcher.abandon(script.call)
    assert (await script.told()).ids == [script.call.number]
    blobs = script.stage.worker._broker.blobs  # type: ignore[attr-defined]
    await eventually(lambda: not blobs, "the data are removed")


async def test_large_responses_are_fetched_when_they_are_read(script: Script) -> None:
    await script.begin()
    worker = script.stage.worker
    await worker.put_blob("out-1", encode([np.array([7], np.int32).tobytes()]))  # type: ignore[arg-type]
    bare = Tensor("y", "INT32", [1], b"")
    script.publish(Response(script.call.number, 1, None, [bare], flags=FINAL, claim="out-1", claim_bytes=64))
    assert await script.rest() == [7]
    await eventually(lambda: not worker._broker.blobs)  # type: ignore[attr-defined]


async def test_what_a_decoupled_model_cannot_do_is_refused(stage: Stage) -> None:
    async def refused(call: Any, **more: Any) -> QInferError:
        request = Request(0, "", [Tensor.from_numpy("x", np.zeros((1, 2), np.float32))], **more)
        with pytest.raises(QInferError) as caught:
            stage.dispatcher.submit(call, DECOUPLED, request)
        return caught.value

    assert type(await refused(StubCall())) is Unsupported
    assert type(await refused(Reader(monotonic()), idempotency="a" * 64)) is InvalidRequest
    assert not stage.dispatcher.in_flight.get("m")


async def test_a_model_that_gives_one_response_may_be_read_like_one_that_gives_many(script: Script) -> None:
    request = Request(0, "", [Tensor.from_numpy("x", np.zeros((1, 2), np.float32))])
    script.stage.dispatcher.submit(script.call, target(), request)
    (frame,) = await script.stage.frames()
    assert frame.requests[0].window == 0
    script.say(0, flags=FINAL)
    assert await script.rest() == [0]
    await settled()
    assert not script.notices.items
