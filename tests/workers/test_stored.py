"""What goes by way of the broker's store: large tensors, and answers to requests with an idempotency key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qinfer.answers import find_kept, keep
from qinfer.bus import QueueSpec
from qinfer.bus.base import Data
from qinfer.bus.memory import MemoryBus
from qinfer.bus.memory.queue import MemoryDelivery
from qinfer.claims import Claims
from qinfer.errors import BusUnavailable, QueueFull
from qinfer.message import (
    KEPT,
    BatchInfo,
    CancelFrame,
    Request,
    Response,
    ResponseFrame,
    WireError,
    encode,
    redeem_claim,
)
from qinfer_workers.backends.base import OutputsWithParameters
from tests.helpers.waiting import eventually
from tests.workers.support import config_of, double, request_of
from tests.workers.test_service import PATIENT, Stage, gate, held_by, reason_of, stage

__all__ = ["gate", "stage"]  # fixtures

NAME = "b" * 64
IMPATIENT = QueueSpec(storage="memory", ack_wait=0.2)


async def claimed(stage: Stage, number: int, **more: Any) -> Request:
    """A request whose tensors lie in the store."""
    request = request_of(number, **more)
    claims = Claims(stage.client, max_bytes=1 << 30)
    request.claim, request.claim_bytes = await claims.deposit("in", request.inputs)
    return request


def blobs(stage: Stage) -> dict[str, bytes]:
    return stage.client._connection.blobs


async def kept_answer(stage: Stage) -> Response:
    kept = await find_kept(stage.client, NAME)
    assert kept is not None
    return kept.response


# Large tensors


async def test_claimed_tensors_are_fetched_before_they_are_run(stage: Stage) -> None:
    service = await stage.serve()
    request = await claimed(stage, 1, rows=2)
    stage.send(request, request_of(2))
    got = await stage.responses(2)
    assert got[1].outputs[0].numpy().tolist() == [[2, 2]] * 2
    assert got[2].outputs[0].numpy().tolist() == [[4, 4]]
    assert set(blobs(stage)) == {request.claim}, "they are their sender's to remove"
    await eventually(lambda: stage.queued == 0)
    assert service._claims.held_bytes == 0
    assert service._credit.held_rows == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("gone", "unavailable"),
        ("size", "malformed_message"),
        ("other", "malformed_message"),
        ("shape", "invalid_request"),
        ("limit", "payload_too_large"),
    ],
)
async def test_a_claim_that_is_wrong_costs_its_own_request_alone(
    stage: Stage, damage: str, reason: str
) -> None:
    service = await stage.serve()
    wrong = await claimed(stage, 1)
    match damage:
        case "gone":
            await stage.client.delete_blob(wrong.claim)
        case "size":
            wrong.claim_bytes -= 1
        case "other":
            await stage.client.put_blob(wrong.claim, b"\x90")
        case "shape":
            wrong.inputs[0].shape = [2, 2]
        case "limit":
            wrong.claim_bytes = service._claims.max_bytes + 1
    stage.send(wrong, request_of(2))
    got = await stage.responses(2)
    assert (reason_of(got[1]), reason_of(got[2])) == (reason, "")
    await eventually(lambda: stage.queued == 0)
    assert service._claims.held_bytes == 0
    assert service._credit.held_rows == 0


async def test_a_claim_makes_no_room(stage: Stage) -> None:
    service = await stage.serve()
    request = await claimed(stage, 1)
    request.claim_bytes = -(1 << 40)
    stage.send(request)
    (refusal,) = await stage.replies.take()
    assert refusal.error is not None
    assert refusal.error.reason == "invalid_request"
    assert service._claims.held_bytes == 0


@pytest.mark.parametrize("field", ["claim", "idempotency"])
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a.b", ">", "a" * 101, "a" * 100_000, "\x00", "a\r\nPUB x 0"]
)
async def test_a_name_that_leads_elsewhere_never_gets_to_the_broker(
    stage: Stage, field: str, name: str
) -> None:
    await stage.serve()
    request = request_of(1)
    setattr(request, field, name)
    stage.send(request)
    (refusal,) = await stage.replies.take()
    assert refusal.error is not None
    assert refusal.error.reason == "invalid_request"
    await eventually(lambda: stage.queued == 0)
    assert stage.stubs["1"].executed == []
    stage.send(request_of(2))
    assert set(await stage.responses(1)) == {2}


async def test_what_a_worker_holds_of_claims_is_bounded(stage: Stage, gate: threading.Event) -> None:
    service = await stage.serve(held_by(gate), config=config_of(max_batch_size=1))
    requests = [await claimed(stage, number) for number in range(1, 6)]
    service._claims.max_bytes = 2 * requests[0].claim_bytes
    for request in requests:
        stage.send(request)
    await eventually(lambda: service._claims.held_bytes == service._claims.max_bytes)
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    assert service._claims.held_bytes == service._claims.max_bytes
    gate.set()
    assert set(await stage.responses(5)) == {1, 2, 3, 4, 5}
    await eventually(lambda: service._claims.held_bytes == 0)


async def test_frames_that_wait_for_their_tensors_take_credit(stage: Stage) -> None:
    _, go_on = slow_reads(stage.worker)
    service = await stage.serve(config=config_of(max_batch_size=2))
    for number in range(1, 41):
        stage.send(await claimed(stage, number))
        for _ in range(5):
            await asyncio.sleep(0)
    assert 8 <= len(service._held) <= 16, "what it may hold, and what was asked for before"
    go_on.set()
    assert len(await stage.responses(40)) == 40


async def test_a_request_that_is_cancelled_while_its_tensors_come(stage: Stage) -> None:
    reading, go_on = slow_reads(stage.worker)
    service = await stage.serve()
    stage.send(await claimed(stage, 1))
    await reading.wait()
    stage.client.cancel("stub", encode(CancelFrame(1, stage.client.reply_to, [1])))
    await eventually(lambda: service._cancellations)
    go_on.set()
    await eventually(lambda: stage.queued == 0)
    assert stage.stubs["1"].executed == []
    assert service._claims.held_bytes == 0


async def test_a_worker_that_drains_gives_back_what_is_not_complete(stage: Stage) -> None:
    reading, _ = slow_reads(stage.worker)
    service = await stage.serve()
    stage.send(await claimed(stage, 1))
    await reading.wait()
    await service.drain(0.01)
    assert stage.queued == 1
    assert service._claims.held_bytes == 0


async def test_a_version_that_leaves_takes_what_waits_for_room_along(stage: Stage) -> None:
    service = await stage.serve({"1": double, "2": double})
    service._claims.admit(service._claims.max_bytes)
    stage.send(await claimed(stage, 1), version="1")
    await eventually(lambda: len(service._held) == 1)
    await service.retire(service.versions["1"], 0.01)
    assert (stage.queued, len(service._held)) == (1, 0)
    service._claims.release(service._claims.max_bytes)
    await eventually(lambda: not service._intake._tasks)
    assert service._claims.held_bytes == 0
    assert service._credit.held_rows == 0
    assert stage.stubs["1"].executed == []


async def test_a_broker_that_cannot_be_read_from_costs_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.claims._PAUSE", 0.0)
    monkeypatch.setattr("qinfer_workers.intake._PAUSE", 0.0)
    get, refusals = stage.worker.get_blob, [BusUnavailable("away")] * 6

    async def get_blob(name: str, *, limit: int) -> Data:
        if refusals:
            raise refusals.pop()
        return await get(name, limit=limit)

    monkeypatch.setattr(stage.worker, "get_blob", get_blob)
    service = await stage.serve()
    stage.send(await claimed(stage, 1))
    got = await stage.responses(1)
    assert (reason_of(got[1]), got[1].attempt) == ("", 2)
    await eventually(lambda: service._claims.held_bytes == 0)


def large_for(number: int) -> Any:
    """A model whose answer to one request is too large for a message."""

    def run(batch: Any) -> Any:
        sizes = [1000 if member.request.id == number else 10 for member in batch.members]
        return [
            OutputsWithParameters({"y": np.arange(size, dtype=np.float64)[None]}, parameters={"size": size})
            for size in sizes
        ]

    return run


async def test_an_answer_too_large_for_a_message_goes_through_the_store(stage: Stage) -> None:
    stage.worker.max_payload = 4096
    service = await stage.serve(large_for(3), config=config_of(outputs={"y": "FP64"}))
    stage.send(*(request_of(number) for number in range(1, 5)))
    got = await stage.responses(4)
    assert [got[number].claim for number in (1, 2, 4)] == ["", "", ""]
    large = got[3]
    assert large.claim.startswith("out-")
    assert (large.parameters, large.flags & KEPT) == ({"size": 1000}, 0)
    blob = blobs(stage)[large.claim]
    assert len(blob) == large.claim_bytes
    redeem_claim(large.outputs, blob)
    assert large.outputs[0].numpy().tolist() == [list(range(1000))]
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_a_frame_is_not_acked_before_its_large_answer_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.worker.max_payload = 4096
    go_on = asyncio.Event()
    put = stage.worker.put_blob

    async def slowly(name: str, *parts: Data) -> None:
        await go_on.wait()
        await put(name, *parts)

    monkeypatch.setattr(stage.worker, "put_blob", slowly)
    service = await stage.serve(large_for(1), config=config_of(outputs={"y": "FP64"}))
    stage.send(request_of(1), request_of(2))
    assert set(await stage.responses(1)) == {2}
    assert (stage.queued, len(service._held)) == (1, 1)
    assert service._credit.held_rows == 1, "it still takes room"
    go_on.set()
    assert set(await stage.responses(1)) == {1}
    await eventually(lambda: stage.queued == 0)


@pytest.mark.parametrize("why", ["no room", "limit"])
async def test_an_answer_that_cannot_be_stored(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    async def refuse(*_: object) -> None:
        raise QueueFull("the store is full")

    stage.worker.max_payload = 4096
    service = await stage.serve(large_for(1), config=config_of(outputs={"y": "FP64"}))
    if why == "limit":
        service._claims.max_bytes = 7999
    else:
        monkeypatch.setattr(stage.worker, "put_blob", refuse)
    stage.send(request_of(1), request_of(2))
    got = await stage.responses(2)
    assert (reason_of(got[1]), reason_of(got[2])) == ("payload_too_large", "")
    assert got[1].error is not None
    assert ("--max-claim-bytes" if why == "limit" else "store is full") in got[1].error.message
    await eventually(lambda: stage.queued == 0)


# Idempotency keys


async def test_an_answer_is_kept_before_it_is_told_and_told_before_the_ack(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put, tell, ack = stage.worker.put, stage.worker.reply, MemoryDelivery.ack

    async def noted_put(*args: Any) -> None:
        order.append("keep")
        await put(*args)

    monkeypatch.setattr(stage.worker, "put", noted_put)
    monkeypatch.setattr(stage.worker, "reply", lambda *args: (order.append("tell"), tell(*args)))
    monkeypatch.setattr(MemoryDelivery, "ack", lambda self: (order.append("ack"), ack(self)))
    service = await stage.serve()
    stage.send(request_of(1, idempotency=NAME, fingerprint="print"))
    got = await stage.responses(1)
    await eventually(lambda: "ack" in order)
    assert order == ["keep", "tell", "ack"]
    kept = await kept_answer(stage)
    assert (kept.fingerprint, kept.id) == ("print", 1)
    assert kept.outputs[0].numpy().tolist() == got[1].outputs[0].numpy().tolist() == [[2, 2]]
    assert service._credit.held_rows == 0


@pytest.mark.parametrize("why", ["does not fit", "expired", "model"])
async def test_errors_are_kept_like_answers(stage: Stage, why: str) -> None:
    def run(_: Any) -> Any:
        raise ValueError("no")

    await stage.serve(run)
    columns, deadline, sent = (3 if why == "does not fit" else 2), 0, 0
    if why == "expired":
        sent, deadline = 1_000_000, 1_000_001
    stage.send(
        request_of(1, columns=columns, idempotency=NAME, fingerprint="f", deadline_us=deadline), sent_us=sent
    )
    reason = {"does not fit": "invalid_request", "expired": "deadline_exceeded", "model": "model_failed"}[why]
    assert reason_of((await stage.responses(1))[1]) == reason
    kept = await kept_answer(stage)
    assert (reason_of(kept), kept.fingerprint) == (reason, "f")
    await eventually(lambda: stage.queued == 0)


@pytest.fixture
def lost_acks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MemoryDelivery]]:
    """The first ack is lost, and its frame is delivered again after the ack wait."""
    lost: list[MemoryDelivery] = []
    ack = MemoryDelivery.ack

    def lose(delivery: MemoryDelivery) -> None:
        if lost:
            ack(delivery)
        else:
            lost.append(delivery)

    monkeypatch.setattr(MemoryDelivery, "ack", lose)
    return iter([lost])


async def test_an_answer_is_told_again_when_its_frame_comes_again(
    stage: Stage, lost_acks: Iterator[list[MemoryDelivery]]
) -> None:
    service = await stage.serve(spec=IMPATIENT)
    stage.send(request_of(1, idempotency=NAME), request_of(2))
    assert set(await stage.responses(2)) == {1, 2}
    again = await stage.responses(2)
    assert (again[1].attempt, again[2].attempt) == (2, 2)
    assert again[1].outputs[0].numpy().tolist() == [[2, 2]]
    assert stage.stubs["1"].executed == [[1, 2], [2]], "the one without a key is run again"
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_a_try_that_came_to_nothing_is_run_when_its_frame_comes_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Response(9, 1, WireError("deadline_exceeded", "late"))
    await keep(stage.client, NAME, encode(ResponseFrame(1, "w", "1", BatchInfo(), [earlier])))
    deliver = stage.worker.consume

    async def consume_again(model: str, version: str, handler: Any) -> Any:
        def twice(delivery: MemoryDelivery) -> None:
            delivery.attempt += 1
            handler(delivery)

        return await deliver(model, version, twice)

    monkeypatch.setattr(stage.worker, "consume", consume_again)
    await stage.serve(spec=PATIENT)
    stage.send(request_of(1, idempotency=NAME))
    got = await stage.responses(1)
    assert (reason_of(got[1]), got[1].attempt) == ("", 2)
    assert stage.stubs["1"].executed == [[1]]


@pytest.mark.parametrize("same", [True, False])
async def test_an_answer_that_another_worker_has_kept_stays(
    stage: Stage, gate: threading.Event, same: bool
) -> None:
    service = await stage.serve(held_by(gate))
    stage.send(request_of(1, idempotency=NAME, fingerprint="f"))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    first = Response(7, 1, None, parameters={"first": True}, fingerprint="f" if same else "g")
    await keep(stage.client, NAME, encode(ResponseFrame(1, "w", "1", BatchInfo(), [first])))
    gate.set()
    got = (await stage.responses(1))[1]
    assert reason_of(got) == ("" if same else "key_reused")
    assert got.parameters == ({"first": True} if same else {})
    kept = await kept_answer(stage)
    assert (kept.id, kept.parameters) == (7, {"first": True})
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_a_large_answer_that_is_kept_says_so(stage: Stage) -> None:
    stage.worker.max_payload = 4096
    await stage.serve(large_for(1), config=config_of(outputs={"y": "FP64"}))
    stage.send(request_of(1, idempotency=NAME))
    got = (await stage.responses(1))[1]
    kept = await kept_answer(stage)
    assert got.claim == kept.claim
    assert got.claim.startswith("keep-")
    assert got.flags & KEPT
    assert kept.flags & KEPT


async def test_an_answer_that_cannot_be_kept_is_run_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer_workers.answers._PAUSE", 0.0)
    put, refusals = stage.worker.put, [BusUnavailable("away")] * 8

    async def refuse(bucket: str, key: str, value: bytes) -> None:
        if refusals and bucket == stage.worker.names.answers_bucket:
            raise refusals.pop()
        await put(bucket, key, value)

    monkeypatch.setattr(stage.worker, "put", refuse)
    service = await stage.serve()
    stage.send(request_of(1, idempotency=NAME))
    got = await stage.responses(1)
    assert got[1].attempt == 2, "nothing was told that is not kept"
    assert (await kept_answer(stage)).attempt == 2
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_an_answer_without_wire_form_is_an_error(stage: Stage) -> None:
    def run(batch: Any) -> Any:
        return [OutputsWithParameters({"y": np.ones((1, 2), np.float32)}, parameters={"bad": object()})]  # type: ignore[dict-item]

    await stage.serve(run)
    stage.send(request_of(1, idempotency=NAME))
    assert reason_of((await stage.responses(1))[1]) == "model_failed"
    assert reason_of(await kept_answer(stage)) == "model_failed"


def slow_reads(bus: MemoryBus) -> tuple[asyncio.Event, asyncio.Event]:
    """Blobs begin to be read (first event), and are when they may be (second)."""
    began, go_on = asyncio.Event(), asyncio.Event()
    get = bus.get_blob

    async def slowly(name: str, *, limit: int) -> Data:
        began.set()
        await go_on.wait()
        return await get(name, limit=limit)

    bus.get_blob = slowly  # type: ignore[method-assign]
    return began, go_on
