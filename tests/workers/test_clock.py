from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qinfer_workers.clock import CALIBRATION, BrokerClock

SECOND = 1_000_000


@given(st.integers(-(10**15), 10**15), st.lists(st.integers(0, 30 * SECOND), min_size=1))
def test_an_age_is_what_exceeds_the_shortest_transit(offset: int, waits: list[int]) -> None:
    """Whatever the two clocks show: only differences between waits count."""
    clock = BrokerClock()
    shortest = None
    for number, wait in enumerate(waits):
        stored = 10**15 + number
        shortest = wait if shortest is None else min(shortest, wait)
        assert clock.age_us(stored, stored + offset + wait) == wait - shortest


def test_the_offset_follows_drifting_clocks() -> None:
    """This clock gains 100 µs a second on the broker's: ages must not grow with it."""
    clock = BrokerClock()
    ages = [clock.age_us(second * SECOND, second * (SECOND + 100)) for second in range(3600)]
    assert max(ages) <= 2 * 61 * 100


def test_a_backlog_is_old() -> None:
    clock = BrokerClock()
    clock.age_us(0, 500)
    assert clock.age_us(1 * SECOND, 11 * SECOND + 500) == 10 * SECOND


def test_an_age_is_still_known_after_a_window_of_backlog() -> None:
    clock = BrokerClock()
    clock.age_us(100 * SECOND, 100 * SECOND)
    clock.age_us(101 * SECOND, 161 * SECOND)
    assert clock.age_us(102 * SECOND, 162 * SECOND) == 60 * SECOND


def test_a_backlog_met_at_the_start_is_old() -> None:
    clock = BrokerClock()
    clock.calibrate(100 * SECOND, 500)
    assert clock.age_us(90 * SECOND, 400) == 10 * SECOND - 100


def test_frames_that_are_all_old_stay_old_for_hours() -> None:
    """Ten seconds of queue, all the time: without the broker's own time that would become an age of zero."""
    clock = BrokerClock()
    ages = []
    for second in range(7200):
        if second % CALIBRATION == 0:
            clock.calibrate(second * SECOND, second * SECOND + 300)
        ages.append(clock.age_us((second - 10) * SECOND, second * SECOND + 300))
    assert set(ages) == {10 * SECOND}


@given(st.lists(st.tuples(st.integers(0, 10**16), st.integers(0, 10**16))))
def test_an_age_is_never_negative(times: list[tuple[int, int]]) -> None:
    clock = BrokerClock()
    for stored, now in times:
        assert clock.age_us(stored, now) >= 0
