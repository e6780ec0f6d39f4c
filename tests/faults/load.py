"""Clients that keep asking, check every answer, and put up with being told to come back later."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.helpers import http
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.waiting import PATIENCE, eventually

MODEL = IDENTITY["INT64"]
CLIENTS = 16
_REFUSALS = frozenset(("bus_unavailable", "no_worker"))
_PAUSE = 0.05  # after a refusal; a real client would wait for as long as it is told


def number(value: int, *headers: str) -> bytes:
    """A request that is answered with its own value."""
    return infer(MODEL, {"inputs": [tensor([value], "INT64", [1, 1])]}, *headers)


def gated(gate: object) -> bytes:
    """A request that is answered when the file `gate` is there, with the id of the process that ran it."""
    return infer(GATED, {"inputs": [tensor([str(gate)], "BYTES", [1, 1])]})


def began(gate: Path) -> list[int]:
    """Processes that have begun a batch which waits for this gate, one each time."""
    journal = Path(f"{gate}.began")
    return [int(line) for line in journal.read_text().split()] if journal.exists() else []


class Load:
    """Runs for as long as its context. What is wrong ends it, and fails the test where it is waited for.

    Every answer is to be right, or a 503 that says when to come back. A request that got neither within its
    deadline is answered 504, which is wrong; one that is not answered at all is missed by `more`.

    Attributes:
        answers: of each client.
        refusals: by reason.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.answers = [0] * CLIENTS
        self.refusals: Counter[str] = Counter()

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(client)) for client in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)

    async def more(self, count: int = 20) -> None:
        """Wait until each client has that many more right answers."""
        goals = [answers + count for answers in self.answers]
        await eventually(
            lambda: (
                any(task.done() for task in self._tasks)
                or all(answers >= goal for answers, goal in zip(self.answers, goals, strict=True))
            ),
            f"{count} more answers for each client",
        )
        for task in self._tasks:
            if task.done():
                task.result()

    async def _ask(self, client: int) -> None:
        async with http.connect(self._port) as connection:
            value = client
            while not self._stop:
                value += CLIENTS
                answer = await connection.ask(number(value))
                if answer.status == 200:
                    assert answer.outputs() == {"y": [value]}
                    self.answers[client] += 1
                else:
                    self._refused(answer)
                    await asyncio.sleep(_PAUSE)

    def _refused(self, answer: Answer) -> None:
        assert answer.status == 503, answer
        assert answer.reason in _REFUSALS, answer
        assert int(answer.headers["retry-after"]) >= 1
        self.refusals[answer.reason] += 1
