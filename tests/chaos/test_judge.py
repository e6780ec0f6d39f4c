"""The judge lets nothing pass that is not allowed, and allows what is."""

from __future__ import annotations

from typing import Any

import pytest
from loadtest.chaos.faults import CONNECTION, FAULTS, Way, Window
from loadtest.chaos.judge import Judge, Rates
from loadtest.chaos.models import AFFINE, QUICK, SLOW, Execution
from loadtest.chaos.records import IN_ADDITION, Intent, Outcome, Record

from qinfer.errors import BY_REASON

ID, RUN = 7, 70
BEGAN, UNDONE, UNTIL = 100.0, 101.0, 103.0


def window(fault: str, **fields: Any) -> Window:
    return Window(**{"fault": fault, "target": 0, "began": BEGAN, "undone": UNDONE, "until": UNTIL, **fields})


def record(**fields: Any) -> Record:
    """A steady request over HTTP during the fault, answered rightly unless told otherwise."""
    defaults = {
        "id": ID,
        "way": Way.HTTP,
        "intent": Intent.STEADY,
        "model": QUICK,
        "sent": BEGAN - 0.1,
        "ended": UNDONE,
        "deadline": BEGAN + 12,
        "outcome": Outcome.RIGHT,
        "run": RUN,
        "version": 1,
    }
    return Record(**{**defaults, **fields})


def refused(reason: str, /, **fields: Any) -> Record:
    """As a gateway would refuse it: with the reason's status, and with a pause where a retry is safe."""
    status = BY_REASON[reason].http_status if reason in BY_REASON else 0
    return record(**{"outcome": Outcome.REFUSED, "reason": reason, "status": status, "pause": 1.0, **fields})


def runs(*began: float, number: int = ID) -> list[Execution]:
    return [Execution(number, RUN + place, at) for place, at in enumerate(began)]


def kinds(records: list[Record], executions: list[Execution], *windows: Window) -> list[str]:
    return [violation.kind for violation in Judge(windows).violations(records, executions)]


def test_a_right_answer_of_an_execution_is_right() -> None:
    assert kinds([record()], runs(BEGAN)) == []


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.WRONG, Outcome.DUPLICATE])
def test_no_fault_allows_what_is_lost_wrong_or_answered_twice(outcome: Outcome) -> None:
    windows = [window(name) for name in FAULTS]
    assert kinds([record(outcome=outcome, detail="why")], runs(BEGAN), *windows) == [outcome]


def test_a_request_ends_once() -> None:
    spare = record(outcome=Outcome.SPARE)
    assert Outcome.SPARE in IN_ADDITION
    assert kinds([record(), spare], runs(BEGAN)) == []
    assert kinds([record(), record()], runs(BEGAN)) == ["duplicate"]


ALLOWED = [
    (name, reason, way)
    for name, fault in FAULTS.items()
    for reason in sorted(fault.allows)
    for way in sorted(fault.ways)
]


@pytest.mark.parametrize(("fault", "reason", "way"), ALLOWED)
def test_a_fault_allows_its_refusals_to_whoever_felt_it(fault: str, reason: str, way: Way) -> None:
    status = 0
    if reason in BY_REASON and way is not Way.NATS:
        status = BY_REASON[reason].http_status if way is Way.HTTP else int(BY_REASON[reason].grpc_status)
    felt = refused(reason, way=way, status=status)
    assert kinds([felt], [], window(fault)) == []
    assert kinds([felt], []) == ["refused"], "without a fault"
    early = refused(reason, id=ID + 1, way=way, status=status, sent=BEGAN - 2, ended=BEGAN - 1)
    late = refused(reason, way=way, status=status, sent=UNTIL + 1, ended=UNTIL + 2)
    slow = refused(reason, id=ID + 2, way=way, status=status, ended=UNTIL + 1)
    assert kinds([early, late, slow], [], window(fault)) == ["refused"] * 3


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if not fault.allows])
@pytest.mark.parametrize(
    "reason", ["bus_unavailable", "no_worker", "queue_full", "deadline_exceeded", CONNECTION]
)
def test_most_faults_allow_none(fault: str, reason: str) -> None:
    assert kinds([refused(reason)], [], window(fault)) == ["refused"]


def test_a_key_is_there_to_be_used_when_a_gateway_was_killed() -> None:
    assert kinds([refused(CONNECTION, keyed=True)], [], window("gateway-kill")) == ["refused"]


def test_raw_clients_have_no_gateway() -> None:
    assert kinds([refused(CONNECTION, way=Way.NATS)], [], window("gateway-kill")) == ["refused"]


@pytest.mark.parametrize(
    "fields",
    [{"pause": None, "reason": "queue_full"}, {"status": 500}, {"reason": "tired"}, {"reason": ""}],
    ids=["no pause", "status of another reason", "no such reason", "no reason"],
)
def test_refusals_have_the_form_they_are_documented_in(fields: dict[str, Any]) -> None:
    told = refused("queue_full")
    assert kinds([told], [], window("burst")) == []
    assert kinds([refused("queue_full", **fields)], [], window("burst")) == ["refused"]


def test_who_hurries_may_be_too_late_but_not_lost() -> None:
    hurried = refused("deadline_exceeded", intent=Intent.HURRIED)
    assert kinds([hurried], []) == []
    assert kinds([refused("deadline_exceeded")], []) == ["refused"]
    assert kinds([record(outcome=Outcome.LOST, intent=Intent.HURRIED)], []) == ["lost"]
    assert kinds([refused("no_worker", intent=Intent.HURRIED)], []) == ["refused"]


def test_poison_has_to_be_called_so() -> None:
    assert kinds([refused("poisoned", intent=Intent.POISON)], runs(BEGAN, BEGAN + 2), window("poison")) == []
    told = refused("deadline_exceeded", intent=Intent.POISON)
    assert kinds([told], [], window("poison")) == ["refused"]
    assert kinds([refused("poisoned")], [], window("poison")) == ["refused"], "not to others"


def test_an_answer_is_of_an_execution_of_the_very_request() -> None:
    assert kinds([record()], []) == ["run"]
    assert kinds([record()], runs(BEGAN, number=8)) == ["run"]
    assert kinds([record(model=AFFINE, run=0)], []) == [], "it keeps no journal"


def test_without_a_fault_nothing_is_run_more_often_than_it_is_sent() -> None:
    twice = runs(BEGAN, BEGAN + 0.1)
    assert kinds([record()], twice) == ["run"]
    assert kinds([record(sends=2)], twice) == []
    assert kinds([record()], twice, window("worker-kill")) == []


def test_without_a_fault_nothing_is_run_after_its_deadline() -> None:
    late = refused("deadline_exceeded", intent=Intent.HURRIED, deadline=BEGAN)
    assert kinds([late], runs(BEGAN + 0.05)) == []
    assert kinds([late], runs(BEGAN + 1)) == ["run"]
    assert kinds([late], runs(BEGAN + 1), window("worker-pause")) == []


def test_when_all_serve_a_version_nobody_gets_an_older_one() -> None:
    swap = window("swap", model=SLOW, version=2)
    later = {"model": SLOW, "sent": UNTIL + 1, "ended": UNTIL + 2}
    executions = runs(UNTIL + 1)
    assert kinds([record(model=SLOW, version=1)], runs(BEGAN), swap) == []
    assert kinds([record(**later, version=2)], executions, swap) == []
    assert kinds([record(**later, version=1)], executions, swap) == ["wrong"]
    assert kinds([record(**later, version=1, intent=Intent.REPLAY)], executions, swap) == [], "it was kept"


def steadily(*spans: tuple[float, float]) -> Rates:
    """A right answer every 10 ms in each of the spans."""
    ends = [start + 0.01 * step for start, end in spans for step in range(round((end - start) * 100))]
    return Rates(record(ended=end, id=number) for number, end in enumerate(ends))


def test_recovery_is_counted_from_when_the_fault_was_undone() -> None:
    rates = steadily((90, BEGAN), (UNDONE + 2, UNDONE + 10))
    recovery = rates.recovery(window("broker-kill"), UNDONE + 10)
    assert recovery.seconds == pytest.approx(2, abs=0.1)
    assert recovery.gap == pytest.approx(UNDONE + 2 - BEGAN, abs=0.1)


def test_who_never_was_below_has_recovered_at_once() -> None:
    recovery = steadily((90, 120)).recovery(window("worker-kill"), 120)
    assert recovery.seconds == 0
    assert recovery.gap < 0.1


def test_who_does_not_come_back_has_not_recovered() -> None:
    assert steadily((90, BEGAN)).recovery(window("broker-kill"), 120).seconds is None
