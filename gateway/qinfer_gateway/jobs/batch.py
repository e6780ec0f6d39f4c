"""Batch jobs: a file of inputs becomes a file of outputs, on capacity that nobody else wants.

The job at the broker holds what is to be done and how far it is; the rows that are done lie beside the output
(`qinfer.scoring.journal`). A gateway that dies leaves both, and the next one that sees the folder goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec

from qinfer.client.base import ModelInfo
from qinfer.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    JobNotFound,
    QInferError,
    QueueFull,
    Unavailable,
    from_reason,
)
from qinfer.jobs import BatchWork, JobStore, transitions
from qinfer.jobs.stored import StoredJob
from qinfer.lifecycle import cancelled
from qinfer.message import Request, Response, ResponseFrame, Tensor
from qinfer.scoring import SUFFIX, Columns, OnError, Plan, Progress, Refused, Run, Settings, make_plan
from qinfer_gateway.call import Call
from qinfer_gateway.catalog import Catalog, Target
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.jobs.references import BatchRoots
from qinfer_gateway.jobs.spare import MOST, Heard, Spare

logger = logging.getLogger(__name__)

_TELL_SECONDS = 2.0  # between two updates of a job's progress
_PATIENCE = 60.0  # seconds without any answer after which the job waits at the broker instead of here
_ELSEWHERE = 5.0  # seconds for another gateway to take a job that this one cannot run

Names = tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=1000)], ...]


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a batch job is to do, as it is submitted.

    Attributes:
        input, output: references, `NAME/path/of/file`.
        map: the column, or columns, of each input; found by name where it is left out.
        outputs: the output that each column of the output file holds; all by their own names when empty.
        keep: columns of the input that the output has, too.
        on_error: what a row does that cannot be scored.
        bytes: how BYTES are written.
        chunk: rows of a request, at most; 0 for as many as the model takes.
        replace: whether an output that is there already is replaced.
    """

    input: str
    output: str
    map: dict[str, str | Names] = {}
    outputs: dict[str, str] = {}
    keep: Names = ()
    on_error: OnError = OnError.FAIL
    bytes: Annotated[str, msgspec.Meta(pattern="^(text|binary)$")] = "text"
    chunk: Annotated[int, msgspec.Meta(ge=0)] = 0
    replace: bool = False

    @property
    def settings(self) -> Settings:
        """The same for `make_plan`."""
        inputs = {name: (value,) if isinstance(value, str) else value for name, value in self.map.items()}
        return Settings(
            columns=Columns(inputs=inputs, outputs=self.outputs, keep=self.keep),
            on_error=self.on_error,
            binary=self.bytes == "binary",
            chunk=self.chunk,
        )


class BatchCall(Call):
    """One request of a batch job."""

    __slots__ = ("answer", "heard")

    protocol = "job"
    operation = "batch {model}"

    def __init__(self, heard: Heard) -> None:
        super().__init__(monotonic())
        self.heard = heard
        self.answer: asyncio.Future[Sequence[Tensor]] = asyncio.get_running_loop().create_future()

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        """Keep the outputs."""
        self.heard(frame.backlog)
        if not self.answer.done():
            self.answer.set_result(response.outputs)

    def failed(self, error: QInferError) -> None:
        """Keep why there are none."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batches:
    """Accepts batch jobs and runs them.

    Args:
        roots: folders they may name.
        store: the jobs.
        catalog, dispatcher: where their requests go.
        spare: tells when they may.
        most: batch jobs that run here at once; others wait at the broker.
    """

    def __init__(
        self,
        roots: BatchRoots,
        store: JobStore,
        catalog: Catalog,
        dispatcher: Dispatcher,
        spare: Spare,
        *,
        most: int = 4,
    ) -> None:
        self._roots = roots
        self._store = store
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._spare = spare
        self._most = most
        self._running = 0

    async def accept(self, target: Target, spec: dict[str, Any], *, tenant: str, repeated: bool) -> BatchWork:
        """Check a batch that somebody wants, files and mapping included.

        Args:
            target: the model, whose version of now scores all rows.
            spec: the fields of a `BatchSpec`.
            tenant: whom its requests are accounted to.
            repeated: it may be a job already, by its idempotency key: its files are not looked at.

        Raises:
            InvalidRequest: it is none, or file, model and mapping do not fit together.
            Forbidden: a reference leads out of its folder.
            Unsupported: no folders are allowed here.
        """
        batch = _read(spec)
        self._paths(batch)
        if not repeated:
            plan = await asyncio.to_thread(self._plan, batch, target)
            plan.reader.close()
            if not batch.replace and plan.target.exists():
                raise InvalidRequest(
                    f"batch.output: {batch.output} is there already; expected another, or 'replace'"
                )
        return BatchWork(spec, target.record.version, tenant)

    async def run(self, job: StoredJob, work: BatchWork) -> None:
        """Score what is not scored yet, and put the output in its place.

        Raises:
            QInferError: why that failed; what its `retry` says decides whether it is run again.
        """
        batch = _read(work.spec)
        for reference in (batch.input, batch.output):
            if not self._roots.knows(reference):  # as another gateway does, which accepted it
                raise Unavailable(f"this gateway has no folder for {reference}", retry_after=_ELSEWHERE)
        if self._running >= self._most:
            raise QueueFull(f"{self._running} batch jobs run here already", retry_after=_ELSEWHERE)
        seconds = job.record.options.timeout
        self._running += 1
        try:
            async with asyncio.timeout(seconds or None):
                await self._run(job, work, batch)
        except TimeoutError:
            raise DeadlineExceeded(f"the attempt took longer than the {seconds:g} s of its timeout") from None
        except QInferError as error:
            raise from_reason(error.reason, self._roots.hidden(error.message), error.retry_after) from error
        finally:
            self._running -= 1

    async def _run(self, job: StoredJob, work: BatchWork, batch: BatchSpec) -> None:
        target = self._catalog.find(job.record.model, work.version)
        plan = await asyncio.to_thread(self._plan, batch, target)
        if _was_finished(job, plan.target):
            plan.reader.close()
            return
        teller = _Teller(self._store, job.id)
        try:
            try:
                await self._score(plan, work, teller, restart=False)
            except Refused:
                if not batch.replace:
                    raise
                plan = await asyncio.to_thread(self._plan, batch, target)
                await self._score(plan, work, teller, restart=True)
        finally:
            await teller.close()

    async def _score(self, plan: Plan, work: BatchWork, teller: _Teller, *, restart: bool) -> None:
        model, version = plan.model.name, work.version

        async def infer(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            rows = inputs[0].shape[0] if plan.model.max_batch_size else 1
            async with self._spare.turn(model, version, rows) as heard:
                call = BatchCall(heard)
                request = Request(0, "", list(inputs), plan.wanted, tenant=work.tenant)
                self._dispatcher.submit(call, self._catalog.find(model, version), request)
                try:
                    return await call.answer
                finally:
                    self._dispatcher.abandon(call)

        run = Run(
            plan,
            infer,
            in_flight=MOST,
            patience=_PATIENCE,
            restart=restart,
            told=teller.tell,
            finishing=teller.finish,
        )
        await run()

    def _paths(self, batch: BatchSpec) -> tuple[Path, Path, Path]:
        """Input and output, and the folder that the input may not lead out of."""
        source, root = self._roots.find("batch.input", batch.input)
        output, _ = self._roots.find("batch.output", batch.output)
        if output.is_relative_to(source) or source.is_relative_to(output):
            raise InvalidRequest("batch.output: is the input, or in it; expected another place")
        return source, output, root

    def _plan(self, batch: BatchSpec, target: Target) -> Plan:
        source, output, root = self._paths(batch)
        record = target.record
        info = ModelInfo(
            name=record.name,
            versions=(record.version,),
            platform=record.platform,
            ready=True,
            inputs=record.inputs,
            outputs=record.outputs,
            max_batch_size=record.max_batch_size,
            decoupled=target.decoupled,
        )
        try:
            return make_plan(source, output, info, batch.settings, within=root)
        except QInferError as error:
            raise from_reason(error.reason, self._roots.hidden(error.message)) from None


class _Teller:
    """Writes a job's progress into its record, now and then; made by the task that runs it.

    It sees what the notice of a cancellation, which may be lost, did not tell: then it cancels that task.
    """

    def __init__(self, store: JobStore, job_id: str) -> None:
        self._store = store
        self._job_id = job_id
        self._progress: Progress | None = None
        self._run = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None

    def tell(self, progress: Progress) -> None:
        self._progress = progress
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), name=f"progress of {self._job_id}")

    async def finish(self, progress: Progress) -> None:
        """All rows are done: that the record says so before the output is there tells `_was_finished`."""
        await self.close()
        await self._write(replace(progress, total=progress.rows))

    async def close(self) -> None:
        if self._task is not None:
            await cancelled(self._task)

    async def _tell(self) -> None:
        while True:
            if self._progress is not None:
                try:
                    await self._write(self._progress)
                except (Cancelled, JobNotFound):
                    if self._run is not None:
                        self._run.cancel()
                    return
                except QInferError as error:
                    logger.info("progress of job %s: %s", self._job_id, error)
            await asyncio.sleep(_TELL_SECONDS)

    async def _write(self, progress: Progress) -> None:
        done, total, failed = progress.rows, _total(progress), progress.failed
        job = await self._store.change(
            self._job_id, lambda job: transitions.progressed(job, done, total, failed)
        )
        if job.ended:
            raise Cancelled("the job has ended, and not by this run")


def _read(spec: dict[str, Any]) -> BatchSpec:
    try:
        return msgspec.convert(spec, BatchSpec)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"batch: {error}") from None


def _total(progress: Progress) -> int:
    """Rows of the input; an estimate, by its bytes, where they are not counted."""
    if progress.total is not None:
        return progress.total
    return max(progress.rows + 1, round(progress.rows / progress.fraction)) if progress.fraction else 0


def _was_finished(job: StoredJob, target: Path) -> bool:
    """Whether an earlier attempt put the output in its place and died before the job's record said so."""
    progress = job.record.progress
    journal = target.with_name(target.name + SUFFIX)
    complete = progress is not None and progress.done == progress.total
    return complete and target.exists() and not journal.exists()
