"""Redelivered and cancelled requests of one model, on the memory bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from qinfer.bus import QueueSpec
from qinfer.bus.memory.queue import MemoryDelivery
from qinfer.deadletter import Attempt, decode_letter
from qinfer.errors import BusUnavailable
from qinfer.message import CancelFrame, Request, encode
from qinfer_workers.cancellation import _MAX_REMEMBERED, Cancellations
from tests.helpers.waiting import Mailbox, eventually
from tests.workers.support import config_of, double, request_of
from tests.workers.test_service import PATIENT, Stage, gate, held_by, reason_of, stage

__all__ = ["gate", "stage"]

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNRECORDED = Attempt("", 0)
IN_GROUP = Attempt("worker-0", 1, ["r1", "r2"])
ALONE = Attempt("worker-0", 2)


async def deliver_once(stage: Stage, *requests: Request, spec: QueueSpec = PATIENT) -> MemoryDelivery:
    """A worker takes the frame of these requests and dies: it is given back unanswered."""
    delivery = await take_once(stage, *requests, spec=spec)
    delivery.nak()
    return delivery


async def take_once(stage: Stage, *requests: Request, spec: QueueSpec = PATIENT) -> MemoryDelivery:
    """A worker takes the frame of these requests."""
    await stage.worker.declare("stub", spec)
    inbox = Mailbox()
    consumer = await stage.worker.consume("stub", "", inbox)
    consumer.grant(1)
    stage.send(*requests)
    (delivery,) = await inbox.take()
    await consumer.close()
    assert isinstance(delivery, MemoryDelivery)
    return delivery


def key_of(delivery: MemoryDelivery) -> str:
    return f"stub.{delivery.sequence}-{delivery.stored_us}"


async def record(stage: Stage, delivery: MemoryDelivery, runs: dict[int, Sequence[Attempt]]) -> None:
    """What workers that died of the frame have left behind."""
    await stage.worker.put(stage.worker.names.suspects_bucket, key_of(delivery), msgspec.msgpack.encode(runs))


async def recorded(stage: Stage, delivery: MemoryDelivery) -> Any:
    found = await stage.worker.get(stage.worker.names.suspects_bucket, key_of(delivery))
    return None if found is None else msgspec.msgpack.decode(found[0], type=dict[int, list[Attempt]])


async def test_redelivered_requests_run_in_smaller_batches(stage: Stage) -> None:
    delivery = await deliver_once(stage, *(request_of(number) for number in range(1, 7)))
    service = await stage.serve()
    got = await stage.responses(6)
    assert {response.attempt for response in got.values()} == {2}
    assert stage.stubs["1"].executed == [[1, 2], [3, 4], [5, 6]]
    assert service.versions["1"].recorder.stats.closed == {"isolated": 3}
    await eventually(lambda: stage.queued == 0)
    await eventually(lambda: not stage.worker._broker.buckets[stage.worker.names.suspects_bucket])  # type: ignore[union-attr]
    assert await recorded(stage, delivery) is None


async def test_what_died_in_a_small_batch_runs_alone(stage: Stage) -> None:
    delivery = await deliver_once(stage, request_of(1), request_of(2), request_of(3))
    await record(stage, delivery, {0: [UNRECORDED, IN_GROUP], 1: [UNRECORDED, IN_GROUP], 2: [UNRECORDED]})
    await stage.serve()
    assert set(await stage.responses(3)) == {1, 2, 3}
    assert stage.stubs["1"].executed == [[1], [2], [3]]


async def test_a_run_is_recorded_before_it_begins(stage: Stage, gate: threading.Event) -> None:
    delivery = await deliver_once(stage, request_of(1), request_of(2), request_of(3))
    await record(stage, delivery, {place: [UNRECORDED, IN_GROUP] for place in range(3)})
    await stage.serve(held_by(gate))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    runs = await recorded(stage, delivery)
    assert [len(runs[place]) for place in range(3)] == [3, 2, 2]
    assert (runs[0][-1].worker, runs[0][-1].mates) == ("worker-1", [])
    gate.set()
    await stage.responses(3)


async def test_what_was_answered_is_recorded_with_the_next_run(stage: Stage, gate: threading.Event) -> None:
    delivery = await deliver_once(stage, request_of(1), request_of(2))
    await record(stage, delivery, {place: [UNRECORDED, IN_GROUP] for place in range(2)})

    def second_waits(batch: Any) -> Any:
        return double(batch) if batch.members[0].request.id == 1 else held_by(gate)(batch)

    await stage.serve(second_waits)
    await stage.responses(1)
    await eventually(lambda: len(stage.stubs["1"].executed) == 2)
    runs = await recorded(stage, delivery)
    assert runs[0] == [], "else it would look as if it had killed a worker on its own"
    assert len(runs[1]) == 3
    gate.set()
    await stage.responses(1)


async def test_who_was_answered_is_not_run_or_suspected_again(stage: Stage) -> None:
    delivery = await deliver_once(stage, request_of(1), request_of(2))
    await record(stage, delivery, {0: [], 1: [UNRECORDED, IN_GROUP]})
    await stage.serve()
    assert set(await stage.responses(1)) == {2}
    assert stage.stubs["1"].executed == [[2]]
    await eventually(lambda: stage.queued == 0)


async def test_who_killed_alone_is_given_up(stage: Stage) -> None:
    culprit = request_of(1, traceparent=TRACE, tenant="a")
    delivery = await deliver_once(stage, culprit, request_of(2))
    history = [UNRECORDED, IN_GROUP, ALONE]
    await record(stage, delivery, {0: history, 1: [UNRECORDED, IN_GROUP]})
    service = await stage.serve()
    got = await stage.responses(2)
    assert {number: reason_of(response) for number, response in got.items()} == {1: "poisoned", 2: ""}
    assert stage.stubs["1"].executed == [[2]]
    assert service.versions["1"].recorder.stats.failed == {"poisoned": 1}
    (letter,) = [decode_letter(letter.data) for letter in await stage.worker.letters()]
    assert (letter.model, letter.request_id, letter.tenant) == ("stub", "r1", "a")
    assert letter.trace_id == TRACE[3:35]
    assert letter.attempts == history
    assert letter.complete
    assert letter.request.inputs[0].numpy().tolist() == culprit.inputs[0].numpy().tolist()


@pytest.mark.parametrize(
    "history",
    [
        [UNRECORDED, ALONE],  # it may have two more
        [UNRECORDED, IN_GROUP, IN_GROUP, IN_GROUP],  # one of its mates may have been it, each time
    ],
)
async def test_who_is_not_known_to_kill_gets_its_run(stage: Stage, history: list[Attempt]) -> None:
    delivery = await deliver_once(stage, request_of(1))
    await record(stage, delivery, {0: history})
    await stage.serve()
    assert reason_of((await stage.responses(1))[1]) == ""


async def test_a_letter_that_is_too_large_has_no_data(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = await deliver_once(stage, request_of(1, rows=8, columns=2))
    await record(stage, delivery, {0: [UNRECORDED, IN_GROUP, ALONE]})
    monkeypatch.setattr(stage.worker, "max_payload", 400)
    await stage.serve()
    await stage.responses(1)
    (letter,) = [decode_letter(letter.data) for letter in await stage.worker.letters()]
    assert not letter.complete
    (tensor,) = letter.request.inputs
    assert (tensor.shape, bytes(tensor.data)) == ([8, 2], b"")


async def test_nothing_else_runs_meanwhile(stage: Stage, gate: threading.Event) -> None:
    await deliver_once(stage, request_of(1))
    service = await stage.serve(held_by(gate))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    stage.send(request_of(2))
    await eventually(lambda: service.versions["1"].batcher.waiting == 1)  # type: ignore[union-attr]
    gate.set()
    assert set(await stage.responses(2)) == {1, 2}
    assert stage.stubs["1"].executed == [[1], [2]]


async def test_a_run_that_a_stopping_worker_cut_short_does_not_count(
    stage: Stage, gate: threading.Event
) -> None:
    delivery = await deliver_once(stage, request_of(1))
    service = await stage.serve(held_by(gate))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    assert len((await recorded(stage, delivery))[0]) == 2
    await service.drain(0.01)
    assert (await recorded(stage, delivery))[0] == [Attempt("", 0, [])]
    assert stage.queued == 1, "it was given back"
    gate.set()


async def test_records_that_cannot_be_kept_cost_time_only(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver_once(stage, request_of(1), request_of(2))
    put = stage.worker.put
    failures = iter([True])

    async def unreliable(bucket: str, key: str, value: bytes) -> None:
        if next(failures, False):
            raise BusUnavailable("the line is cut")
        await put(bucket, key, value)

    monkeypatch.setattr(stage.worker, "put", unreliable)
    monkeypatch.setattr("qinfer_workers.isolation._PAUSE", 0.01)
    await stage.serve()
    got = await stage.responses(2)
    assert {(reason_of(response), response.attempt) for response in got.values()} == {("", 3)}
    assert stage.stubs["1"].executed == [[1, 2]]


async def test_what_expired_meanwhile_is_not_run(stage: Stage) -> None:
    now = time.time_ns() // 1000
    await deliver_once(stage, request_of(1, deadline_us=now - 1), request_of(2))
    await stage.serve()
    got = await stage.responses(2)
    assert {number: reason_of(response) for number, response in got.items()} == {
        1: "deadline_exceeded",
        2: "",
    }


async def test_what_waits_for_the_instances_has_not_run(stage: Stage, gate: threading.Event) -> None:
    delivery = await take_once(stage, request_of(1))
    service = await stage.serve(held_by(gate))
    stage.send(request_of(2))
    await eventually(lambda: stage.stubs["1"].executed == [[2]])
    delivery.nak()
    await eventually(lambda: service.versions["1"].batches._held)
    assert await recorded(stage, delivery) is None, "if the worker died now, it would not be of this one"
    gate.set()
    assert set(await stage.responses(2)) == {1, 2}
    assert stage.stubs["1"].executed == [[2], [1]]


async def test_what_expires_while_it_waits_for_the_instances_is_not_run(
    stage: Stage, gate: threading.Event
) -> None:
    now = time.time_ns() // 1000
    delivery = await take_once(stage, request_of(1, deadline_us=now + 50_000))
    service = await stage.serve(held_by(gate))
    stage.send(request_of(2))
    await eventually(lambda: stage.stubs["1"].executed == [[2]])
    delivery.nak()
    await eventually(lambda: service.versions["1"].batches._held)
    await eventually(lambda: all(member.is_cancelled() for member in service._isolation.members()))
    gate.set()
    got = await stage.responses(2)
    assert {number: reason_of(response) for number, response in got.items()} == {
        1: "deadline_exceeded",
        2: "",
    }
    assert stage.stubs["1"].executed == [[2]]


async def test_an_instance_that_hangs_is_waited_for_no_longer_than_somebody_waits(
    stage: Stage, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer_workers.alone._HOLD_TIMEOUT", 0.01)
    now = time.time_ns() // 1000
    delivery = await take_once(stage, request_of(1, deadline_us=now + 50_000))
    service = await stage.serve(held_by(gate))
    stage.send(request_of(2))
    await eventually(lambda: stage.stubs["1"].executed == [[2]])
    delivery.nak()
    assert reason_of((await stage.responses(1))[1]) == "deadline_exceeded"
    await eventually(lambda: not service._isolation._turn.locked())
    gate.set()
    await stage.responses(1)


async def test_a_redelivered_request_that_hangs_does_not_hold_up_the_others(
    stage: Stage, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer_workers.alone._HOLD_TIMEOUT", 0.01)
    now = time.time_ns() // 1000
    await deliver_once(stage, request_of(1, deadline_us=now + 50_000))
    service = await stage.serve(held_by(gate))
    await eventually(lambda: stage.stubs["1"].executed == [[1]])
    await eventually(lambda: not service._isolation._turn.locked())
    assert stage.queued == 1, "it has not ended"
    gate.set()
    await eventually(lambda: stage.queued == 0)


# Cancelled requests


def cancel(stage: Stage, *numbers: int) -> None:
    stage.client.cancel("stub", encode(CancelFrame(1, stage.client.reply_to, list(numbers))))


async def test_a_cancelled_request_is_taken_out_of_its_window(stage: Stage, gate: threading.Event) -> None:
    service = await stage.serve(held_by(gate))
    stage.send(request_of(1))
    await eventually(lambda: stage.stubs["1"].executed)
    stage.send(request_of(2), request_of(3))
    await eventually(lambda: service.versions["1"].batcher.waiting == 2)  # type: ignore[union-attr]
    cancel(stage, 2)
    await eventually(lambda: service.versions["1"].batcher.waiting == 1)  # type: ignore[union-attr]
    gate.set()
    assert set(await stage.responses(2)) == {1, 3}
    assert stage.stubs["1"].executed == [[1], [3]]
    assert service.versions["1"].recorder.stats.failed == {"cancelled": 1}
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_a_cancelled_request_in_the_queue_is_skipped(stage: Stage) -> None:
    service = await stage.serve()
    cancel(stage, 1, 7)
    await eventually(lambda: bool(service._cancellations))
    stage.send(request_of(1), request_of(2))
    assert set(await stage.responses(1)) == {2}
    assert stage.stubs["1"].executed == [[2]]
    await eventually(lambda: stage.queued == 0)
    assert service._credit.held_rows == 0


async def test_cancellations_are_the_senders_own(stage: Stage) -> None:
    service = await stage.serve()
    stage.client.cancel("stub", encode(CancelFrame(1, "_INBOX.other.r", [1])))
    await eventually(lambda: bool(service._cancellations))
    stage.send(request_of(1))
    assert set(await stage.responses(1)) == {1}


async def test_a_running_batch_that_nobody_wants_is_asked_to_stop(stage: Stage) -> None:
    stopped = threading.Event()
    halfway = threading.Event()

    def patient(batch: Any) -> Any:
        first, second = batch.members
        while not first.is_cancelled():
            stopped.wait(0.001)
        assert not batch.is_cancelled()
        halfway.set()
        while not batch.is_cancelled():
            stopped.wait(0.001)
        assert second.is_cancelled()
        stopped.set()
        raise RuntimeError("stopped")

    service = await stage.serve(patient)
    stage.send(request_of(1), request_of(2))
    await eventually(lambda: stage.stubs["1"].executed)
    cancel(stage, 1)
    await eventually(halfway.is_set)
    cancel(stage, 2)
    await eventually(stopped.is_set)
    await eventually(lambda: stage.queued == 0)
    assert stage.stubs["1"].executed == [[1, 2]], "and not by halves again"
    assert not stage.replies.items
    assert service.versions["1"].recorder.stats.failed == {"cancelled": 2}


async def test_a_passed_deadline_asks_a_running_batch_to_stop_too(stage: Stage) -> None:
    stopped = threading.Event()

    def patient(batch: Any) -> Any:
        while not batch.is_cancelled():
            stopped.wait(0.001)
        stopped.set()
        return double(batch)

    await stage.serve(patient)
    now = time.time_ns() // 1000
    stage.send(request_of(1, deadline_us=now + 50_000), sent_us=now)
    await eventually(stopped.is_set)
    await stage.responses(1)


async def test_garbage_for_a_cancellation_is_harmless(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.serve()
    stage.client.cancel("stub", b"\xc1")
    stage.send(request_of(1))
    assert set(await stage.responses(1)) == {1}
    assert "cannot be read" in caplog.text


def test_cancellations_are_remembered_for_a_while_and_bounded() -> None:
    cancellations = Cancellations()
    cancellations.remember("a", range(_MAX_REMEMBERED + 10), 0.0)
    assert not cancellations.take("a", 9)
    assert cancellations.take("a", 10)
    assert not cancellations.take("a", 10)
    cancellations.remember("b", [1], 1000.0)
    assert not cancellations.take("a", 11), "that was long ago"
    assert cancellations.take("b", 1)
    assert not cancellations


async def test_the_backlog_is_told(stage: Stage, gate: threading.Event) -> None:
    service = await stage.serve(held_by(gate), config=config_of(max_batch_size=2))
    stage.send(request_of(1))
    await eventually(lambda: stage.stubs["1"].executed)
    for number in range(2, 42):
        stage.send(request_of(number))
    await eventually(lambda: service._credit.held_rows >= 8)
    gate.set()
    frames = []
    while sum(len(frame.responses) for frame in frames) < 41:
        frames += await stage.replies.take()
    backlogs = [frame.backlog for frame in frames]
    assert max(backlogs) > 20
    assert backlogs[-1] == 0
