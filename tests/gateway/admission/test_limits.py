"""The limits of a gateway, and what it remembers of a queue it has nothing in."""

from __future__ import annotations

import pytest

from qinfer.errors import PayloadTooLarge, QueueFull, WaitTooLong
from qinfer.message import BatchInfo, ResponseFrame
from qinfer.proto import ModelConfig
from qinfer.registry import QUEUE_ROWS, ModelRecord, TensorRecord
from qinfer_gateway.admission import Admission, Flight
from qinfer_gateway.catalog import Target

BATCH = 4
LATER = 1e9  # a deadline that refuses nobody


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def target(max_queue_size: int = 0, max_queue_rows: int = 0, queue_bytes: int = 0) -> Target:
    tensor = TensorRecord("x", "FP32", (1,))
    config = ModelConfig(name="m")
    config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
    if max_queue_rows:
        config.parameters[QUEUE_ROWS].string_value = str(max_queue_rows)
    record = ModelRecord(
        "m", "1", "stub", "stub", BATCH, (tensor,), (tensor,), config.SerializeToString(), "", queue_bytes
    )
    return Target("", record, served=True, subject="stub.m")


def answers(backlog: int, *, executed: bool = True) -> ResponseFrame:
    info = BatchInfo(BATCH, BATCH) if executed else BatchInfo()
    return ResponseFrame(1, "w", "1", info, [], backlog=backlog)


def busy(flight: Flight, clock: Clock, *, backlog: int = 40, batches: int = 10, seconds: float = 0.1) -> None:
    """Batches of four rows are answered, one after the other."""
    flight.count = flight.rows = 1000
    for _ in range(batches):
        clock.now += seconds
        flight.count -= BATCH
        flight.rows -= BATCH
        flight.heard(answers(backlog), BATCH, BATCH, clock.now, latency=1.0)


def test_the_rate_of_full_batches() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock)
    assert flight.wait(clock.now) == pytest.approx(960 / 40)


def test_answers_that_never_reached_the_model_are_no_work() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock)
    for _ in range(100):  # expired in the queue: they leave by the hundred
        flight.heard(answers(40, executed=False), 100, BATCH, clock.now, latency=1.0)
    assert flight.drain.rate(clock.now, silence_counts=True) == pytest.approx(40)


def test_two_answers_are_no_evidence() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock, batches=2)
    assert flight.wait(clock.now) is None


def test_the_limit_of_waiting_requests_is_that_of_the_configuration() -> None:
    clock, flight = Clock(), Flight()
    admission = Admission(max_in_flight=10_000, clock=clock)
    busy(flight, clock, backlog=7)
    admission.check(flight.count, flight, target(8), 1, LATER)
    flight.count += 1
    with pytest.raises(QueueFull, match="8 requests wait for model 'm'; its max_queue_size is 8") as caught:
        admission.check(flight.count, flight, target(8), 1, LATER)
    assert caught.value.position == 9
    assert caught.value.reason == "queue_full"
    admission.check(flight.count, flight, target(0), 1, LATER)


def test_a_gateway_with_nothing_in_flight_lets_one_in_to_see() -> None:
    """All it had has expired: what it knows of the queue is old, and nothing will tell it otherwise."""
    clock, flight = Clock(), Flight()
    admission = Admission(max_in_flight=10_000, clock=clock)
    busy(flight, clock)
    while flight.count:
        flight.expired(min(1, flight.rows), 0, clock.now)
    assert flight.backlog, "the queue is not forgotten"
    admission.check(0, flight, target(8), 1, LATER)
    flight.count = flight.rows = 1
    with pytest.raises(QueueFull):
        admission.check(1, flight, target(8), 1, LATER)


def test_time_with_nothing_in_flight_is_no_silence() -> None:
    clock, flight = Clock(), Flight()
    admission = Admission(max_in_flight=10_000, clock=clock)
    busy(flight, clock)
    while flight.count:
        flight.expired(min(1, flight.rows), 0, clock.now)
    clock.now += 30.0
    admission.check(0, flight, target(), 1, LATER)
    flight.count = flight.rows = 4
    assert flight.wait(clock.now) == pytest.approx(0.1)
    clock.now += 2.0
    waiting = flight.wait(clock.now)
    assert waiting is not None
    assert waiting > 1.0, "but this is"


def test_a_broker_that_is_away_is_no_slow_model() -> None:
    clock, flight = Clock(), Flight()
    admission = Admission(max_in_flight=10_000, clock=clock)
    busy(flight, clock)
    clock.now += 3.0
    with pytest.raises(WaitTooLong):
        admission.check(960, flight, target(), 1, clock.now + 20.0)
    flight.cut_off(clock.now - 3.0)
    admission.check(960, flight, target(), 1, clock.now + 20.0)
    flight.heard(answers(40), BATCH, BATCH, clock.now, latency=1.0)
    assert flight.wait(clock.now) == pytest.approx(960 / 40), "what it knew of the model before"


def test_callers_that_leave_take_their_queue_with_them() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock)
    while flight.count:
        flight.left(min(1, flight.rows))
    assert (flight.backlog, flight.rows, flight.wait(clock.now)) == (0, 0, None)


def test_a_rate_of_long_ago_is_forgotten() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock)
    assert flight.drain.rate(clock.now + 50, silence_counts=False) == pytest.approx(40)
    assert flight.drain.rate(clock.now + 70, silence_counts=False) == 0


def test_limits_of_rows_and_requests_need_no_backlog() -> None:
    admission = Admission(max_in_flight=3, max_queue_rows=10, clock=Clock())
    flight = Flight()
    flight.rows = 7
    admission.check(2, flight, target(), 3, LATER)
    with pytest.raises(QueueFull, match=r"7 rows in flight at this gateway, the request 4; the limit is 10"):
        admission.check(2, flight, target(), 4, LATER)
    with pytest.raises(QueueFull, match=r"3 requests in flight; its limit is 3") as caught:
        admission.check(3, flight, target(), 1, LATER)
    error = caught.value
    assert (error.position, error.estimated_wait) == (None, None), "nothing is known"
    assert error.retry_after is not None
    assert 1.0 <= error.retry_after <= 1.5


def test_what_the_broker_would_refuse_does_not_get_that_far() -> None:
    admission = Admission(max_in_flight=3, clock=Clock())
    flight = Flight()
    flight.bytes = 700
    admission.check(2, flight, target(queue_bytes=1000), 1, LATER, 300)
    with pytest.raises(QueueFull, match=r"takes 1000 bytes .*; 700 are in flight .*, the request has 301"):
        admission.check(2, flight, target(queue_bytes=1000), 1, LATER, 301)
    admission.check(2, flight, target(), 1, LATER, 1 << 40)
    with pytest.raises(PayloadTooLarge, match=r"takes 1000 bytes \(queue\.max_bytes\), the request has 1001"):
        admission.check(0, Flight(), target(queue_bytes=1000), 1, LATER, 1001)


@pytest.mark.parametrize("own", [0, 10])
def test_a_model_has_the_last_word_about_its_rows(own: int) -> None:
    admission = Admission(max_in_flight=3, max_queue_rows=own, clock=Clock())
    flight = Flight()
    flight.rows = 15
    admission.check(2, flight, target(max_queue_rows=20), 5, LATER)
    with pytest.raises(QueueFull, match=r"the limit is 20 \(queue\.max_rows\)"):
        admission.check(2, flight, target(max_queue_rows=20), 6, LATER)


def test_the_brokers_refusal_is_given_what_is_known() -> None:
    clock, flight = Clock(), Flight()
    busy(flight, clock)
    error = Admission(max_in_flight=1, clock=clock).refused(
        QueueFull("full", retry_after=1.0), flight, target()
    )
    assert error.message == "full"
    assert error.position == 41
    assert error.estimated_wait == pytest.approx(960 / 40)
    assert error.retry_after is not None
    assert 0.1 <= error.retry_after <= 0.15, "a batch later"
