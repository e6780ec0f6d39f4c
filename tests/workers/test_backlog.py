"""What a worker takes for waiting at the broker."""

from __future__ import annotations

from qinfer_workers.backlog import Backlog


def test_it_counts_requests_of_all_lines() -> None:
    backlog = Backlog(lambda version: False)
    backlog.arrived("", 1, 7, now=0.0)
    backlog.arrived("2", 1, 3, now=0.0)
    assert backlog.requests(0.0) == 10
    backlog.arrived("", 1, 0, now=0.0)
    assert backlog.requests(0.0) == 3


def test_frames_are_taken_to_be_like_those_before() -> None:
    backlog = Backlog(lambda version: False)
    for _ in range(100):
        backlog.arrived("", 8, 5, now=0.0)
    assert 38 <= backlog.requests(0.0) <= 40


def test_a_line_that_sends_nothing_to_who_asks_is_empty() -> None:
    asked = {"": True, "1": False}
    backlog = Backlog(asked.__getitem__)
    for version in asked:
        backlog.arrived(version, 1, 50, now=0.0)
    assert backlog.requests(0.5) == 100, "the frames may be on their way"
    assert backlog.requests(10.0) == 50, (
        "other workers have taken those of one line; of the other none was asked for"
    )
    backlog.arrived("", 1, 20, now=10.0)
    assert backlog.requests(10.5) == 70
