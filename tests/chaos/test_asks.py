"""Every way in which an answer can be wrong is seen, and the journal and ledgers are read while they grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loadtest.chaos import client, models
from loadtest.chaos.asks import Answer, Ask
from loadtest.chaos.faults import Way
from loadtest.chaos.models import FACTOR, WIDTH, Execution, Integers
from loadtest.chaos.records import Follower, Intent, Outcome, Record, line

X = np.arange(2 * WIDTH, dtype=np.int64).reshape(2, WIDTH)
ASK = Ask(id=5, model=models.QUICK, x=X, intent=Intent.STEADY, deadline=0.0)


def answer(y: Integers, *by: tuple[int, int, int], model_version: str = "3") -> Answer:
    return Answer(y=y, by=np.array(by, np.int64), model_version=model_version)


def test_a_right_answer() -> None:
    right = answer(X * FACTOR + 3, (5, 3, 9), (5, 3, 9))
    assert right.fault(ASK) == ""
    assert (right.version, right.run) == (3, 9)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(X * FACTOR + 3, (6, 3, 9), (6, 3, 9)), "the answer to request 6"),
        (answer(X * FACTOR + 3, (5, 3, 9), (6, 3, 9)), "the answer to request"),
        (answer(X * FACTOR + 3, (5, 3, 9), (5, 3, 8)), "different executions"),
        (answer(X * FACTOR + 2, (5, 3, 9), (5, 3, 9)), "in version 3"),
        (answer((X * FACTOR + 3)[::-1], (5, 3, 9), (5, 3, 9)), "became"),
        (answer((X * FACTOR + 3)[:1], (5, 3, 9), (5, 3, 9)), "shapes"),
        (answer(X * FACTOR + 3, (5, 3, 9)), "shapes"),
        (answer(X * FACTOR + 3, (5, 3, 9), (5, 3, 9), model_version="2"), "was called '2'"),
    ],
    ids=["of another", "in part of another", "two runs", "values", "order", "rows", "rows of by", "version"],
)
def test_a_wrong_answer(wrong: Answer, why: str) -> None:
    assert why in wrong.fault(ASK)


def record(outcome: Outcome, *, run: int, intent: Intent = Intent.STEADY) -> Record:
    return Record(
        id=1,
        way=Way.HTTP,
        intent=intent,
        model="m",
        sent=1.0,
        ended=2.0,
        deadline=3.0,
        outcome=outcome,
        run=run,
        version=1,
        keyed=True,
    )


def test_a_key_has_one_answer() -> None:
    first = record(Outcome.RIGHT, run=1)
    assert client._compared(first, record(Outcome.RIGHT, run=1)).outcome is Outcome.RIGHT
    assert client._compared(first, record(Outcome.RIGHT, run=2)).outcome is Outcome.DUPLICATE
    assert client._compared(first, record(Outcome.REFUSED, run=0)).outcome is Outcome.REFUSED


def test_a_ledger_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    follower = Follower(path)
    assert follower.read() == []
    one, two = record(Outcome.RIGHT, run=1), record(Outcome.LOST, run=0)
    with path.open("wb", buffering=0) as ledger:
        ledger.write(line(one) + line(two)[:10])
        assert follower.read() == [one]
        assert follower.read() == []
        ledger.write(line(two)[10:])
        assert follower.read() == [two]


def test_the_journal_of_a_worker_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "quick.1").write_text("5 70 2000000000\n6 71 25000")
    (tmp_path / "slow.2").write_text("")
    assert list(models.read_journal(tmp_path)) == [Execution(5, 70, 2.0)]
