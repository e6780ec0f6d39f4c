"""One source partition on its way out: its parts of groups, in order, into its sink."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiokafka import TopicPartition

from qinfer.lifecycle import cancelled
from qinfer_workers.kafka.contract import Limits
from qinfer_workers.kafka.group import Part
from qinfer_workers.kafka.sinks import Sink


class Lane:
    """Writes and commits the outcomes of one partition.

    Groups are scored at the same time and end in any order; what a lane was given first it writes first.

    Args:
        source: the partition.
        position: offset of the first record it may be given.
        sink: takes the outcomes.
        limits: when to commit.
        on_progress: called after each commit.
        on_failure: called once, with what ended it.
    """

    def __init__(
        self,
        source: TopicPartition,
        position: int,
        sink: Sink,
        limits: Limits,
        *,
        on_progress: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.source = source
        self.committed = position
        self.in_flight = 0
        """Records it was given and has not committed yet."""
        self.in_flight_bytes = 0
        """Of their values."""
        self._closed = False
        self._sink = sink
        self._interval = limits.commit_interval_ms / 1000
        self._rows = limits.commit_rows
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._parts: deque[Part] = deque()  # bounded by the engine, which asks `in_flight`
        self._wake: asyncio.Future[None] = self._loop.create_future()
        self._draining = False
        self._task = asyncio.create_task(self._run(), name=f"lane {source.topic}/{source.partition}")

    def add(self, part: Part) -> None:
        """Take a part of a group whose outcomes may not be there yet."""
        self._parts.append(part)
        self.in_flight += part.end - part.start
        self.in_flight_bytes += part.size
        self._rouse()

    async def drain(self, timeout: float) -> bool:
        """Write and commit all it was given; whether that was done within `timeout` seconds. Then close.

        What was not is abandoned.
        """
        self._draining = True
        self._rouse()
        await asyncio.wait({self._task}, timeout=timeout)
        done = not self.in_flight
        await self.close()
        return done

    async def close(self) -> None:
        """Stop, and abandon what was not committed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await cancelled(self._task)
        if self.in_flight:
            await self._sink.abandon()

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception as error:  # noqa: BLE001 (handed to the session, which ends of it)
            self._on_failure(error)

    async def _work(self) -> None:
        taken = size = 0  # records in the sink that are not committed, and their bytes
        offset = 0
        due: float | None = None
        while self.in_flight or not self._draining:
            part = await self._next(due)
            if part is not None:
                await self._sink.write(part)
                taken += part.end - part.start
                size += part.size
                offset = part.group.records[part.end - 1].offset + 1
                if due is None:
                    due = self._loop.time() + self._interval
                if not self._ready():
                    await self._sink.flush()
            if due is not None and (taken >= self._rows or self._over(due)):
                await self._sink.commit(offset)
                self.committed = offset
                self.in_flight -= taken
                self.in_flight_bytes -= size
                taken, size, due = 0, 0, None
                self._on_progress()

    def _over(self, due: float) -> bool:
        """Whether it is time to commit."""
        return self._loop.time() >= due or (self._draining and not self._parts)

    def _rouse(self) -> None:
        if not self._wake.done():
            self._wake.set_result(None)

    def _ready(self) -> bool:
        return bool(self._parts) and self._parts[0].group.done.done()

    async def _next(self, due: float | None) -> Part | None:
        """The next part, once its outcomes are there; None when a commit is due, or may be."""
        if not self._parts:
            self._wake = self._loop.create_future()
            await asyncio.wait({self._wake}, timeout=self._left(due))
            return None
        part = self._parts[0]
        if not part.group.done.done():
            await asyncio.wait({part.group.done}, timeout=self._left(due))
            return None
        part.group.done.result()
        self._parts.popleft()
        return part

    def _left(self, due: float | None) -> float | None:
        return None if due is None else max(0.0, due - self._loop.time())
