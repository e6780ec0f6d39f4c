"""The client that talks to a gateway."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from time import monotonic

from qinfer.client.base import ModelInfo, Result
from qinfer.client.http.jobs import HttpJobs
from qinfer.client.http.models import Models
from qinfer.client.http.session import Session
from qinfer.client.http.streams import Streams
from qinfer.client.http.wire import infer_body, model_path, read_answer
from qinfer.client.transport import Question, Settings, Transport
from qinfer.errors import InvalidRequest, QInferError, SetupError
from qinfer.headers import JSON_LENGTH, KEY
from qinfer.jobs import JobOptions, JobRecord
from qinfer.message import Request

_QUICK = 10.0  # seconds for questions that no worker is asked


class HttpClient(Transport):
    """Asks a gateway.

    Args:
        url: "http://HOST:PORT" or https.
        settings: for all requests.
        key: API key or token; "" for none.
        tls: for https; None for what the system trusts.
        max_connections: at once.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        key: str = "",
        tls: ssl.SSLContext | None = None,
        max_connections: int = 128,
    ) -> None:
        super().__init__(settings)
        self._session = Session(url, key=key, tls=tls, max_connections=max_connections)
        self._models = Models(self._session)
        self._streams = Streams(self._session)
        self._jobs = HttpJobs(self._session)

    async def start(self) -> None:
        if self._state != "new":
            raise SetupError(f"this client is {self._state}; expected a new one")
        self._session.start()
        try:
            await self._session.call("GET", "/v2/health/live", deadline=monotonic() + _QUICK, check=False)
        except BaseException:
            await self.close()
            raise
        self._state = "open"

    async def close(self) -> None:
        self._state = "closed"
        await self._models.close()
        await self._session.close()

    # Requests

    async def _ask(self, question: Question) -> Result:
        model, version = question.model, question.options.version
        target = await self._models.find(model, version, question.deadline)
        try:
            return await self._infer(question, question.request(target.info, target.signature))
        except InvalidRequest:
            # It may be that the model has become another one since its signature was asked for.
            self._models.forget(model, version)
            now = await self._models.find(model, version, question.deadline)
            if now.same(target):
                raise
        return await self._infer(question, question.request(now.info, now.signature))

    async def _infer(self, question: Question, request: Request) -> Result:
        body = infer_body(request, question.left)
        reply = await self._session.call(
            "POST",
            f"{model_path(question.model, question.options.version)}/infer",
            deadline=question.deadline,
            body=body,
            headers={**_headers(question), JSON_LENGTH: str(len(body[0]))},
        )
        return read_answer(reply.raw, reply.headers.get(JSON_LENGTH))

    async def _responses(self, question: Question) -> AsyncGenerator[Result, None]:
        target = await self._models.find(question.model, question.options.version, question.deadline)
        request = question.request(target.info, target.signature, streams=True)
        async with aclosing(self._streams.ask(question, request, target.info)) as responses:
            async for response in responses:
                yield response

    # Jobs

    async def _submit(self, question: Question, job: JobOptions) -> JobRecord:
        target = await self._models.find(question.model, question.options.version, question.deadline)
        request = question.request(target.info, target.signature)
        return await self._jobs.submit(question, request, job, _headers(question))

    async def _job(self, job_id: str, give_up: float) -> JobRecord:
        return await self._jobs.get(job_id, give_up)

    async def _result(self, job_id: str, give_up: float) -> Result | QInferError:
        return await self._jobs.result(job_id, give_up)

    async def _cancel(self, job_id: str) -> JobRecord:
        return await self._jobs.cancel(job_id)

    # Models

    async def ready(self) -> bool:
        self._check_open()
        reply = await self._session.call(
            "GET", "/v2/health/ready", deadline=monotonic() + _QUICK, check=False
        )
        return reply.status == HTTPStatus.OK

    async def _list(self) -> list[ModelInfo]:
        return await self._models.all(monotonic() + self.settings.timeout)

    async def _look(self, name: str, version: str) -> ModelInfo:
        return await self._models.info(name, version, monotonic() + self.settings.timeout)


def _headers(question: Question) -> dict[str, str]:
    """What the headers of a request tell of it."""
    options = question.options
    headers = {"Content-Type": "application/octet-stream"}
    if options.idempotency_key:
        headers[KEY] = options.idempotency_key
    if options.traceparent:
        headers["traceparent"] = options.traceparent
        if options.tracestate:
            headers["tracestate"] = options.tracestate
    return headers
