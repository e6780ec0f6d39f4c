"""Windows on a clock of the test's own: no test here waits for real time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from qinfer_workers.batch import Batch, Member
from qinfer_workers.batcher import Batcher
from qinfer_workers.execution import Timing
from qinfer_workers.instance import Completion
from tests.workers.support import INFINITE, Members, advance, config_of, on_virtual_time, request_of

MS = 1e-3


class StubThread:
    """Notes the batches it is given; `finish` ends the one it runs."""

    load = 0

    def __init__(self) -> None:
        self.idle = True
        self.batches: list[Batch] = []

    def submit(self, batch: Batch) -> None:
        assert self.idle
        self.idle = False
        self.batches.append(batch)

    @property
    def quiet(self) -> bool:
        return self.idle


class Scene:
    """A batcher between requests and stub instances. Make one within a virtual time loop."""

    def __init__(self, *, instances: int = 1, company: int | None = None, **config: Any) -> None:
        self.config = config_of(**config)
        self.threads = [StubThread() for _ in range(instances)]
        self.company = company
        self.expired: list[int] = []
        self.batcher = Batcher(
            self.config,
            self.threads,  # type: ignore[arg-type]
            company=lambda: self.company,
            expired=self._expire,
        )
        self._members = Members(self.config)
        self._loop = asyncio.get_running_loop()

    def _expire(self, members: Sequence[Member]) -> None:
        assert members
        self.expired.extend(member.request.id for member in members)

    def add(self, number: int, rows: int = 1, *, within: float = INFINITE, columns: int = 2) -> None:
        """Add a request with a deadline `within` seconds."""
        now = self._loop.time()
        request = request_of(number, rows, columns=columns)
        self.batcher.add(self._members.of(request, deadline=now + within, arrived=now))

    def finish(self, thread: int = 0, *, took: float = 0.0) -> None:
        """The instance is done with its batch, which took that many seconds."""
        stub = self.threads[thread]
        stub.idle = True
        ended = int(took * 1e9)
        completion = Completion(stub, stub.batches[-1], Timing(), 0, ended)  # type: ignore[arg-type]
        self.batcher.completed(completion)

    @property
    def batches(self) -> list[tuple[str, list[int]]]:
        """Reason and request numbers of each batch, by instance."""
        return [
            (batch.reason, [member.request.id for member in batch.members])
            for thread in self.threads
            for batch in thread.batches
        ]


def test_full_closes_at_once() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4, delay_us=1_000_000)
        for number in range(1, 4):
            s.add(number)
        await advance()
        assert s.batches == []
        s.add(4)
        await advance()
        assert s.batches == [("full", [1, 2, 3, 4])]
        assert s.batcher.waiting == 0

    on_virtual_time(scene())


def test_preferred_closes_at_the_largest_size_reached() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=16, delay_us=1_000_000, preferred=(8, 4))
        for number in range(1, 4):
            s.add(number)
        await advance()
        assert s.batches == []
        for number in range(4, 11):
            s.add(number)
        await advance()
        assert s.batches == [("preferred", [1, 2, 3, 4, 5, 6, 7, 8])]
        assert s.batcher.waiting == 2

    on_virtual_time(scene())


def test_window_closes_when_the_delay_of_its_first_request_is_over() -> None:
    async def scene() -> None:
        s = Scene(delay_us=5_000)
        s.add(1)
        await advance(3 * MS)
        s.add(2)
        await advance(1.9 * MS)
        assert s.batches == []
        await advance(0.7 * MS)
        assert s.batches == [("window", [1, 2])]

    on_virtual_time(scene())


def test_a_window_is_not_looked_at_until_it_is_over() -> None:
    """uvloop rounds timers to milliseconds: one for the rest of a window must not fire before its end."""

    async def looks_at_one_window() -> int:
        s = Scene(delay_us=1_400)
        over = asyncio.Event()
        looks = 0
        reason = s.batcher._close_reason

        def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            closed, due = reason(*arguments)
            if closed is not None:
                over.set()
            return closed, due

        s.batcher._close_reason = counted  # type: ignore[method-assign]
        s.add(1)
        await asyncio.wait_for(over.wait(), 10)
        return looks

    async def scene() -> list[int]:
        return [await looks_at_one_window() for _ in range(20)]

    assert max(uvloop.run(scene())) <= 3


def test_deadline_closes_in_time_for_the_tightest_member() -> None:
    async def scene() -> None:
        s = Scene(delay_us=100_000)
        s.add(1, within=1.0)
        await advance(100 * MS)
        s.finish(took=20 * MS)
        s.add(2, within=1.0)
        s.add(3, within=50 * MS)
        await advance(29 * MS)
        assert s.batches == [("window", [1])]
        await advance(2 * MS)
        assert s.batches == [("window", [1]), ("deadline", [2, 3])]
        assert s.expired == []

    on_virtual_time(scene())


def test_the_time_of_a_batch_is_learned() -> None:
    async def learned() -> float:
        s = Scene(delay_us=1_000_000)
        for took in (10 * MS, *[50 * MS] * 60):
            s.add(1)
            await advance(1.0)
            s.finish(took=took)
        opened = asyncio.get_running_loop().time()
        s.add(2, within=500 * MS)
        before = len(s.batches)
        while len(s.batches) == before:
            await advance(1 * MS)
        return asyncio.get_running_loop().time() - opened

    assert on_virtual_time(learned()) == pytest.approx(450 * MS, abs=2 * MS)


def test_alone_does_not_wait_for_company_that_cannot_come() -> None:
    async def scene() -> None:
        s = Scene(delay_us=5_000, company=2)
        s.add(1)
        await advance(1 * MS)
        assert s.batches == []
        s.add(2)
        s.add(3)
        s.company = 0
        await advance()
        assert s.batches == [("alone", [1, 2, 3])]

    on_virtual_time(scene())


def test_unknown_company_is_waited_for() -> None:
    async def scene() -> None:
        s = Scene(delay_us=5_000, company=None)
        s.add(1)
        await advance(4 * MS)
        assert s.batches == []

    on_virtual_time(scene())


def test_idle_takes_what_the_tick_brought() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1)
        s.add(2)
        assert s.batches == []  # not before the tick is over
        await advance()
        assert s.batches == [("idle", [1, 2])]

    on_virtual_time(scene())


def test_drain_holds_nothing_open() -> None:
    async def scene() -> None:
        s = Scene(delay_us=1_000_000)
        s.add(1)
        await advance()
        assert s.batches == []
        s.batcher.drain()
        await advance()
        assert s.batches == [("drain", [1])]
        s.finish()
        s.add(2)
        await advance()
        assert s.batches[1:] == [("drain", [2])]

    on_virtual_time(scene())


def test_nothing_closes_while_no_instance_is_idle() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4, delay_us=1_000)
        s.add(1)
        await advance(2 * MS)
        for number in range(2, 5):
            s.add(number)
            await advance(10 * MS)
        assert s.batches == [("window", [1])]
        s.add(5)
        s.finish()
        await advance()
        assert s.batches[1:] == [("full", [2, 3, 4, 5])]

    on_virtual_time(scene())


def test_idle_instances_take_batches_at_the_same_time() -> None:
    async def scene() -> None:
        s = Scene(instances=3, max_batch_size=2)
        for number in range(1, 6):
            s.add(number)
        await advance()
        assert s.batches == [("full", [1, 2]), ("full", [3, 4]), ("idle", [5])]

    on_virtual_time(scene())


def test_leftovers_keep_their_order_and_their_time() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4, delay_us=5_000)
        s.add(1, rows=3)
        await advance(1 * MS)
        s.add(2, rows=2)
        await advance()
        assert s.batches == [("full", [1])]
        s.finish()
        s.add(3, rows=1)
        await advance(4.9 * MS)  # of request 2's five
        assert s.batches == [("full", [1])]
        await advance(0.7 * MS)
        assert s.batches[1:] == [("window", [2, 3])]

    on_virtual_time(scene())


def test_leftovers_that_waited_while_the_instance_was_busy_wait_no_more() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=2, delay_us=5_000)
        for number in (1, 2, 3, 4, 5):
            s.add(number)
        await advance(100 * MS)
        s.finish()
        await advance()
        s.finish()
        await advance()
        assert s.batches == [("full", [1, 2]), ("full", [3, 4]), ("window", [5])]

    on_virtual_time(scene())


def test_different_plans_are_never_mixed() -> None:
    async def scene() -> None:
        s = Scene(instances=2, max_batch_size=4, dims=(-1,))
        for number in range(1, 7):
            s.add(number, columns=2 + number % 2)
        await advance()
        assert s.batches == [("idle", [1, 3, 5]), ("idle", [2, 4, 6])]
        for thread in s.threads:
            thread.batches[0].inputs  # noqa: B018 (they can be joined)

    on_virtual_time(scene())


def test_the_oldest_window_goes_first() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4, dims=(-1,))
        s.add(1)
        await advance()
        s.add(2, columns=3)
        s.add(3, columns=2)
        s.add(4, columns=3)
        s.finish()
        await advance()
        s.finish()
        await advance()
        assert s.batches == [("idle", [1]), ("idle", [2, 4]), ("idle", [3])]

    on_virtual_time(scene())


def test_expired_requests_are_not_submitted() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4)
        s.add(1)
        await advance()
        s.add(2, within=1 * MS)
        s.add(3, within=100 * MS)
        s.add(4, within=1 * MS)
        await advance(10 * MS)
        s.finish()
        await advance()
        assert s.batches == [("idle", [1]), ("idle", [3])]
        assert s.expired == [2, 4]
        assert s.batcher.waiting == 0

    on_virtual_time(scene())


def test_requests_expire_while_the_instance_is_busy() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=4)
        s.add(1)
        await advance()
        s.add(2, within=100 * MS)
        s.add(3, 2, within=10 * MS)
        s.add(4, within=11 * MS)
        s.add(5, within=20 * MS)
        await advance(9 * MS)
        assert s.expired == []
        await advance(4 * MS)
        assert (s.expired, s.batcher.waiting) == ([3, 4], 2)
        await advance(10 * MS)
        assert (s.expired, s.batcher.waiting) == ([3, 4, 5], 1)
        s.add(6, 3)
        s.finish()
        await advance()
        assert s.batches[1:] == [("full", [2, 6])]
        await advance(90 * MS)
        assert s.expired == [3, 4, 5], "what is being run does not expire"

    on_virtual_time(scene())


def test_an_earlier_deadline_that_comes_later_is_kept() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1)
        await advance()
        s.add(2, within=50 * MS)
        await advance(1 * MS)
        s.add(3, within=5 * MS)
        await advance(8 * MS)
        assert s.expired == [3]
        await advance(44 * MS)
        assert s.expired == [3, 2]
        assert s.batcher.waiting == 0

    on_virtual_time(scene())


def test_a_window_of_expired_requests_leaves_the_instance_idle() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1)
        await advance()
        s.add(2, within=1 * MS)
        await advance(10 * MS)
        s.finish()
        await advance()
        assert (s.batches, s.expired) == ([("idle", [1])], [2])
        s.add(3)
        await advance()
        assert s.batches[1:] == [("idle", [3])]

    on_virtual_time(scene())


def test_a_model_without_batch_dimension_runs_one_request_at_a_time() -> None:
    async def scene() -> None:
        s = Scene(max_batch_size=0, dims=(-1, 2), instances=2)
        for number in range(1, 4):
            s.add(number, rows=5)
        await advance()
        assert s.batches == [("full", [1]), ("full", [2])]
        assert not s.threads[0].batches[0].batched

    on_virtual_time(scene())


def test_close_returns_what_still_waits() -> None:
    async def scene() -> None:
        s = Scene(delay_us=5_000)
        s.add(1)
        s.add(2)
        await advance()
        assert [member.request.id for member in s.batcher.close()] == [1, 2]
        await advance(1.0)
        assert s.batches == []

    on_virtual_time(scene())


class Add:
    def __init__(self, rows: int, columns: int, within: float) -> None:
        self.rows, self.columns, self.within = rows, columns, within

    def __repr__(self) -> str:
        return f"Add(rows={self.rows}, columns={self.columns}, within={self.within})"


adds = st.builds(Add, st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.0, 2 * MS, 20 * MS, INFINITE]))
steps = st.lists(
    st.one_of(
        adds, st.sampled_from(["finish", "drain"]), st.floats(0.1 * MS, 30 * MS, allow_subnormal=False)
    ),
    max_size=40,
)


@given(
    steps,
    st.sampled_from([0, 5_000]),
    st.sampled_from([(), (2,), (2, 4)]),
    st.integers(1, 3),
    st.sampled_from([None, 0, 3]),
)
def test_no_request_is_lost_doubled_or_overtaken(
    story: list[Add | str | float],
    delay_us: int,
    preferred: tuple[int, ...],
    instances: int,
    company: int | None,
) -> None:
    async def scene() -> None:
        s = Scene(
            instances=instances,
            max_batch_size=5,
            delay_us=delay_us,
            preferred=preferred,
            dims=(-1,),
            company=company,
        )
        added: dict[int, Add] = {}
        due: dict[int, float] = {}
        for step in story:
            if isinstance(step, Add):
                number = len(added) + 1
                added[number] = step
                due[number] = asyncio.get_running_loop().time() + step.within
                s.add(number, step.rows, columns=step.columns, within=step.within)
            elif step == "finish":
                busy = next((index for index, thread in enumerate(s.threads) if not thread.idle), None)
                if busy is not None:
                    s.finish(busy, took=1 * MS)
            elif step == "drain":
                s.batcher.drain()
            else:
                await _advance_watching(s, float(step), due)
            await _advance_watching(s, 0.0, due)
        _check_batches(s, added)
        left = [member.request.id for member in s.batcher.close()]
        submitted = [number for _, numbers in s.batches for number in numbers]
        assert sorted(submitted + s.expired + left) == sorted(added)

    on_virtual_time(scene())


async def _advance_watching(s: Scene, seconds: float, due: dict[int, float]) -> None:
    """Let time pass; nothing submitted meanwhile was late when it was."""
    before = sum(len(thread.batches) for thread in s.threads)
    seen = {number for _, numbers in s.batches for number in numbers}
    await advance(seconds)
    if sum(len(thread.batches) for thread in s.threads) > before:
        now = asyncio.get_running_loop().time()
        new = {number for _, numbers in s.batches for number in numbers} - seen
        assert all(due[number] > now for number in new)


def _check_batches(s: Scene, added: dict[int, Add]) -> None:
    for thread in s.threads:
        submitted: dict[int, int] = {}
        for batch in thread.batches:
            assert 1 <= batch.rows == sum(member.rows for member in batch.members) <= 5
            columns = {added[member.request.id].columns for member in batch.members}
            assert len(columns) == 1
            numbers = [member.request.id for member in batch.members]
            assert numbers == sorted(numbers)
            (column,) = columns
            assert submitted.get(column, 0) < numbers[0]  # nothing of the same plan overtook it
            submitted[column] = numbers[-1]
    waiting = len(added) - sum(len(numbers) for _, numbers in s.batches) - len(s.expired)
    assert s.batcher.waiting == waiting
