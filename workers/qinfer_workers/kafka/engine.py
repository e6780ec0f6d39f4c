"""Keeps a pipeline running: sessions, one after the other, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, TypeAlias

from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from qinfer.embedded.backoff import Backoff
from qinfer.errors import InternalError, QInferError, Retry, SetupError
from qinfer.lifecycle import cancelled
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.kafka.clients import as_error
from qinfer_workers.kafka.contract import Pipeline
from qinfer_workers.kafka.leftovers import Leftovers
from qinfer_workers.kafka.scoring import Scorer
from qinfer_workers.kafka.session import Session
from qinfer_workers.kafka.spans import RecordSpans
from qinfer_workers.kafka.stages import Stages
from qinfer_workers.kafka.stats import PipelineStats
from qinfer_workers.kafka.topics import destinations

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["starting", "running", "waiting", "stopping"]

_FENCED = 3
"""Sessions in a row that are locked out before they commit anything, after which the engine gives up."""

_HEALTHY_AFTER = 60.0  # seconds a session was good for; the next trouble counts as the first again
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """How the engine is doing.

    Attributes:
        state: "waiting" after trouble, until the next session has its partitions.
        problem: what the trouble is, "" for none.
    """

    state: State
    problem: str = ""


class Engine:
    """Runs a pipeline.

    Args:
        pipeline: what to read, score and write.
        scorer: has models score; started and closed here.
        stats: counters.
        tracing: makes spans; None when tracing is off.
    """

    def __init__(
        self, pipeline: Pipeline, scorer: Scorer, stats: PipelineStats, tracing: Tracing | None = None
    ) -> None:
        self._pipeline = pipeline
        self._scorer = scorer
        self._stats = stats
        self._spans = RecordSpans(tracing, pipeline.group)
        self._session: Session | None = None
        self._stopping: asyncio.Event | None = None
        self._problem = ""
        self.loaded = asyncio.Event()
        """Set once topics, models and formats are as they should be."""

    @property
    def health(self) -> Health:
        """How it is doing now."""
        if self._stopping is not None and self._stopping.is_set():
            return Health("stopping")
        if self._session is not None and self._session.joined:
            return Health("running")
        return Health("waiting" if self._problem else "starting", self._problem)

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping`, then finish what is in flight.

        Raises:
            SetupError: a topic, a model or the configuration is not as it should be; another program locked
                the scorer out again and again.
            ModelFailed: a record cannot be scored, and there is no topic for dead letters.
            Unavailable: the brokers, the fleet or the schema registry do not answer at the start.
            QInferError: it cannot go on.
        """
        self._stopping = stopping
        async with AsyncExitStack() as stack:
            output, dead = await destinations(self._pipeline)
            stack.push_async_callback(self._scorer.close)
            codec = self._pipeline.codec(await self._scorer.start())
            stack.push_async_callback(codec.close)
            await codec.start()
            self.loaded.set()
            stages = Stages(self._pipeline, codec, self._scorer, self._stats, self._spans)
            stack.callback(stages.close)
            leftovers = Leftovers()
            stack.push_async_callback(leftovers.abandon)
            backoff = Backoff(cap=_LONGEST_PAUSE, healthy_after=_HEALTHY_AFTER)
            fenced = 0
            while not stopping.is_set():
                session = Session(self._pipeline, output, dead, stages, self._stats, leftovers=leftovers)
                started = monotonic()
                self._session = session
                try:
                    await session.run(stopping)
                except Exception as error:  # noqa: BLE001 (told apart below)
                    self._session = None
                    fenced = self._judge(error, session, fenced)
                    pause = backoff.next(monotonic() - started)
                    await _first(stopping, asyncio.sleep(pause))
                    await _first(stopping, leftovers.ended())

    def _judge(self, error: Exception, session: Session, fenced: int) -> int:
        """What to make of the end of a session; returns how many in a row were locked out.

        Raises:
            QInferError: another session would be of no use.
        """
        what = f"group {self._pipeline.group!r}"
        if isinstance(error, ProducerFenced | InvalidProducerEpoch):
            fenced = 1 if session.progressed else fenced + 1
            self._stats.transactions["fenced"] += 1
            self._problem = (
                f"{what}: locked out: its partitions were given to another scorer, or a transaction took "
                "longer than its timeout; what was not committed is aborted"
            )
            if fenced >= _FENCED:
                raise SetupError(
                    f"{self._problem}. This happened {fenced} times in a row: expected no other program "
                    "that uses the transactional ids of this group"
                ) from error
        elif isinstance(error, KafkaError | OSError | QInferError):
            fenced = 0
            found = as_error(error, what)
            if found.retry is Retry.NEVER:
                raise found from error
            self._problem = found.message
        else:
            raise InternalError(f"{what}: {type(error).__name__}: {error}") from error
        self._stats.restarts += 1
        logger.warning("%s; joining again", self._problem)
        return fenced


async def _first(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await something, or the order to stop."""
    tasks = {asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(*tasks)
