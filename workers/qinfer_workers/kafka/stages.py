"""What happens to a group between reading and writing: decode, score, encode."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from qinfer.embedded.backoff import Backoff
from qinfer.errors import Unavailable
from qinfer_workers.kafka.contract import BadRecord, Codec, Pipeline, Record
from qinfer_workers.kafka.group import DROPPED, TOMBSTONE, Dead, Group, Outcome
from qinfer_workers.kafka.scoring import Scorer
from qinfer_workers.kafka.spans import RecordSpans
from qinfer_workers.kafka.stats import PipelineStats

logger = logging.getLogger(__name__)

_THREADS = 2  # one decodes while the other encodes

T = TypeVar("T")


class Stages:
    """Turns the records of a group into outcomes.

    Args:
        pipeline: limits and what is done with tombstones.
        codec: started.
        scorer: started.
        stats: counters.
        spans: of sampled records.
    """

    def __init__(
        self, pipeline: Pipeline, codec: Codec, scorer: Scorer, stats: PipelineStats, spans: RecordSpans
    ) -> None:
        self._codec = codec
        self._scorer = scorer
        self._stats = stats
        self._spans = spans
        self._max_bytes = pipeline.limits.max_record_bytes
        self._tombstone: Outcome = TOMBSTONE if pipeline.tombstones == "pass" else DROPPED
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="codec")

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, group: Group) -> None:
        """Find the outcome of each record and set `done`.

        Raises:
            QInferError: the records are not to blame.
        """
        spans = self._spans.open(group)
        records = group.records
        outcomes: list[Outcome] = [self._tombstone] * len(records)
        limit = self._max_bytes
        places = [
            place
            for place, record in enumerate(records)
            if (value := record.value) is not None and len(value) <= limit
        ]
        if len(places) < len(records):
            self._refuse_large(records, outcomes)
        if places:
            wanted = records if len(places) == len(records) else [records[place] for place in places]
            for place, outcome in zip(places, await self._score(wanted), strict=True):
                outcomes[place] = outcome
        group.outcomes = outcomes
        spans.close(outcomes)
        if not group.done.done():
            group.done.set_result(None)

    def _refuse_large(self, records: Sequence[Record], outcomes: list[Outcome]) -> None:
        for place, record in enumerate(records):
            size = len(record.value or b"")
            if size > self._max_bytes:
                text = f"a value of {size} bytes; expected at most {self._max_bytes} (max_record_bytes)"
                outcomes[place] = Dead(BadRecord("too_large", text))

    async def _score(self, records: Sequence[Record]) -> list[Outcome]:
        await self._prepare(records)
        decoded = await self._timed("decode", lambda: self._codec.decode(records))
        bad = decoded.bad
        outcomes: list[Outcome] = [DROPPED] * len(records)
        for place, why in bad.items():
            outcomes[place] = Dead(why)
        if len(bad) == len(records):
            return outcomes
        started = perf_counter()
        score = await self._scorer.score(decoded.inputs)
        self._stats.stages["score"].observe(perf_counter() - started)
        for place, dead in score.failed.items():
            outcomes[place] = dead
        good = [place for place in range(len(records)) if place not in bad and place not in score.failed]
        if good:
            values = await self._timed(
                "encode", lambda: self._codec.encode(records, decoded, score.outputs, good)
            )
            limit = self._max_bytes
            for place, value in zip(good, values, strict=True):
                if type(value) is bytes and len(value) <= limit:
                    outcomes[place] = value
                else:
                    outcomes[place] = self._unwritable(value)
        return outcomes

    def _unwritable(self, value: bytes | BadRecord) -> Dead:
        if isinstance(value, bytes):
            text = f"an output of {len(value)} bytes; expected at most {self._max_bytes} (max_record_bytes)"
            value = BadRecord("too_large", text)
        return Dead(value, 1)

    async def _prepare(self, records: Sequence[Record]) -> None:
        """Have the codec fetch what it needs, however long that takes."""
        backoff = Backoff(cap=5.0)
        while True:
            try:
                await self._codec.prepare(records)
            except Unavailable as error:
                logger.warning("records have to wait: %s", error)
                await asyncio.sleep(backoff.next(0.0))
            else:
                return

    async def _timed(self, stage: str, work: Callable[[], T]) -> T:
        started = perf_counter()
        result = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._stats.stages[stage].observe(perf_counter() - started)
        return result
