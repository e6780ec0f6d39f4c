"""Which faults come when: a pure function of the seed."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from loadtest.chaos.faults import COUNT, FAULTS, FIRST_AT, LAST_BEFORE_END, Planned, schedule

SEEDS = range(200)


def rounds(planned: list[Planned]) -> list[list[Planned]]:
    return [list(faults) for _, faults in groupby(planned, key=lambda fault: fault.round)]


def test_the_schedule_is_known_by_its_seed() -> None:
    assert schedule(1, 180) == schedule(1, 180)
    assert len({tuple(schedule(seed, 180)) for seed in SEEDS}) == len(SEEDS)
    first, *_ = schedule(7, 30)
    expected = Planned(at=3.0, round=1, fault="broker-pause", target=0, lasts=0.648)
    assert first == expected, "on every machine"


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = schedule(3, 60), schedule(3, 600)
    assert long[: len(short)] == short


@pytest.mark.parametrize("seconds", [30, 180])
def test_faults_leave_time_before_and_after(seconds: float) -> None:
    for seed in SEEDS:
        planned = schedule(seed, seconds)
        assert planned[0].at >= FIRST_AT
        for first, *_ in rounds(planned):
            assert first.at < seconds - LAST_BEFORE_END


def test_three_minutes_have_every_kind_and_half_a_minute_several() -> None:
    for seed in SEEDS:
        assert {planned.fault for planned in schedule(seed, 180)} == set(FAULTS)
        assert len({planned.fault for planned in schedule(seed, 30)}) >= 4


def test_no_kind_comes_twice_before_all_have_come() -> None:
    for seed in SEEDS:
        first = [planned.fault for planned in schedule(seed, 600)][: len(FAULTS)]
        assert sorted(first) == sorted(FAULTS)


def test_faults_that_come_together_leave_somebody_at_work() -> None:
    together = [faults for seed in SEEDS for faults in rounds(schedule(seed, 180)) if len(faults) > 1]
    assert together
    for first, second in together:
        assert FAULTS[first.fault].role != FAULTS[second.fault].role
        assert "poison" not in (first.fault, second.fault), "it takes the other worker, too"
        assert first.at <= second.at <= first.at + first.lasts


def test_rounds_do_not_overlap() -> None:
    for seed in SEEDS:
        planned = rounds(schedule(seed, 180))
        for before, after in pairwise(planned):
            assert after[0].at > max(fault.at + fault.lasts for fault in before)


def test_faults_are_as_their_kind_says() -> None:
    targets: dict[str, set[int]] = {name: set() for name in FAULTS}
    for planned in (planned for seed in SEEDS for planned in schedule(seed, 180)):
        fault = FAULTS[planned.fault]
        shortest, longest = fault.lasts
        assert shortest <= planned.lasts <= longest
        targets[planned.fault].add(planned.target)
    assert targets == {name: set(range(COUNT[fault.role])) for name, fault in FAULTS.items()}


def test_only_some_faults() -> None:
    planned = schedule(1, 60, faults=("worker-kill", "broker-pause"))
    assert {fault.fault for fault in planned} == {"worker-kill", "broker-pause"}
