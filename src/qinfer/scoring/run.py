"""One run: reads, asks and writes, a bounded number of chunks at a time and in the order of the rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest, QInferError, Unavailable, from_reason
from qinfer.lifecycle import cancelled
from qinfer.scoring.asking import Asker, Failed, Infer, Scored
from qinfer.scoring.columns import ArrayColumn, Block, Chunk, Column
from qinfer.scoring.formats import Field, Part, is_folder
from qinfer.scoring.formats.folder import FILE
from qinfer.scoring.journal import Journal
from qinfer.scoring.mapping import Ask, asks
from qinfer.scoring.plan import OnError, Plan

PART_ROWS = 1 << 16
PART_BYTES = 32 << 20
PART_SECONDS = 5.0
"""A part of the output ends with the first chunk behind one of these: what dies with the process is less."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: rows of the input that are done, in earlier tries too.
        total: of how many; None where only reading all of the input would tell.
        fraction: of the input, from 0 to 1.
        written: rows of the output.
        failed: rows that could not be scored.
    """

    rows: int
    total: int | None
    fraction: float
    written: int
    failed: int


@dataclass(slots=True, kw_only=True)
class _Held:
    """A chunk on its way, and what became of its rows."""

    chunk: Chunk
    asks: Sequence[Ask]
    faults: dict[int, QInferError]
    answers: list[Scored | Failed] = field(default_factory=list)


class Run:
    """Scores what a plan says.

    Args:
        plan: what, and how.
        infer: asks the model.
        in_flight: chunks that are asked about at once; as many are held in memory.
        patience: seconds without any answer in which a server that is away or busy is asked again.
        restart: forget what an earlier process did, and replace an output that is there.
        told: called whenever a chunk is done.
        finishing: awaited when all rows are done, before the output is put in its place.

    Attributes:
        held: chunks in memory now.
        most_held: the most there were.
    """

    def __init__(
        self,
        plan: Plan,
        infer: Infer,
        *,
        in_flight: int = 8,
        patience: float = 300.0,
        restart: bool = False,
        told: Callable[[Progress], object] = lambda _: None,
        finishing: Callable[[Progress], Awaitable[object]] | None = None,
    ) -> None:
        self._plan = plan
        self._asker = Asker(infer, plan.model, plan.fields, patience=patience)
        self._in_flight = in_flight
        self._restart = restart
        self._told = told
        self._finishing = finishing
        self._journal = Journal(plan.target)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._writing: _Writing | None = None
        self.held = self.most_held = 0

    async def __call__(self) -> Progress:
        """Score all rows that are not scored yet, and put the output in its place.

        What is done when it ends early, for whatever reason, is not done again by the next run.

        Raises:
            InvalidRequest: an earlier run was another one, an output is there already, or the input is
                broken; with `OnError.FAIL`, a row cannot be scored.
            Unavailable: another process is at it; or the server was away for longer than `patience`.
            QInferError: why the model cannot be asked.
        """
        journal = self._journal
        try:
            await self._off(partial(journal.open, self._plan.identity(), restart=self._restart))
            self._told(self.progress)
            if not journal.complete:
                try:
                    await self._all()
                finally:
                    await self._off(self._commit)
            if self._finishing is not None:
                await self._finishing(self.progress)
            await self._off(
                partial(journal.finish, self._plan.writer.join, folder=is_folder(self._plan.target))
            )
            return self.progress
        except OSError as error:
            raise Unavailable(f"{error.filename or self._plan.target}: {error.strerror or error}") from None
        finally:
            journal.close()
            self._plan.reader.close()
            self._pool.shutdown()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        journal, writing, reader = self._journal, self._writing, self._plan.reader
        rows, end = journal.rows, journal.end or 0
        written, failed = journal.written, journal.failed
        if writing is not None:
            rows, end = writing.last, writing.end
            written, failed = written + writing.written, failed + writing.failed
        return Progress(
            rows=rows,
            total=rows if journal.complete else reader.rows,
            fraction=1.0 if journal.complete or not reader.extent else min(1.0, end / reader.extent),
            written=written,
            failed=failed,
        )

    async def _all(self) -> None:
        """Read ahead as far as requests may be in flight; write what comes first in the file."""
        plan, journal = self._plan, self._journal
        chunks = plan.reader.read(plan.columns, plan.rows, first=journal.rows, begin=journal.end)
        flying: deque[asyncio.Task[_Held]] = deque()
        more = True
        try:
            while True:
                while more and len(flying) < self._in_flight:
                    held = await self._off(partial(self._next, chunks))
                    if held is None:
                        more = False
                    else:
                        self.held += 1
                        self.most_held = max(self.most_held, self.held)
                        flying.append(asyncio.create_task(self._ask(held)))
                if not flying:
                    return
                done = await flying[0]
                flying.popleft()
                await self._off(partial(self._write, done))
                self.held -= 1
                self._told(self.progress)
        finally:
            await cancelled(*flying)

    async def _ask(self, held: _Held) -> _Held:
        for ask in held.asks:
            held.answers += await self._asker.ask(ask)
        return held

    async def _off(self, work: Callable[[], _T]) -> _T:
        """Do what touches files in a thread of its own, and be cancelled only when it is done."""
        doing = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.gather(doing, return_exceptions=True)
            raise

    # In the thread

    def _next(self, chunks: Iterator[Chunk]) -> _Held | None:
        chunk = next(chunks, None)
        if chunk is None:
            return None
        plan = self._plan
        faults = dict(chunk.faults)
        for kept in plan.fields:
            if not kept.output:
                faults.update(plan.writer.faults(kept, chunk.columns[kept.name]))
        asked, wrong = asks(replace(chunk, faults=faults), plan.bindings, plan.rows)
        return _Held(chunk=chunk, asks=asked, faults=wrong)

    def _write(self, held: _Held) -> None:
        """Add a chunk to the part, and begin the next one where it is large or old enough."""
        faults = held.faults
        blocks = []
        for answer in held.answers:
            if isinstance(answer, Failed):
                faults[answer.place] = answer.error
            else:
                blocks.append(self._block(held.chunk, answer, faults))
        if self._plan.settings.on_error is OnError.FAIL and faults:
            place = min(faults)
            raise self._located(held.chunk.first + place, faults[place])
        if self._writing is None:
            self._writing = _Writing(self._plan, self._journal)
        writing = self._writing
        try:
            for block in blocks:
                writing.add(block)
            for place in sorted(faults):
                writing.fail(held.chunk.first + place, faults[place])
        except BaseException:
            self._writing = None  # a part with half of a chunk is never committed
            raise
        writing.last, writing.end = held.chunk.first + held.chunk.rows, held.chunk.end
        if writing.due:
            self._commit()

    def _block(self, chunk: Chunk, scored: Scored, faults: dict[int, QInferError]) -> Block:
        columns: dict[str, Column] = {}
        places = list(scored.places)
        bad: set[int] = set()
        for column in self._plan.fields:
            if not column.output:
                continue
            values = scored.outputs[column.name]
            if column.datatype == "BYTES" and not self._plan.settings.binary:
                values = _text(values, column, places, faults, bad)
            columns[column.name] = ArrayColumn(values)
        if bad:
            good = [row for row, place in enumerate(places) if place not in bad]
            columns = {name: column.take(good) for name, column in columns.items()}
            places = [places[row] for row in good]
        for column in self._plan.fields:
            if not column.output:
                columns[column.name] = chunk.columns[column.name].take(places)
        names = list(chunk.columns[FILE].take(places).values()) if self._plan.reader.names_rows else ()
        return Block(rows=[chunk.first + place for place in places], columns=columns, names=names)

    def _commit(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.close()

    def _located(self, row: int, error: QInferError) -> QInferError:
        """The error with the row's place: in the file, as people look for it."""
        return from_reason(
            error.reason, f"{self._plan.source}: row {row}: {error.message}", error.retry_after
        )


class _Writing:
    """The part of the output that is being written."""

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self._journal = journal
        self._part: Part = plan.writer.part(journal.part)
        self._errors: BinaryIO | None = None
        self._recorded = plan.settings.on_error is OnError.RECORD
        self._begun = monotonic()
        self._bytes = 0
        self.last, self.end = journal.rows, journal.end or 0
        self.written = self.failed = 0

    @property
    def due(self) -> bool:
        """Whether it is time for the next part."""
        rows = self.last - self._journal.rows
        return rows >= PART_ROWS or self._bytes >= PART_BYTES or monotonic() - self._begun >= PART_SECONDS

    def add(self, block: Block) -> None:
        if block.rows:
            self._bytes += self._part.write(block)
            self.written += len(block.rows)

    def fail(self, row: int, error: QInferError) -> None:
        self.failed += 1
        if self._recorded:
            if self._errors is None:
                self._errors = self._journal.part_errors.open("wb")
            line = {"row": row, "reason": error.reason, "message": error.message}
            self._errors.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Commit it."""
        self._part.close()
        if self._errors is not None:
            self._errors.close()
        if self.last > self._journal.rows:
            self._journal.commit(self.last, self.end, self.written, self.failed)


def _text(
    values: Array, column: Field, places: Sequence[int], faults: dict[int, QInferError], bad: set[int]
) -> Array:
    """BYTES as text; rows where they are none are added to `faults` and `bad`."""
    texts = np.empty(values.shape, dtype=object)
    for row, place in enumerate(places):
        try:
            texts[row] = _decoded(values[row])
        except UnicodeDecodeError as error:
            bad.add(place)
            faults[place] = InvalidRequest(
                f"output {column.output!r}: found byte 0x{error.object[error.start]:02x} at {error.start}; "
                "expected UTF-8 text (--bytes binary writes any)"
            )
    return texts


def _decoded(value: bytes | Array) -> object:
    if not isinstance(value, np.ndarray):
        return value.decode()
    decoded = np.empty(value.size, dtype=object)
    decoded[:] = [element.decode() for element in value.reshape(-1)]
    return decoded.reshape(value.shape)
