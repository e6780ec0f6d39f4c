"""The jobs of a gateway: taking them in, running them, waiting for them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.errors import QInferError, Unavailable, Unsupported
from qinfer.jobs import (
    ENDED,
    Form,
    InferWork,
    JobLimits,
    JobOptions,
    JobRecord,
    JobStore,
    Submission,
)
from qinfer.jobs.options import check_options
from qinfer.lifecycle import cancelled
from qinfer.message import Request
from qinfer.proto import ModelConfig
from qinfer_gateway.auth.principal import ANONYMOUS, Principal
from qinfer_gateway.catalog import Catalog, Target
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.jobs.attempt import Attempts, BatchRunner
from qinfer_gateway.jobs.lane import Shared, Shares, new_shares
from qinfer_gateway.jobs.runner import JobRunner
from qinfer_gateway.jobs.stats import JobStats
from qinfer_gateway.jobs.webhooks import Webhooks

logger = logging.getLogger(__name__)

_RETRY = 2.0  # seconds between two attempts to begin
_LONGEST_RETRY = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What a gateway's options say of jobs.

    Attributes:
        limits: for new jobs.
        in_flight: jobs of one model that are worked on at once.
        max_bytes: of requests of jobs that are held at once.
    """

    limits: JobLimits
    in_flight: int = 32
    max_bytes: int = 512 << 20


class JobService:
    """The jobs of a gateway.

    Args:
        bus: a started bus.
        catalog, dispatcher: where jobs run.
        settings: see there.
        webhooks: tells of the ends of jobs.
        store: the jobs.
        stats: told of jobs.
        batches: runs batch jobs; None where there are none.
        shares: what jobs have with each model.
    """

    def __init__(
        self,
        bus: Bus,
        catalog: Catalog,
        dispatcher: Dispatcher,
        settings: JobSettings,
        *,
        webhooks: Webhooks,
        store: JobStore,
        stats: JobStats,
        batches: BatchRunner | None = None,
        shares: Shares | None = None,
    ) -> None:
        self._batches = batches
        self.store = store
        self._webhooks = webhooks
        self._stats = stats
        claims = Claims(bus, max_bytes=settings.max_bytes)
        attempts = Attempts(store, catalog, dispatcher, claims, stats, batches)
        shared = Shared(
            bus,
            catalog,
            lambda: dispatcher.flights,
            attempts.work_on,
            settings.in_flight,
            new_shares() if shares is None else shares,
        )
        self._runner = JobRunner(store, attempts, shared, stats)
        self._opening: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self.ready = False
        """Whether this gateway can take jobs in, and runs them."""

    def start(self) -> None:
        """Begin in the background: a broker that does not have it keeps nobody from being served."""
        self._opening = asyncio.create_task(self._open(), name="jobs")

    async def _open(self) -> None:
        pause = _RETRY
        while True:
            try:
                await self._runner.start()
                await self._webhooks.start()
                self.ready = True
                return
            except QInferError as error:
                logger.warning("no jobs yet: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY)

    def leave(self) -> None:
        """Let go who waits for a job: other gateways know them as well."""
        self._leaving.set()

    async def close(self, timeout: float) -> None:
        """Run no more jobs; those that have not ended after `timeout` seconds go to others. Idempotent."""
        self.leave()
        self.ready = False
        opening, self._opening = self._opening, None
        if opening is not None:
            await cancelled(opening)
        await asyncio.gather(self._runner.close(timeout), self._webhooks.close())

    async def submit(
        self,
        target: Target,
        request: Request,
        options: JobOptions,
        *,
        submitter: Principal,
        form: Form,
        key: str = "",
    ) -> JobRecord:
        """Take a request in as a job.

        Args:
            target: what it asks.
            request: the request; what its submitter may not have is taken out of it.
            options: how it is run.
            submitter: who sends it.
            form: how its result is to be told.
            key: its idempotency key; "" for none.

        Raises:
            InvalidRequest: it does not fit the model's signature, or its options cannot be met.
            Unsupported: the model gives any number of responses, or its webhook is not told from here.
            Forbidden: its webhook may not go there.
            QueueFull: there are too many jobs, or bytes of them.
            Unavailable: this gateway takes no jobs at the moment.
        """
        if target.decoupled:
            raise Unsupported(
                f"model {target.model!r} is decoupled: it gives any number of responses to a request; a job "
                "has one"
            )
        target.signature.check(request)
        levels = ModelConfig.FromString(target.record.config).dynamic_batching
        if options.spare and not request.priority:
            request.priority = levels.priority_levels
        if submitter is not ANONYMOUS:
            submitter.stamp(request)
        submission = Submission(
            model=target.model,
            version=target.wanted_version,
            work=InferWork(request),
            owner=owner_of(submitter) or "",
            options=options,
            form=form,
            priority=request.priority,
            default_priority=levels.default_priority_level,
            idempotency_key=key,
        )
        return await self._submit(submission)

    async def submit_batch(
        self,
        target: Target,
        spec: dict[str, Any],
        options: JobOptions,
        *,
        submitter: Principal,
        key: str = "",
    ) -> JobRecord:
        """Take a file of inputs in as a job, which runs on leftover capacity. Raises as `submit`."""
        if self._batches is None:
            raise Unsupported("this gateway runs no batch jobs")
        tenant = "" if submitter is ANONYMOUS else submitter.tenant
        work = await self._batches.accept(target, spec, tenant=tenant, repeated=bool(key))
        submission = Submission(
            model=target.model,
            version=target.wanted_version,
            work=work,
            owner=owner_of(submitter) or "",
            options=replace(options, spare=True),
            idempotency_key=key,
        )
        return await self._submit(submission)

    async def _submit(self, submission: Submission) -> JobRecord:
        check_options(submission.options)
        self._webhooks.check(submission.options.webhook)
        if not self.ready:
            raise Unavailable("this gateway takes no jobs at the moment", retry_after=2.0)
        record = await self.store.submit(submission)
        self._stats.submitted[record.model] += 1
        return record

    async def wait(self, record: JobRecord, seconds: float) -> JobRecord:
        """A job as soon as it has ended, or as it is after so many seconds, or when this gateway leaves.

        Raises:
            JobNotFound: it was forgotten meanwhile.
            BusUnavailable: the broker does not answer.
        """
        if seconds <= 0 or record.state in ENDED:
            return record
        waiting = asyncio.create_task(self.store.wait(record.id, seconds))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else await self.store.get(record.id)
        finally:
            await cancelled(waiting, leaving)

    @property
    def leaving(self) -> asyncio.Event:
        """Set when who waits is to be let go."""
        return self._leaving


def owner_of(principal: Principal) -> str | None:
    """Whose jobs somebody may see; None for everybody's, where nobody is told apart."""
    return None if principal is ANONYMOUS else principal.name
