"""The routes of jobs: submit, look, wait, follow, cancel, retry, forget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from qinfer.errors import InvalidRequest, JobNotFound, QInferError, Unsupported
from qinfer.headers import JSON_LENGTH, KEY
from qinfer.idempotency import check_key
from qinfer.jobs import ENDED, JobOptions, JobRecord, JobState
from qinfer.lifecycle import cancelled
from qinfer_gateway.auth import caller
from qinfer_gateway.http.bodies import read_body
from qinfer_gateway.http.codec import InferBody, decode_body
from qinfer_gateway.http.compression import MIN_SIZE, accepted, compress
from qinfer_gateway.http.deferred import form_of
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.http.prefer import read_wait
from qinfer_gateway.jobs.describe import JOBS_PATH, job_object
from qinfer_gateway.jobs.results import encode_result
from qinfer_gateway.jobs.service import JobService, owner_of

JOB_PATH = JOBS_PATH + "/{job}"
RESULT_PATH = JOB_PATH + "/result"
EVENTS_PATH = JOB_PATH + "/events"
CANCEL_PATH = JOB_PATH + "/cancel"
RETRY_PATH = JOB_PATH + "/retry"

MAX_PAGE = 1000
DEFAULT_PAGE = 100

_OFF_LOOP_BYTES = 64 * 1024
_KEEP_ALIVE = 15.0  # seconds after which a stream without news says that it lives
_RECONNECT_MS = 1000
_JSON = "application/json"
_BINARY = "application/octet-stream"


Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_NOTHING = msgspec.Raw(b"")


class SubmitBody(msgspec.Struct):
    """Body of a submission: a request for a model, or a file of them."""

    model: str
    model_version: str = ""
    request: msgspec.Raw = _NOTHING
    batch: dict[str, Any] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    options: JobOptions = JobOptions()
    idempotency_key: str = ""


_submission = msgspec.json.Decoder(SubmitBody)


def routes(jobs: JobService | None, front: HttpFront | None) -> list[Route]:
    """The routes.

    Args:
        jobs: the jobs of this gateway; None where there are none.
        front: what all connections share; None where the routes are only listed.
    """
    endpoints = JobRoutes(jobs, front)
    return [
        _route(JOBS_PATH, GET=endpoints.list, POST=endpoints.submit),
        _route(JOB_PATH, GET=endpoints.show, DELETE=endpoints.forget),
        _route(RESULT_PATH, GET=endpoints.result),
        _route(EVENTS_PATH, GET=endpoints.events),
        _route(CANCEL_PATH, POST=endpoints.cancel),
        _route(RETRY_PATH, POST=endpoints.retry),
    ]


def _route(path: str, **endpoints: Endpoint) -> Route:
    """One route for all methods of a path, so that others are told of all of them."""

    async def answer(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, answer, methods=list(endpoints))


class JobRoutes:
    """The endpoints."""

    def __init__(self, jobs: JobService | None, front: HttpFront | None) -> None:
        self._known = jobs
        self._front = front

    @property
    def _jobs(self) -> JobService:
        if self._known is None:
            raise Unsupported("this gateway has no jobs (--no-jobs, or a broker without place for them)")
        return self._known

    async def submit(self, request: Request) -> Response:
        jobs, front = self._jobs, self._front
        assert front is not None
        asked = _read(await read_body(request, front))
        principal = caller()
        principal.require_model(asked.model)
        target = front.catalog.known(asked.model, asked.model_version)
        given = request.headers.get(KEY, asked.idempotency_key)
        key = check_key(given) if given else ""
        if bool(bytes(asked.request)) == (asked.batch is not None):
            raise InvalidRequest("request body: expected either 'request' or 'batch'")
        if asked.batch is not None:
            record = await jobs.submit_batch(target, asked.batch, asked.options, submitter=principal, key=key)
            return _accepted(record)
        raw = bytes(asked.request)
        if len(raw) > _OFF_LOOP_BYTES:
            body: InferBody = await asyncio.to_thread(decode_body, raw, None, target)
        else:
            body = decode_body(raw, None, target)
        if asked.priority:
            body.request.priority = asked.priority
        body.request.traceparent = request.headers.get("traceparent", "")
        body.request.tracestate = request.headers.get("tracestate", "")
        options = asked.options
        if body.timeout and not options.timeout:
            options = msgspec.structs.replace(options, timeout=body.timeout)
        record = await jobs.submit(
            target, body.request, options, submitter=principal, form=form_of(body), key=key
        )
        return _accepted(record)

    async def list(self, request: Request) -> Response:
        query = request.query_params
        page = await self._jobs.store.list(
            owner=owner_of(caller()),
            state=_state(query.get("state")),
            model=query.get("model", ""),
            limit=_limit(query.get("limit")),
            after=query.get("after", ""),
        )
        return _json({"jobs": [job_object(record) for record in page.jobs], "next": page.next})

    async def show(self, request: Request) -> Response:
        return _json(job_object(await self._waited(request)))

    async def result(self, request: Request) -> Response:
        record = await self._waited(request)
        if record.state not in ENDED:
            return _accepted(record)
        result = await self._jobs.store.result(record.id, owner=owner_of(caller()))
        if result is None:  # of a file: it is where its job said
            return _json(job_object(record))
        binary = _BINARY in request.headers.get("accept", "")
        if sum([len(tensor.data) for tensor in result.response.outputs]) > _OFF_LOOP_BYTES:
            body, length = await asyncio.to_thread(encode_result, record.model, result, binary=binary)
        else:
            body, length = encode_result(record.model, result, binary=binary)
        headers = {} if length is None else {JSON_LENGTH: str(length)}
        coding = accepted(request.headers.get("accept-encoding", "").encode("latin-1"))
        if coding and len(body) >= MIN_SIZE:
            body = await asyncio.to_thread(compress, body, coding)
            headers |= {"content-encoding": coding, "vary": "accept-encoding"}
        return Response(body, headers=headers, media_type=_JSON if length is None else _BINARY)

    async def events(self, request: Request) -> Response:
        record = await self._jobs.store.get(_id(request), owner=owner_of(caller()))
        headers = {"cache-control": "no-store"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(self._told(record.id), headers=headers, media_type="text/event-stream")

    async def cancel(self, request: Request) -> Response:
        return _json(job_object(await self._jobs.store.cancel(_id(request), owner=owner_of(caller()))))

    async def retry(self, request: Request) -> Response:
        return _accepted(await self._jobs.store.retry(_id(request), owner=owner_of(caller())))

    async def forget(self, request: Request) -> Response:
        await self._jobs.store.forget(_id(request), owner=owner_of(caller()))
        return Response(status_code=204)

    async def _waited(self, request: Request) -> JobRecord:
        """The job of a path, once it has ended if the query says so."""
        seconds = read_wait(request.query_params.get("wait"))
        record = await self._jobs.store.get(_id(request), owner=owner_of(caller()))
        return await self._jobs.wait(record, seconds)

    async def _told(self, job_id: str) -> AsyncIterator[bytes]:
        """The events of a job's stream; it ends with the job, or when this gateway leaves."""
        yield b"retry: %d\n\n" % _RECONNECT_MS
        jobs = self._jobs
        changes = jobs.store.follow(job_id)
        leaving = asyncio.create_task(jobs.leaving.wait())
        change: asyncio.Task[JobRecord] | None = None
        try:
            while True:
                if change is None:
                    change = asyncio.ensure_future(anext(changes))
                done, _ = await asyncio.wait(
                    (change, leaving), timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED
                )
                if leaving in done:
                    return
                if not done:
                    yield b": alive\n\n"
                    continue
                record, change = change.result(), None
                yield b"event: status\ndata: %b\n\n" % encode_json(job_object(record))
                if record.state in ENDED:
                    return
        except (StopAsyncIteration, QInferError):
            return  # it was forgotten, or the broker is away: who follows asks again
        finally:
            await cancelled(leaving, *([change] if change is not None else []))
            await changes.aclose()


def _read(body: bytes) -> SubmitBody:
    try:
        return _submission.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"request body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"request body is malformed JSON: {error}") from None


def _id(request: Request) -> str:
    job_id = request.path_params["job"]
    if not isinstance(job_id, str):
        raise JobNotFound("there is no such job")
    return job_id


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text)
    except ValueError:
        states = ", ".join(JobState)
        raise InvalidRequest(f"query parameter state is {text[:40]!r}; expected one of {states}") from None


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 6 else 0
    if not 1 <= number <= MAX_PAGE:
        raise InvalidRequest(f"query parameter limit is {text[:40]!r}; expected 1 to {MAX_PAGE}")
    return number


def _accepted(record: JobRecord) -> Response:
    job = job_object(record)
    return _json(job, 202, {"location": job["status_url"]})


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(content), status, headers, media_type=_JSON)
