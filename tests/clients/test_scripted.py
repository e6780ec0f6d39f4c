"""What a worker may say and seldom does: duplicates, gaps, wide integers, errors half-way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgpack
import pytest
import pytest_asyncio

from tests.clients.driven import DONE, Client, Failed, Got, Stream, floats
from tests.clients.responder import LAST, MODEL, NOTHING_MORE, Responder, responder, response


@pytest_asyncio.fixture
async def scripted(nats_url: str, namespace: str) -> AsyncIterator[Responder]:
    async with responder(nats_url, namespace) as made:
        yield made


def index_of(got: object) -> int:
    assert isinstance(got, Got), got
    return int(got.outputs["i"][2][0])


async def step(stream: Stream) -> int:
    return index_of(await stream.next())


async def test_the_request_is_as_the_page_says(client: Client, scripted: Responder) -> None:
    before = time.time_ns() // 1000
    asked = client.begin(MODEL, floats(1.5), timeout=12.5, parameters={"n": 1})
    frame = await scripted.frame()
    assert (frame.version, frame.model, frame.model_version) == (1, MODEL, "")
    assert abs(frame.sent_us - before) < 60_000_000
    (request,) = frame.requests
    assert 0 < request.deadline_us - frame.sent_us <= 12_500_000 + 1_000_000
    assert (request.outputs, request.parameters, request.claim) == ([], {"n": 1}, "")
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", "FP32", [1, 1])
    assert bytes(tensor.data) == b"\x00\x00\xc0\x3f"
    scripted.say(frame, response(frame, 0, flags=LAST))
    got = await asked.answer()
    assert index_of(got) == 0
    assert isinstance(got, Got)
    assert got.version == "3"


async def test_defaults_newer_fields_and_wide_integers(client: Client, scripted: Responder) -> None:
    """A worker in another language may leave out, append, and write integers in nine bytes."""
    asked = client.begin(MODEL, floats(1.0))
    frame = await scripted.frame()
    scripted.say_raw(frame, msgpack.packb([1, "w", "3", [], [[frame.requests[0].id, 1, None]]]))
    got = await asked.answer()
    assert isinstance(got, Got)
    assert got.outputs == {}
    asked = client.begin(MODEL, floats(1.0))
    frame = await scripted.frame()
    wide = [*response(frame, 0, flags=LAST), {"later": True}]
    wide[3][0].append("gzip")
    data = msgpack.packb([1, "w", "3", [0, 0, 0, 0, 0], [wide], None, 0, "later"])
    # The flags, the empty claim's size and the index as 64-bit integers.
    small = msgpack.packb([LAST, 0, "", 0, "", 0])[1:]
    large = b"\xd3" + LAST.to_bytes(8, "big") + small[1:-1] + b"\xd3" + bytes(8)
    assert data.count(small) == 1
    scripted.say_raw(frame, data.replace(small, large))
    assert index_of(await asked.answer()) == 0


async def test_a_stream_that_is_run_again(client: Client, scripted: Responder) -> None:
    """Its worker died: another one begins anew, and has to hear what was taken already."""
    stream = await client.stream(MODEL, floats(1.0), window=4)
    first = asyncio.ensure_future(step(stream))
    frame = await scripted.frame()
    assert frame.requests[0].window == 4
    identity = frame.requests[0].id
    scripted.say(frame, *(response(frame, index) for index in range(4)))
    seen = [await first, *[await step(stream) for _ in range(3)]]
    assert seen == [0, 1, 2, 3]
    follows = asyncio.ensure_future(step(stream))
    told = [(await scripted.heard()).taken, (await scripted.heard()).taken]
    assert told == [[(identity, 2)], [(identity, 4)]]
    scripted.say(frame, *(response(frame, index) for index in range(4)))
    again = [(await scripted.heard()).taken, (await scripted.heard()).taken]
    assert again == [[(identity, 4)]] * 2
    scripted.say(frame, response(frame, 4), response(frame, 5, flags=NOTHING_MORE))
    assert await follows == 4
    assert await stream.next() == DONE


async def test_an_error_ends_a_stream_whatever_its_index(client: Client, scripted: Responder) -> None:
    stream = await client.stream(MODEL, floats(1.0))
    first = asyncio.ensure_future(step(stream))
    frame = await scripted.frame()
    scripted.say(frame, response(frame, 0), response(frame, 1))
    assert [await first, await step(stream)] == [0, 1]
    scripted.say(frame, response(frame, 0, flags=LAST, error=["poisoned", "it kills its workers", 2.5]))
    with pytest.raises(Failed, match="it kills its workers") as failed:
        await stream.next()
    assert (failed.value.reason, failed.value.retry_after) == ("poisoned", 2.5)


async def test_what_is_lost_is_told(client: Client, scripted: Responder) -> None:
    """Responses that came while the connection was down are gone, and an answer with holes is none."""
    stream = await client.stream(MODEL, floats(1.0))
    first = asyncio.ensure_future(step(stream))
    frame = await scripted.frame()
    scripted.say(frame, response(frame, 0), response(frame, 3))
    assert await first == 0
    with pytest.raises(Failed, match="1 to 2") as failed:
        await stream.next()
    assert failed.value.reason == "bus_unavailable"
    assert (await scripted.heard()).ids == [frame.requests[0].id]


async def test_errors_of_frames_and_of_other_versions(client: Client, scripted: Responder) -> None:
    for data, reason in (
        ([1, "w", "", [], [], ["malformed_message", "no frame", None]], "malformed_message"),
        ([1, "w", "", [], [], ["unsupported_version", "version 1"]], "unsupported_version"),
        ([9, "w"], "unsupported_version"),
        ([9, "w", {"all": "is different"}], "unsupported_version"),
    ):
        asked = client.begin(MODEL, floats(1.0))
        frame = await scripted.frame()
        scripted.say_raw(frame, msgpack.packb(data))
        with pytest.raises(Failed) as failed:
            await asked.answer()
        assert failed.value.reason == reason


async def test_an_answer_in_the_store_is_not_for_this_client(client: Client, scripted: Responder) -> None:
    asked = client.begin(MODEL, floats(1.0))
    frame = await scripted.frame()
    scripted.say(frame, response(frame, 0, flags=LAST, claim="out-1", claim_bytes=5))
    with pytest.raises(Failed, match="too large") as failed:
        await asked.answer()
    assert failed.value.reason == "unsupported"


async def test_who_gives_up_cancels(client: Client, scripted: Responder) -> None:
    asked = client.begin(MODEL, floats(1.0))
    frame = await scripted.frame()
    await asked.abort()
    with pytest.raises(Failed) as failed:
        await asked.answer()
    assert failed.value.reason == "cancelled"
    told = await scripted.heard()
    assert (told.reply_to, told.ids, told.taken) == (frame.reply_to, [frame.requests[0].id], [])


async def test_no_response_at_all(client: Client, scripted: Responder) -> None:
    asked = client.begin(MODEL, floats(1.0))
    frame = await scripted.frame()
    scripted.say(frame, response(frame, 0, flags=NOTHING_MORE))
    assert await asked.answer() is None
