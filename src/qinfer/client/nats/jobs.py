"""Jobs at the broker itself."""

from __future__ import annotations

from time import monotonic

from qinfer.bus import Bus
from qinfer.client.base import Result
from qinfer.client.transport import Question
from qinfer.errors import DeadlineExceeded, InternalError, QInferError
from qinfer.jobs import ENDED, InferWork, JobOptions, JobRecord, JobStore, Submission
from qinfer.jobs.stored import Form
from qinfer.message import Request


class NatsJobs:
    """The jobs of a namespace.

    Args:
        bus: a started bus.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._made: JobStore | None = None

    @property
    def _store(self) -> JobStore:
        if self._made is None:
            self._made = JobStore(self._bus)
        return self._made

    async def submit(self, question: Question, request: Request, job: JobOptions) -> JobRecord:
        """Store a job and queue it."""
        return await self._store.submit(
            Submission(
                model=question.model,
                version=question.options.version,
                work=InferWork(request),
                form=Form(binary=True),
                options=job,
                priority=question.options.priority,
                idempotency_key=question.options.idempotency_key,
            )
        )

    async def get(self, job_id: str, give_up: float) -> JobRecord:
        """A job at its end, or as it is then, of `time.monotonic`.

        Raises:
            JobNotFound: there is no such job.
        """
        return await self._store.wait(job_id, give_up - monotonic())

    async def result(self, job_id: str, give_up: float) -> Result | QInferError:
        """A job's answer, or why it failed.

        Raises:
            DeadlineExceeded: it has not ended by then.
            QInferError: it is not known.
        """
        record = await self._store.wait(job_id, give_up - monotonic())
        if record.state not in ENDED:
            state = record.state.value
            raise DeadlineExceeded(f"job {job_id} is {state}; its result was not waited for longer")
        if record.error is not None:
            return record.error.exception()
        found = await self._store.result(job_id)
        if found is None:
            raise InternalError(f"job {job_id} has ended without a result; is it a request?")
        return Result(
            model=record.model,
            version=found.frame.model_version,
            tensors=found.response.outputs,
            parameters=found.response.parameters,
        )

    async def cancel(self, job_id: str) -> JobRecord:
        """Have a job not run, or stopped."""
        return await self._store.cancel(job_id)
