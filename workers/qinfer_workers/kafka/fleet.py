"""Scores by asking a fleet of workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from qinfer.client.base import AsyncClient, ModelInfo, Options
from qinfer.embedded.backoff import Backoff
from qinfer.errors import (
    Forbidden,
    ModelNotFound,
    QInferError,
    Retry,
    SetupError,
    Unauthenticated,
    Unavailable,
)
from qinfer_workers.kafka.contract import BadRecord, ModelUse, Rows
from qinfer_workers.kafka.group import Dead
from qinfer_workers.kafka.scoring import Score, cut, halves, tensors

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Of a record alone, after errors that may or may not be its own: it was too slow, a worker died of it."""

_REFUSED = (Unauthenticated, Forbidden, SetupError)


class FleetScorer:
    """Scores with models that workers serve.

    A record is only given up for an error of its own. While no worker is there, the queue is full or the
    broker is away, groups wait, and reading pauses behind them.

    Args:
        client: a way to the fleet; started and closed here.
        models: which.
        timeout: seconds a request may take.
        in_flight: requests that wait for answers at the same time.
    """

    def __init__(
        self, client: AsyncClient, models: Sequence[ModelUse], *, timeout: float, in_flight: int = 16
    ) -> None:
        self._client = client
        self._uses = {use.label: use for use in models}
        self._timeout = timeout
        self._infos: dict[str, ModelInfo] = {}
        self._turns = asyncio.Semaphore(in_flight)

    async def start(self) -> Mapping[str, ModelInfo]:
        await self._client.start()
        for label, use in self._uses.items():
            self._infos[label] = await self._client.model(use.name, use.version)
        return dict(self._infos)

    async def score(self, inputs: Mapping[str, Sequence[Rows]]) -> Score:
        score = Score()
        runs = [
            self._run(score, label, piece)
            for label, parts in inputs.items()
            for rows in parts
            for piece in cut(rows, self._infos[label].max_batch_size or 0)
        ]
        await asyncio.gather(*runs)
        return score

    async def close(self) -> None:
        await self._client.close()

    async def _run(self, score: Score, label: str, rows: Rows, before: int = 0) -> None:
        """Score a piece; if it fails, by halves. `before` counts the runs its records have had."""
        failures = 0
        backoff = Backoff(cap=5.0)
        while True:
            try:
                outputs = await self._infer(label, rows)
            except _REFUSED:
                raise
            except QInferError as error:
                if isinstance(error, Unavailable | ModelNotFound) or error.retry is Retry.LATER:
                    logger.warning("model %s: records have to wait: %s", self._uses[label].name, error)
                else:
                    failures += 1
                    final = error.retry is Retry.NEVER or failures >= _ATTEMPTS
                    if len(rows.places) > 1:
                        await self._split(score, label, rows, before + failures)
                        return
                    if final:
                        bad = BadRecord(error.reason, error.message)
                        score.failed[rows.places[0]] = Dead(bad, before + failures)
                        return
                await asyncio.sleep(backoff.next(0.0))
            else:
                score.outputs.setdefault(label, []).append(outputs)
                return

    async def _split(self, score: Score, label: str, rows: Rows, before: int) -> None:
        for half in halves(rows):
            await self._run(score, label, half, before)

    async def _infer(self, label: str, rows: Rows) -> Rows:
        use, info = self._uses[label], self._infos[label]
        datatypes = {record.name: record.datatype for record in info.inputs}
        options = Options(version=use.version, outputs=use.outputs, timeout=self._timeout)
        async with self._turns:
            result = await self._client.infer(use.name, tensors(rows, datatypes), options)
        return Rows(rows.places, result.outputs, rows.counts)
