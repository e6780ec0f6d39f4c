"""Whether everything that happened was allowed to happen."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.chaos.faults import CONNECTION, FAULTS, FRONT, Way, Window
from loadtest.chaos.models import KEEPS_JOURNAL, Execution
from loadtest.chaos.records import IN_ADDITION, Intent, Outcome, Record
from qinfer.errors import BY_REASON, DeadlineExceeded, Poisoned, Retry, WaitTooLong

HURRY_ALLOWS = frozenset((DeadlineExceeded.reason, WaitTooLong.reason))
"""What a request may be told at any time whose deadline was short."""

_BEGUN_LATE = 0.25  # from the check of a deadline to the first line of a model's code, on a busy machine
# A worker that has its connection back waits before it sends answers, and runs again what it could not send.
_RERUN_AFTER = 3.0
_RATE_SPAN = 0.5
_RATE_STEP = 0.05
_BEFORE_SPAN = 1.5
_RECOVERED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Something that was not allowed.

    Attributes:
        kind: "lost", "wrong", "duplicate", "refused" or "run".
        text: what happened, for people.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a fault was felt.

    Attributes:
        fault: name of its kind.
        gap: the longest time without a right answer from its beginning to the recovery, in seconds.
        seconds: from when it was undone until right answers came again at 90 % of the rate before it; 0 when
            they did all the time; None when they did not before the end.
    """

    fault: str
    gap: float
    seconds: float | None


class Judge:
    """Compares what clients tell with what the faults allowed.

    Args:
        windows: the faults that were caused.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)

    def violations(self, records: Iterable[Record], executions: Iterable[Execution]) -> list[Violation]:
        """All that was not allowed, in the order of the records."""
        records = list(records)
        runs: dict[int, list[Execution]] = defaultdict(list)
        for execution in executions:
            runs[execution.id].append(execution)
        found = [violation for record in records if (violation := self._of(record)) is not None]
        ends = [record for record in records if record.outcome not in IN_ADDITION]
        return [*found, *_ended_twice(ends), *self._of_runs(ends, runs), *self._of_versions(ends)]

    def touching(self, record: Record) -> list[Window]:
        """The faults that a request may have felt."""
        return [window for window in self.windows if window.touches(record.sent, record.ended)]

    def _of(self, record: Record) -> Violation | None:
        if record.outcome is Outcome.REFUSED:
            why = self._refused(record)
            return Violation(kind="refused", text=f"{_name(record)}: {why}") if why else None
        if record.outcome in (Outcome.LOST, Outcome.WRONG, Outcome.DUPLICATE):
            return Violation(kind=record.outcome.value, text=f"{_name(record)}: {record.detail}")
        return None

    def _refused(self, record: Record) -> str:
        """Why a refusal was not allowed; "" when it was."""
        what = f"{record.reason or 'no reason'} ({record.status}): {record.detail}"
        if wrong := _badly_told(record):
            return f"{wrong}: {what}"
        if record.intent is Intent.POISON:
            return "" if record.reason == Poisoned.reason else f"expected {Poisoned.reason}: {what}"
        if record.intent is Intent.HURRIED and record.reason in HURRY_ALLOWS:
            return ""
        touching = self.touching(record)
        if any(_allows(window, record) for window in touching):
            return ""
        during = ", ".join(window.fault for window in touching) or "no fault"
        return f"during {during}: {what}"

    def _of_runs(self, records: Sequence[Record], runs: dict[int, list[Execution]]) -> Iterator[Violation]:
        """What the models' journal shows."""
        for record in records:
            executions = runs.get(record.id, [])
            if record.model not in KEEPS_JOURNAL or record.intent is Intent.REPLAY:
                continue
            if record.outcome is Outcome.RIGHT and record.run not in {each.run for each in executions}:
                yield Violation(kind="run", text=f"{_name(record)}: its answer is of no execution")
            end = max([record.ended, *(each.began for each in executions)])
            if any(window.touches(record.sent - _RERUN_AFTER, end) for window in self.windows):
                continue
            if len(executions) > record.sends:
                text = (
                    f"{_name(record)}: run {len(executions)} times and sent {record.sends}, without a fault"
                )
                yield Violation(kind="run", text=text)
            late = max((each.began - record.deadline for each in executions), default=0.0)
            if late > _BEGUN_LATE:
                text = f"{_name(record)}: run {late:.2f} s after its deadline, without a fault"
                yield Violation(kind="run", text=text)

    def _of_versions(self, ends: Sequence[Record]) -> Iterator[Violation]:
        """When all workers serve a version, no request that is sent then gets an older one's answer."""
        swaps = [window for window in self.windows if window.model]
        for record in ends:
            if record.outcome is not Outcome.RIGHT or record.intent is Intent.REPLAY:
                continue
            for swap in swaps:
                old = swap.model == record.model and record.version < swap.version
                if old and record.sent > swap.until:
                    text = f"{_name(record)}: version {record.version}, after all had version {swap.version}"
                    yield Violation(kind="wrong", text=text)


def _ended_twice(ends: Sequence[Record]) -> Iterator[Violation]:
    """A request ends once: whoever tells of it twice has had two outcomes."""
    for (number, intent), count in Counter((record.id, record.intent) for record in ends).items():
        if count > 1:
            yield Violation(kind="duplicate", text=f"{intent} request {number} ended {count} times")


def _allows(window: Window, record: Record) -> bool:
    """Whether a fault accounts for a refusal: it has to come there and then, and not sometime later."""
    fault = FAULTS[window.fault]
    in_time = window.touches(record.ended, record.ended)
    meant = record.reason in fault.allows and record.way in fault.ways
    return in_time and meant and (fault.keyed or not record.keyed)


def _badly_told(record: Record) -> str:
    """What is wrong with the form of a refusal, whatever it was for."""
    if record.reason == CONNECTION:
        return ""
    error = BY_REASON.get(record.reason)
    if error is None:
        return "not a reason of the enumeration"
    if record.way not in FRONT:
        return ""
    status = error.http_status if record.way is Way.HTTP else int(error.grpc_status)
    if record.status != status:
        return f"expected status {status}"
    if error.retry is Retry.LATER and record.pause is None:
        return "it does not say when to try again"
    return ""


def _name(record: Record) -> str:
    key = " with key" if record.keyed else ""
    return (
        f"{record.way} {record.intent} request {record.id} to {record.model}{key}, "
        f"sent {record.sends}x, {record.ended - record.sent:.2f} s"
    )


class Rates:
    """How many right answers came when."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._ends = sorted(
            record.ended
            for record in records
            if record.outcome is Outcome.RIGHT and record.intent is not Intent.BURST
        )

    def rate(self, start: float, end: float) -> float:
        """Right answers a second."""
        return (bisect_left(self._ends, end) - bisect_left(self._ends, start)) / (end - start)

    def longest_gap(self, start: float, end: float) -> float:
        """The longest time between two right answers."""
        inside = self._ends[bisect_left(self._ends, start) : bisect_left(self._ends, end)]
        edges = [start, *inside, end]
        return max(after - before for before, after in pairwise(edges))

    def recovery(self, window: Window, end: float) -> Recovery:
        """How a fault was felt, of a load that went on until `end`."""
        enough = _RECOVERED * self.rate(window.began - _BEFORE_SPAN, window.began)
        at, recovered = window.undone, False
        while not recovered and at + _RATE_SPAN <= end:
            recovered = self.rate(at, at + _RATE_SPAN) >= enough
            at += 0 if recovered else _RATE_STEP
        return Recovery(
            fault=window.fault,
            gap=self.longest_gap(window.began, max(at, window.undone + _RATE_STEP)),
            seconds=at - window.undone if recovered else None,
        )
