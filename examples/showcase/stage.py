"""What every scenario of the demonstration has at hand, and the measurement they share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from rich.console import Console

from examples.showcase.clients import Client, Counts, Statistics, Tensors
from examples.showcase.direct import same

_LONE_REQUESTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A running server and what talks to it.

    Attributes:
        repository: the model repository it serves.
        models: names of the models it serves, with their backends.
        clients: one a transport.
        statistics: the server's counts.
        requests: how many requests to send side by side.
        console: where to show what was found.
    """

    repository: Path
    models: dict[str, str]
    clients: Sequence[Client]
    statistics: Statistics
    requests: int
    console: Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report.

    Attributes:
        model, backend, via: what was asked, and over which transport.
        asked, answered: input and answer in a few words.
        latency_ms: median of requests sent one after another, milliseconds.
        batches: what the server executed of the requests sent side by side.
        wrong: how many answers differ from those of the model run directly.
        answers: how many answers were compared.
    """

    model: str
    backend: str
    via: str
    asked: str
    answered: str
    latency_ms: float
    batches: Counts
    wrong: int
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of `measure`; `answers` are those of the first request each, in order."""

    answers: list[Tensors]
    latency_ms: float
    batches: Counts
    wrong: int
    compared: int

    def row(self, stage: Stage, client: Client, model: str, *, asked: str, answered: str) -> Row:
        """The line of the report."""
        return Row(
            model=model,
            backend=stage.models[model],
            via=client.via,
            asked=asked,
            answered=answered,
            latency_ms=self.latency_ms,
            batches=self.batches,
            wrong=self.wrong,
            answers=self.compared,
        )


def measure(
    stage: Stage,
    client: Client,
    model: str,
    requests: Sequence[Tensors],
    expected: Sequence[Tensors],
) -> Measured:
    """Send a few requests one after another, then `stage.requests` side by side, and compare every answer.

    Args:
        stage: the running server.
        client: the transport.
        model: name of the model.
        requests: inputs with one row each; sent again from the first when there are fewer than wanted.
        expected: the answer to each of them.
    """
    outputs = list(expected[0])
    lone = list(islice(cycle(zip(requests, expected, strict=True)), _LONE_REQUESTS))
    crowd = list(islice(cycle(zip(requests, expected, strict=True)), max(stage.requests, len(requests))))
    wrong = 0
    latencies = []
    before = stage.statistics.read(model)
    for inputs, wanted in lone:
        started = time.perf_counter()
        answer = client.infer(model, inputs, outputs)
        latencies.append(time.perf_counter() - started)
        wrong += not same(answer, wanted)
    stage.statistics.wait(model, before, _rows(lone))  # or they would be counted with the crowd
    before = stage.statistics.read(model)
    answers = client.infer_many(model, [inputs for inputs, _ in crowd], outputs)
    batches = stage.statistics.wait(model, before, _rows(crowd))
    wrong += sum(not same(found, wanted) for found, (_, wanted) in zip(answers, crowd, strict=True))
    return Measured(
        answers=answers[: len(requests)],
        latency_ms=1e3 * statistics.median(latencies),
        batches=batches,
        wrong=wrong,
        compared=len(lone) + len(crowd),
    )


def _rows(exchanges: Sequence[tuple[Tensors, Tensors]]) -> int:
    return sum(len(next(iter(inputs.values()))) for inputs, _ in exchanges)
