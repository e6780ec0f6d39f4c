from __future__ import annotations

import asyncio
import random

from qinfer.deadlines import Deadlines
from tests.workers.support import advance, on_virtual_time

MS = 1e-3


class Due:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


class Scene:
    """Calls and their watcher. Make one within a virtual time loop."""

    def __init__(self) -> None:
        self.calls: dict[int, Due] = {}
        self.expired: list[int] = []
        self.deadlines = Deadlines(self.calls, self.expire)

    def add(self, number: int, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        self.calls[number] = Due(deadline)
        self.deadlines.add(deadline)

    def expire(self, number: int) -> None:
        del self.calls[number]
        self.expired.append(number)


def timers() -> int:
    """Timers of the loop that were not cancelled."""
    loop = asyncio.get_running_loop()
    return sum(not handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]


def test_a_call_ends_at_its_deadline_and_not_before() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1, 1.0)
        await advance(0.999)
        assert s.expired == []
        await advance(0.01)
        assert s.expired == [1]

    on_virtual_time(scene())


def test_many_calls_share_one_timer_and_end_in_time() -> None:
    async def scene() -> None:
        s = Scene()
        rng = random.Random(7)
        seconds = {number: rng.uniform(0.0, 10.0) for number in range(2000)}
        for number, after in seconds.items():
            s.add(number, after)
        answered = set(rng.sample(sorted(seconds), 1000))
        for number in answered:
            del s.calls[number]
        assert timers() == 1
        passed = 0.0
        while passed < 10.1:
            await advance(50 * MS)
            passed += 50 * MS
            assert timers() <= 1
            gone = set(s.expired)
            assert gone <= {number for number, after in seconds.items() if after <= passed + MS}
            assert gone >= {
                number
                for number, after in seconds.items()
                if after <= passed - 10 * MS and number not in answered
            }
        assert set(s.expired) == set(seconds) - answered
        assert timers() == 0

    on_virtual_time(scene())


def test_a_later_call_with_an_earlier_deadline() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1, 10.0)
        s.add(2, 1.0)
        await advance(1.01)
        assert s.expired == [2]
        await advance(9.0)
        assert s.expired == [2, 1]

    on_virtual_time(scene())


def test_a_call_added_while_others_expire_keeps_its_deadline() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1, 1.0)
        s.add(2, 60.0)
        expire = s.expire

        def expire_and_add(number: int) -> None:
            expire(number)
            if number == 1:
                s.add(3, 0.5)

        s.deadlines._expire = expire_and_add
        await advance(1.01)
        await advance(0.51)
        assert s.expired == [1, 3]
        await advance(60.0)
        assert s.expired == [1, 3, 2]

    on_virtual_time(scene())


def test_closing_stops_the_watch() -> None:
    async def scene() -> None:
        s = Scene()
        s.add(1, 1.0)
        s.deadlines.close()
        s.deadlines.close()
        await advance(5.0)
        assert s.expired == []
        assert timers() == 0

    on_virtual_time(scene())
