from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qinfer.bus import Consumer
from qinfer_workers.credit import Credit


class StubConsumer(Consumer):
    """Credit without a broker."""

    def __init__(self) -> None:
        self._credit = 0
        self.grants: list[int] = []

    @property
    def credit(self) -> int:
        return self._credit

    def grant(self, frames: int) -> None:
        assert frames > 0
        self.grants.append(frames)
        self._credit += frames

    def deliver(self) -> None:
        assert self._credit > 0
        self._credit -= 1

    async def close(self) -> None:
        self._credit = 0


def made(max_batch_size: int, instances: int) -> tuple[Credit, StubConsumer]:
    credit, consumer = Credit(max_batch_size=max_batch_size, instances=instances), StubConsumer()
    credit.attach(consumer)
    return credit, consumer


def test_credit_is_what_the_instances_run_and_one_batch_that_forms() -> None:
    credit, consumer = made(8, 2)
    credit.top_up()
    assert consumer.credit == 24


def test_a_model_without_batches_is_pulled_for_too() -> None:
    credit, consumer = made(0, 1)
    credit.top_up()
    assert 1 <= consumer.credit <= 8


def test_frames_of_many_rows_need_fewer() -> None:
    credit, consumer = made(8, 1)
    for _ in range(50):
        credit.took(8)
        credit.freed(8)
    credit.top_up()
    assert consumer.credit == 2


def test_small_differences_wait_so_that_one_pull_serves_several_frames() -> None:
    credit, consumer = made(8, 1)
    credit.top_up()
    for _ in range(16):
        consumer.deliver()
        credit.took(1)
        credit.freed(1)
        credit.top_up()
    assert consumer.grants == [16, 8, 8]


def test_what_is_held_is_not_asked_for() -> None:
    credit, consumer = made(8, 1)
    credit.took(16)
    credit.top_up()
    assert consumer.credit == 0
    credit.freed(8)
    credit.top_up()
    assert consumer.credit > 0


def test_stopped_means_no_more() -> None:
    credit, consumer = made(8, 1)
    credit.stop()
    credit.top_up()
    assert consumer.grants == []


@given(st.integers(0, 64), st.integers(1, 4), st.lists(st.integers(0, 70), max_size=200))
def test_a_pull_never_dries_up_and_never_hoards(
    max_batch_size: int, instances: int, frames: list[int]
) -> None:
    """Whatever frames come, also such as are refused whole: after they are answered there is credit again."""
    credit, consumer = made(max_batch_size, instances)
    credit.top_up()
    capacity = max(max_batch_size, 4) * (instances + 1)
    for offered in frames:
        rows = min(offered, max(1, max_batch_size))
        assert 0 < consumer.credit <= capacity
        consumer.deliver()
        credit.took(rows)
        credit.top_up()
        credit.freed(rows)
        credit.top_up()
    assert credit.held_rows == 0
