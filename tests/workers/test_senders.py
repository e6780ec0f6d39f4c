from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qinfer_workers import senders as module
from qinfer_workers.senders import Senders


def test_a_sender_whose_requests_are_all_here_has_no_company() -> None:
    senders = Senders()
    senders.arrived("a", 3, in_flight=3, now=0.0)
    assert senders.company() == 0


def test_what_a_sender_has_elsewhere_may_still_come() -> None:
    senders = Senders()
    senders.arrived("a", 1, in_flight=4, now=0.0)
    senders.arrived("b", 2, in_flight=2, now=0.0)
    assert senders.company() == 3
    senders.arrived("a", 2, in_flight=4, now=0.0)
    assert senders.company() == 1


def test_answers_are_no_longer_in_flight() -> None:
    senders = Senders()
    senders.arrived("a", 2, in_flight=2, now=0.0)
    senders.answered("a", 2)
    assert senders.company() == 0
    senders.arrived("a", 1, in_flight=3, now=0.0)
    senders.answered("a", 1)
    assert senders.company() == 2


def test_a_sender_that_does_not_tell_makes_company_unknown() -> None:
    senders = Senders()
    senders.arrived("a", 1, in_flight=1, now=0.0)
    senders.arrived("b", 1, in_flight=0, now=0.0)
    assert senders.company() is None
    senders.arrived("b", 1, in_flight=2, now=0.0)
    assert senders.company() == 0


def test_answers_to_unknown_senders_are_ignored() -> None:
    senders = Senders()
    senders.answered("never heard of", 3)
    assert senders.company() == 0


def test_a_sender_that_died_is_forgotten_while_others_go_on() -> None:
    senders = Senders()
    senders.arrived("dead", 1, in_flight=9, now=0.0)
    senders.answered("dead", 1)
    senders.arrived("live", 1, in_flight=1, now=0.1)
    assert senders.company() == 8
    for second in range(1, 20):
        senders.arrived("live", 1, in_flight=1, now=float(second))
        senders.answered("live", 1)
    assert senders.company() == 0


def test_a_silent_sender_that_is_being_worked_for_is_kept() -> None:
    senders = Senders()
    senders.arrived("slow", 2, in_flight=5, now=0.0)
    senders.arrived("live", 1, in_flight=1, now=100.0)
    assert senders.company() == 3


def test_too_many_senders_make_company_unknown() -> None:
    senders = Senders()
    for number in range(module._MAX_SENDERS + 1):
        senders.arrived(str(number), 1, in_flight=1, now=1.0)
    assert senders.company() is None
    for number in range(module._MAX_SENDERS + 1):
        senders.answered(str(number), 1)
    senders.arrived("later", 1, in_flight=1, now=20.0)  # all others are silent by then
    assert senders.company() == 0


def test_answers_to_what_came_before_a_sender_was_counted_take_nothing_from_it() -> None:
    senders = Senders()
    for number in range(module._MAX_SENDERS):
        senders.arrived(str(number), 1, in_flight=1, now=1.0)
        senders.answered(str(number), 1)
    senders.arrived("late", 2, in_flight=2, now=2.0)  # one too many
    senders.arrived("late", 1, in_flight=3, now=20.0)
    senders.answered("late", 2)
    senders.arrived("late", 1, in_flight=1, now=20.0)
    assert senders.company() == 0


events = st.lists(
    st.one_of(
        st.tuples(st.just("arrived"), st.sampled_from("abc"), st.integers(1, 5), st.integers(0, 12)),
        st.tuples(st.just("answered"), st.sampled_from("abc"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("silence"), st.just(""), st.integers(1, 20), st.just(0)),
    )
)


@given(events)
def test_company_is_never_negative_and_ends_with_what_is_in_flight(
    story: list[tuple[str, str, int, int]],
) -> None:
    senders = Senders()
    held = dict.fromkeys("abc", 0)
    now = 0.0
    for event, name, count, in_flight in story:
        if event == "arrived":
            held[name] += count
            senders.arrived(name, count, in_flight=in_flight, now=now)
        elif event == "answered":
            answered = min(count, held[name])
            held[name] -= answered
            senders.answered(name, answered)
        else:
            now += count
        company = senders.company()
        assert company is None or company >= 0
    for name, count in held.items():
        senders.answered(name, count)
        senders.arrived(name, 1, in_flight=1, now=now)
    assert senders.company() == 0
