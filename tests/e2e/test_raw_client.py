"""Clients that speak the protocol by hand, with nats-py and plain `msgpack`; and those that do not."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from qinfer.message import Request
from qinfer.naming import Names
from tests.helpers import http
from tests.helpers.http import floats, infer
from tests.helpers.served_models import AUTO, IDENTITY, PICKY, RAISES, VERSIONS
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually

MODEL = IDENTITY["FP32"]
FINAL = 1


class RawClient:
    """What a client in any language would do."""

    def __init__(self, client: Client, names: Names) -> None:
        self.client = client
        self.names = names
        self.inbox = client.new_inbox()
        self.frames: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.confirmations: asyncio.Queue[bytes] = asyncio.Queue()

    async def start(self) -> None:
        async def received(message: Msg) -> None:
            await self.frames.put(msgpack.unpackb(message.data))

        async def confirmed(message: Msg) -> None:
            await self.confirmations.put(message.data)

        await self.client.subscribe(self.inbox, cb=received)
        await self.client.subscribe(f"{self.inbox}.ack", cb=confirmed)

    async def publish(self, payload: bytes, model: str = MODEL, version: str = "") -> None:
        """Publish and wait until the broker has stored it."""
        await self.client.publish(self.names.requests(model, version), payload, reply=f"{self.inbox}.ack")
        async with asyncio.timeout(PATIENCE):
            assert b'"error"' not in await self.confirmations.get()

    async def frame(self) -> list[Any]:
        async with asyncio.timeout(PATIENCE):
            return await self.frames.get()

    async def responses(self, count: int) -> list[list[Any]]:
        """That many responses, whatever frames they come in."""
        found: list[list[Any]] = []
        while len(found) < count:
            frame = await self.frame()
            assert frame[0] == 1
            assert frame[5] is None, frame
            found += frame[4]
        return found

    def frame_of(self, *requests: list[Any], **changes: Any) -> bytes:
        told = {
            "version": 1,
            "reply_to": self.inbox,
            "model": MODEL,
            "model_version": "",
            "sent_us": time.time_ns() // 1000,
            "in_flight": len(requests),
            "requests": list(requests),
            **changes,
        }
        return bytes(msgpack.packb(list(told.values())))


def request(number: int, *values: float, **changes: Any) -> list[Any]:
    """A request with one FP32 row."""
    raw = struct.pack(f"<{len(values)}f", *values)
    told = {"id": number, "request_id": f"r{number}", "inputs": [["x", "FP32", [1, len(values)], raw]]}
    return list({**told, **changes}.values())


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository) as made:
        await made.add_worker(MODEL, VERSIONS, PICKY, AUTO)
        yield made


@asynccontextmanager
async def raw_client(fleet: Fleet) -> AsyncIterator[RawClient]:
    client = await nats.connect(fleet.nats)
    try:
        raw = RawClient(client, Names(fleet.namespace))
        await raw.start()
        yield raw
    finally:
        await client.close()


@pytest_asyncio.fixture
async def raw(running: Fleet) -> AsyncIterator[RawClient]:
    async with raw_client(running) as made:
        yield made


async def test_ask_and_be_answered(raw: RawClient, running: Fleet) -> None:
    await raw.publish(raw.frame_of(request(7, 1.5, 2.5), request(8, 3.5)))
    answers = {answer[0]: answer for answer in await raw.responses(2)}
    for number, values in ((7, [1.5, 2.5]), (8, [3.5])):
        _, attempt, error, outputs, parameters, flags, queue_us, *_ = answers[number]
        assert (attempt, error, parameters, flags) == (1, None, {}, FINAL)
        assert outputs == [["y", "FP32", [1, len(values)], struct.pack(f"<{len(values)}f", *values)]]
        assert queue_us >= 0
    await eventually(lambda: not running.workers[0].services[MODEL]._held, "everything is acked")
    assert await running.queued(MODEL) == 0


async def test_what_the_batch_was_is_told(raw: RawClient, running: Fleet) -> None:
    await raw.publish(raw.frame_of(request(1, 1.0), request(2, 2.0), request(3, 3.0)))
    version, worker, model_version, batch, responses, error, *_ = await raw.frame()
    assert (version, worker, model_version, error) == (1, running.workers[0].id, "1", None)
    assert len(responses) == 3
    rows, requests, *durations = batch
    assert (rows, requests) == (3, 3)
    assert all(duration >= 0 for duration in durations)


async def test_versions_are_routed(raw: RawClient) -> None:
    for version, factor in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        await raw.publish(
            raw.frame_of(request(1, 3.0), model=VERSIONS, model_version=version), VERSIONS, version
        )
        frame = await raw.frame()
        assert frame[2] == str(int(factor))
        assert frame[4][0][3][0][3] == struct.pack("<f", 3.0 * factor)


async def test_fields_to_come_are_ignored(raw: RawClient) -> None:
    full = [*request(5, 1.0), [], 0, {}, 0, "", 0, "", "", "", "", 0, "", 0]
    assert len(full) == len(msgspec.structs.fields(Request))
    full += ["a field", {"of": ["version", 1.5]}]
    payload = msgpack.unpackb(raw.frame_of(full))
    await raw.publish(msgpack.packb([*payload, "more", 1]))
    ((number, _, error, *_),) = await raw.responses(1)
    assert (number, error) == (5, None)


async def test_a_deadline_is_a_budget_whatever_the_clock(raw: RawClient) -> None:
    """The sender's clock is years off; only the difference of its own times counts."""
    for sent in (1_000_000, 4_000_000_000_000_000):
        given = {"outputs": [], "deadline_us": sent + 10_000_000}
        await raw.publish(raw.frame_of(request(1, 1.0, **given), sent_us=sent))
        ((_, _, error, *_),) = await raw.responses(1)
        assert error is None
        given = {"outputs": [], "deadline_us": sent - 1}
        await raw.publish(raw.frame_of(request(2, 1.0, **given), sent_us=sent))
        ((_, _, error, *_),) = await raw.responses(1)
        assert error[0] == "deadline_exceeded"


BAD_REQUESTS: dict[str, tuple[list[Any], str]] = {
    "no inputs": (request(9, inputs=[]), "no inputs"),
    "unknown input": (request(9, inputs=[["z", "FP32", [1, 1], bytes(4)]]), "'x' is missing"),
    "wrong datatype": (request(9, inputs=[["x", "INT8", [1, 1], bytes(1)]]), "INT8"),
    "no such datatype": (request(9, inputs=[["x", "FLOAT", [1, 1], bytes(4)]]), "FLOAT"),
    "too few bytes": (request(9, inputs=[["x", "FP32", [1, 2], bytes(4)]]), "needs 8 bytes; got 4"),
    "too many rows": (request(9, inputs=[["x", "FP32", [17, 1], bytes(68)]]), "17 rows"),
    "negative shape": (request(9, inputs=[["x", "FP32", [-1, -4], bytes(16)]]), "'x'"),
    "absurd shape": (request(9, inputs=[["x", "FP32", [1, 2**63], bytes(4)]]), "'x'"),
    "no shape": (request(9, inputs=[["x", "FP32", [], bytes(4)]]), "batch dimension"),
    "unknown output": (request(9, 1.0, outputs=["z"]), "'z'"),
}


@pytest.mark.parametrize("model", [MODEL, AUTO])
async def test_a_bad_request_does_not_spoil_its_frame(raw: RawClient, model: str) -> None:
    good = [request(number, float(number)) for number in range(3)]
    for name, (bad, part) in BAD_REQUESTS.items():
        await raw.publish(raw.frame_of(*good[:2], bad, good[2], model=model), model)
        answers = {answer[0]: answer for answer in await raw.responses(4)}
        assert [answers[number][2] for number in range(3)] == [None] * 3, name
        reason, message, _ = answers[9][2]
        assert reason == "invalid_request", name
        assert part in message, name


async def test_a_model_error_comes_back_as_itself(raw: RawClient) -> None:
    await raw.publish(raw.frame_of(request(1, RAISES), request(2, 1.0), model=PICKY), PICKY)
    answers = {answer[0]: answer for answer in await raw.responses(2)}
    reason, message, retry_after = answers[1][2]
    assert (reason, retry_after) == ("model_failed", None)
    assert "thirteen" in message
    assert answers[2][2] is None


async def still_works(fleet: Fleet, raw: RawClient) -> None:
    await raw.publish(raw.frame_of(request(77, 1.25)))
    (answer,) = await raw.responses(1)
    assert answer[0] == 77
    async with http.connect(fleet.port) as connection:
        assert (await connection.ask(infer(MODEL, floats(0.5)))).outputs() == {"y": [0.5]}
    await eventually(lambda: not fleet.workers[0].services[MODEL]._held, "nothing is held")
    assert fleet.workers[0].services[MODEL]._credit.held_rows == 0
    assert await fleet.queued(MODEL) == 0


async def test_garbage_that_says_whom_to_answer_is_answered(running: Fleet, raw: RawClient) -> None:
    for rest in (
        ["not", "a", "frame"],
        [MODEL, "", 0, 0, "no requests"],
        [MODEL, "", 0, 0, [[1]]],
        [MODEL, "", "yesterday", 0, []],
        [MODEL, "", 0, 0, [request(1, inputs=[["x", "FP32", [1.5], b""]])]],
    ):
        await raw.publish(msgpack.packb([1, raw.inbox, *rest]))
        frame = await raw.frame()
        assert frame[4] == [], rest
        assert frame[5][0] == "malformed_message", rest
    await still_works(running, raw)


async def test_other_versions_of_the_protocol_are_told_so(running: Fleet, raw: RawClient) -> None:
    for version in (0, 2, 99):
        for payload in ([version, raw.inbox], [version, raw.inbox, {"all": "is different"}]):
            await raw.publish(msgpack.packb(payload))
            reason, message, _ = (await raw.frame())[5]
            assert reason == "unsupported_version"
            assert str(version) in message
    await still_works(running, raw)


async def test_floods_of_garbage_do_not_stop_a_worker(running: Fleet, raw: RawClient) -> None:
    """More than its credit of each kind: an unanswerable message must not take credit with it."""
    garbage = [
        b"",
        b"\x00",
        b"hello",
        b"\xc1" * 100,
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\x90",
        msgpack.packb({"version": 1}),
        msgpack.packb([1, "not.an.inbox", "x"]),
        msgpack.packb([1, "", MODEL, "", 0, 0, []]),
        raw.frame_of(),  # no requests at all
        raw.frame_of(model_version="7"),
    ]
    for _ in range(300):
        for payload in garbage:
            await raw.client.publish(raw.names.requests(MODEL), payload)
    await raw.client.flush()
    await still_works(running, raw)


async def test_replies_go_to_inboxes_only(running: Fleet, raw: RawClient) -> None:
    """A worker publishes nothing where a client's word would send it, nor does it work for nobody."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    await raw.client.subscribe("some.>", cb=hear)
    await raw.client.subscribe("$JS.API.STREAM.DELETE.>", cb=hear)
    for subject in ("", "some.subject", "$JS.API.STREAM.DELETE.x", "_INBOX.>", "_INBOX.*.x", "_INBOX.a b"):
        await raw.publish(raw.frame_of(request(1, 1.0), reply_to=subject))
    await still_works(running, raw)
    assert heard == []
    assert raw.frames.empty()


async def test_model_names_of_frames_do_not_matter(running: Fleet, raw: RawClient) -> None:
    """The queue a frame came through says whose it is; what it says itself is never a subject or a path."""
    await raw.publish(raw.frame_of(request(1, 1.0), model="../../etc/passwd"))
    ((number, _, error, *_),) = await raw.responses(1)
    assert (number, error) == (1, None)
    await still_works(running, raw)


async def test_a_version_that_nobody_has(running: Fleet, raw: RawClient) -> None:
    await raw.publish(raw.frame_of(request(1, 1.0), model_version="7"))
    ((_, _, error, *_),) = await raw.responses(1)
    assert error[0] == "model_not_found"
    await still_works(running, raw)


async def test_garbage_at_a_gateways_inbox_is_dropped(running: Fleet, raw: RawClient) -> None:
    """Late, doubled and made-up responses find nobody."""
    inbox = running.dispatcher._bus.reply_to
    before = running.dispatcher.dropped
    response = [1, "liar", "1", [], [[number, 1, None, []] for number in (0, 1, 2**40)]]
    payloads = [
        b"",
        b"nonsense",
        msgpack.packb([1, "liar"]),
        msgpack.packb([9, "liar"]),
        msgpack.packb(response),
    ]
    for payload in payloads:
        await raw.client.publish(inbox, payload)
    await raw.client.flush()
    await eventually(lambda: running.dispatcher.dropped >= before + len(payloads), "all are dropped")
    await still_works(running, raw)
