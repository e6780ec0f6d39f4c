"""The figures of a run, as they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from loadtest.chaos.faults import FAULTS, Window
from loadtest.chaos.judge import HURRY_ALLOWS, Judge, Rates, Violation
from loadtest.chaos.models import KEEPS_JOURNAL, Execution
from loadtest.chaos.records import IN_ADDITION, Intent, Outcome, Record
from loadtest.environment import Machine

CALM = "none"
"""Stands for the kind of fault of requests that felt none."""

_SHOWN_VIOLATIONS = 50


class Row(msgspec.Struct, kw_only=True):
    """What became of the requests that were under way during faults of one kind.

    Attributes:
        caused: how many faults.
        requests: requests, those of bursts included; one that felt two faults is in two rows.
        right: of them, answered rightly.
        refused: of them, refused, by reason, without the hurried.
        hurried: of them, those that were told that their short deadline was missed.
        again: of them, sent more than once by their client.
        reruns: executions beyond the first of a request.
        gaps, recoveries: of each fault, in seconds (see `judge.Recovery`).
        unrecovered: faults after which the rate did not come back before the end.
    """

    caused: int = 0
    requests: int = 0
    right: int = 0
    refused: dict[str, int] = {}
    hurried: int = 0
    again: int = 0
    reruns: int = 0
    gaps: list[float] = []
    recoveries: list[float] = []
    unrecovered: int = 0


class Result(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        seed, seconds: what it was started with.
        started: ISO date and time.
        commit: what was tested.
        machine: what it ran on.
        requests: how many ended, by outcome.
        refused: how many were refused, by reason.
        ways: how many ended, by way in.
        keyed, replayed: how many had an idempotency key, and were asked again with it after their answer.
        spare: further answers to raw clients.
        executions: how many the models counted.
        p50, p99, slowest: seconds from the first sending to the answer, of steady requests.
        violations: by kind.
        shown: the first of them, for people.
        rows: by kind of fault, and `CALM`.
    """

    seed: int
    seconds: float
    started: str
    commit: str
    machine: Machine
    requests: dict[str, int]
    refused: dict[str, int]
    ways: dict[str, int]
    keyed: int
    replayed: int
    spare: int
    executions: int
    p50: float
    p99: float
    slowest: float
    violations: dict[str, int]
    shown: list[str]
    rows: dict[str, Row]

    @property
    def faults(self) -> int:
        return sum(row.caused for row in self.rows.values())

    @property
    def passed(self) -> bool:
        return not self.violations


def summarise(
    records: Sequence[Record],
    executions: Sequence[Execution],
    windows: Sequence[Window],
    troubles: Sequence[Violation],
    *,
    end: float,
    seed: int,
    seconds: float,
    started: str,
    commit: str,
    machine: Machine,
) -> Result:
    """Judge a run and count.

    Args:
        records, executions, windows: what happened.
        troubles: violations that no record tells, such as a process that died.
        end: until when the load went on, by `time.monotonic`.
        seed, seconds, started, commit, machine: of the result.
    """
    judge = Judge(windows)
    violations = [*troubles, *judge.violations(records, executions)]
    ended = [record for record in records if record.outcome not in IN_ADDITION]
    steady = sorted(
        record.ended - record.sent
        for record in ended
        if record.intent is Intent.STEADY and record.outcome is Outcome.RIGHT
    )
    return Result(
        seed=seed,
        seconds=seconds,
        started=started,
        commit=commit,
        machine=machine,
        requests=dict(Counter(record.outcome.value for record in ended)),
        refused=dict(Counter(record.reason for record in ended if record.outcome is Outcome.REFUSED)),
        ways=dict(Counter(record.way.value for record in ended)),
        keyed=sum(record.keyed for record in ended if record.intent is not Intent.REPLAY),
        replayed=sum(record.intent is Intent.REPLAY for record in records),
        spare=sum(record.outcome is Outcome.SPARE for record in records),
        executions=len(executions),
        p50=_quantile(steady, 0.5),
        p99=_quantile(steady, 0.99),
        slowest=steady[-1] if steady else 0.0,
        violations=dict(Counter(violation.kind for violation in violations)),
        shown=[violation.text for violation in violations[:_SHOWN_VIOLATIONS]],
        rows=_rows(ended, executions, judge, Rates(ended), end),
    )


def read(path: Path) -> Result:
    """Read a result that was written.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(path.read_bytes(), type=Result)


def write(result: Result, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def median_of(values: Sequence[float]) -> float:
    return median(values) if values else 0.0


def _rows(
    ended: Sequence[Record], executions: Sequence[Execution], judge: Judge, rates: Rates, end: float
) -> dict[str, Row]:
    rows = {name: Row() for name in (CALM, *FAULTS)}
    runs = Counter(execution.id for execution in executions)
    for record in ended:
        for name in {window.fault for window in judge.touching(record)} or {CALM}:
            _count(rows[name], record, runs)
    for window in judge.windows:
        row = rows[window.fault]
        row.caused += 1
        recovery = rates.recovery(window, end)
        row.gaps.append(recovery.gap)
        if recovery.seconds is None:
            row.unrecovered += 1
        else:
            row.recoveries.append(recovery.seconds)
    return {name: row for name, row in rows.items() if row.caused or name == CALM}


def _count(row: Row, record: Record, runs: Counter[int]) -> None:
    row.requests += 1
    row.again += record.sends > 1
    if record.outcome is Outcome.RIGHT:
        row.right += 1
    elif record.intent is Intent.HURRIED and record.reason in HURRY_ALLOWS:
        row.hurried += 1
    elif record.outcome is Outcome.REFUSED:
        row.refused[record.reason] = row.refused.get(record.reason, 0) + 1
    if record.model in KEEPS_JOURNAL and record.intent is not Intent.REPLAY:
        row.reruns += max(0, runs[record.id] - 1)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
