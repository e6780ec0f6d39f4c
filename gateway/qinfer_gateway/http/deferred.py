"""Infer requests that become jobs, because their callers prefer that."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qinfer.errors import BusUnavailable, InternalError, QInferError
from qinfer.headers import KEY
from qinfer.idempotency import check_key
from qinfer.jobs import ENDED, Form, JobOptions, JobRecord
from qinfer_gateway.auth.principal import ANONYMOUS, Principal
from qinfer_gateway.catalog import Target
from qinfer_gateway.http.codec import InferBody
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.http.prefer import APPLIED, PREFER, Preference, read_options, read_preference
from qinfer_gateway.jobs.describe import job_object
from qinfer_gateway.jobs.service import JobService

if TYPE_CHECKING:
    from qinfer_gateway.http.exchange import Exchange

logger = logging.getLogger(__name__)

_KEY = KEY.encode()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that becomes a job: what is asked, by whom, and how."""

    target: Target
    body: InferBody
    principal: Principal
    options: JobOptions
    key: str
    preference: Preference


class Deferred:
    """Makes jobs of exchanges.

    Args:
        jobs: the jobs of this gateway.
        ids_are_keys: the identifier of a request is its idempotency key, unless it has one.
    """

    def __init__(self, jobs: JobService, *, ids_are_keys: bool) -> None:
        self._jobs = jobs
        self._ids_are_keys = ids_are_keys
        self._submitting: set[asyncio.Task[JobRecord]] = set()

    def take(
        self,
        exchange: Exchange,
        target: Target,
        body: InferBody,
        principal: Principal | None,
        timeout: float,
    ) -> asyncio.Task[None] | None:
        """Make a job of a request, in a task that answers it; None where its caller prefers no job.

        Args:
            exchange: whose request it is.
            target, body: the request.
            principal: who sends it; None where nobody is told apart.
            timeout: seconds that the caller allows for an attempt; 0 where it does not say.

        Raises:
            InvalidRequest: the job's options, or its idempotency key, cannot be.
        """
        preference = read_preference(exchange.headers[PREFER])
        if preference is None:
            return None
        options = read_options(exchange.headers)
        if timeout and not options.timeout:
            options = replace(options, timeout=timeout)
        given = exchange.headers.get(_KEY)
        key = "" if given is None else check_key(given.decode("latin-1"))
        if not key and self._ids_are_keys:
            key = body.request.request_id
        wanted = Wanted(target, body, principal or ANONYMOUS, options, key, preference)
        return asyncio.create_task(self._answer(exchange, wanted))

    async def _answer(self, exchange: Exchange, wanted: Wanted) -> None:
        ends = monotonic() + wanted.preference.wait
        try:
            record = await self._submitted(wanted)
        except QInferError as error:
            exchange.request_id = wanted.body.request.request_id
            exchange.reject(error)
            return
        except Exception:
            logger.exception("a job was not accepted for a reason that is not foreseen")
            exchange.reject(InternalError("the gateway failed to accept the job"))
            return
        try:
            if wanted.preference.wait and await self._result(exchange, record, ends - monotonic()):
                return
        except BusUnavailable as error:  # it was accepted: that is what its caller has to know
            logger.info("how job %s is doing is not known: %s", record.id, error)
        except QInferError as error:
            exchange.failed(error)
            return
        exchange.respond(accepted(record, wanted.preference))

    async def _submitted(self, wanted: Wanted) -> JobRecord:
        """The job. A caller who leaves meanwhile does not leave one that is stored and never queued."""
        submitting = asyncio.create_task(
            self._jobs.submit(
                wanted.target,
                wanted.body.request,
                wanted.options,
                submitter=wanted.principal,
                form=form_of(wanted.body),
                key=wanted.key,
            )
        )
        self._submitting.add(submitting)
        submitting.add_done_callback(self._done)
        return await asyncio.shield(submitting)

    def _done(self, submitting: asyncio.Task[JobRecord]) -> None:
        self._submitting.discard(submitting)
        if not submitting.cancelled():
            submitting.exception()  # or asyncio would complain, where its caller has gone

    async def _result(self, exchange: Exchange, record: JobRecord, seconds: float) -> bool:
        """Whether the result was there in time, and was told."""
        ended = await self._jobs.wait(record, seconds)
        result = await self._jobs.store.result(record.id) if ended.state in ENDED else None
        if result is not None:
            exchange.answered(result.frame, result.response)
        return result is not None


def accepted(record: JobRecord, preference: Preference) -> tuple[bytes, bytes]:
    """Head (without the blank line) and body that say that a request has become a job."""
    job = job_object(record)
    body = encode_json(job)
    head = (
        f"HTTP/1.1 202 {HTTPStatus.ACCEPTED.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nlocation: {job['status_url']}\r\n{APPLIED}: {preference.applied}\r\n"
    )
    return head.encode(), body


def form_of(body: InferBody) -> Form:
    """How the answer to a request is to be told."""
    return Form(
        request_id=body.request.request_id,
        binary=body.binary,
        binary_outputs=tuple(sorted(body.binary_outputs)),
        json_outputs=tuple(sorted(body.json_outputs)),
    )
