"""`generate` and `generate_stream`: inference for clients that write no tensors.

Source: Triton's generate extension. `generate_stream` answers with server-sent events, one a response, as the
model gives them; a client that reads slowly slows the model down, and one that leaves stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from qinfer.errors import Cancelled, InternalError, InvalidRequest, QInferError
from qinfer.lifecycle import cancelled
from qinfer.message import Request as InferRequest
from qinfer_gateway.auth.principal import ANONYMOUS, caller
from qinfer_gateway.catalog import Target
from qinfer_gateway.http.bodies import read_body
from qinfer_gateway.http.deadline import HEADER as TIMEOUT_HEADER
from qinfer_gateway.http.deadline import read_timeout
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.generate_codec import decode_generate, encode_generate
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.idempotency import KEY_HEADER, set_key
from qinfer_gateway.streams import StreamCall, Streamed

GENERATE, GENERATE_STREAM = "/generate", "/generate_stream"
"""What follows a model's path."""

_OFF_LOOP_BYTES = 64 * 1024
_EVENTS = "text/event-stream; charset=utf-8"
_EVENT_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}  # proxies, too, pass events on at once

P = ParamSpec("P")
T = TypeVar("T")


def routes(front: HttpFront | None) -> list[Route]:
    """The routes; without a front they are only there to be listed."""
    endpoints = GenerateRoutes(front)
    return [
        Route(prefix + path, endpoint, methods=["POST"])
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        for path, endpoint in ((GENERATE, endpoints.generate), (GENERATE_STREAM, endpoints.generate_stream))
    ]


class GenerateCall(StreamCall):
    """One request of `generate`."""

    protocol = "http"
    operation = f"POST /v2/models/{{model}}{GENERATE}"


class GenerateStreamCall(GenerateCall):
    """One request of `generate_stream`."""

    operation = f"POST /v2/models/{{model}}{GENERATE_STREAM}"


class GenerateRoutes:
    """The endpoints."""

    def __init__(self, front: HttpFront | None) -> None:
        self._given = front

    @property
    def _front(self) -> HttpFront:
        if self._given is None:
            raise InternalError("this gateway has no models")
        return self._given

    async def generate(self, request: Request) -> Response:
        call = GenerateCall(monotonic())
        try:
            await self._submit(call, request)
            only = await _while_connected(request, _only(call))
            return Response(await self._encoded(call, only), media_type="application/json")
        except ClientDisconnect:
            return _for_nobody()
        finally:
            self._front.dispatcher.abandon(call)

    async def generate_stream(self, request: Request) -> Response:
        call = GenerateStreamCall(monotonic())
        try:
            await self._submit(call, request)
            # What fails before the first response has a status of its own.
            first = await _while_connected(request, call.next())
            event = b"" if first is None or first.empty else await self._event(call, first)
        except ClientDisconnect:
            self._front.dispatcher.abandon(call)
            return _for_nobody()
        except BaseException:
            self._front.dispatcher.abandon(call)
            raise
        return _Events(self, call, event)

    async def events(self, call: StreamCall, first: bytes) -> AsyncIterator[bytes]:
        """The events of a call, whose first response is here."""
        if first:
            yield first
        try:
            while (streamed := await call.next()) is not None:
                if not streamed.empty:
                    yield await self._event(call, streamed)
        except QInferError as error:
            yield _as_event(encode_json({"error": error.message, "reason": error.reason}))

    def left(self, call: StreamCall) -> None:
        """Nobody reads a call's events any more, or all were read."""
        self._front.dispatcher.abandon(call)

    async def _event(self, call: StreamCall, streamed: Streamed) -> bytes:
        return _as_event(await self._encoded(call, streamed))

    async def _encoded(self, call: StreamCall, streamed: Streamed) -> bytes:
        size = sum([len(tensor.data) for tensor in streamed.response.outputs])
        if size <= _OFF_LOOP_BYTES:
            return encode_generate(call.target, call.request.request_id, streamed)
        return await self._in_thread(encode_generate, call.target, call.request.request_id, streamed)

    # Request

    async def _submit(self, call: StreamCall, request: Request) -> None:
        """Read a request and send it on its way.

        Raises:
            QInferError: it was refused, which has been counted.
        """
        front = self._front
        model = request.path_params["model"]
        try:
            body = await read_body(request, front)
            target = front.catalog.find(model, request.path_params.get("version", ""))
            if len(body) > _OFF_LOOP_BYTES:
                made, timeout = await self._in_thread(decode_generate, body, target)
            else:
                made, timeout = decode_generate(body, target)
            call.request_id = made.request_id
            principal = caller()
            if principal is not ANONYMOUS:
                principal.stamp(made)
            allowed = self._read_headers(request, made, target)
            if allowed:
                timeout = min(timeout, allowed) if timeout else allowed
            front.dispatcher.submit(call, target, made, timeout=timeout)
        except QInferError as error:
            front.dispatcher.refused(call, model, error)
            raise
        except ClientDisconnect:
            front.dispatcher.refused(call, model, Cancelled("the caller has gone"))
            raise

    def _read_headers(self, request: Request, made: InferRequest, target: Target) -> float:
        """Take over what headers say of a request; returns the seconds it is given, 0 where they do not."""
        headers = request.headers
        if (trace := headers.get("traceparent")) is not None:
            made.traceparent, made.tracestate = trace, headers.get("tracestate", "")
        key, ids = headers.get(KEY_HEADER), self._front.ids_are_keys and not target.decoupled
        if key is not None or ids:
            set_key(made, target, key, ids=ids)
        timeout = headers.get(TIMEOUT_HEADER)
        return 0.0 if timeout is None else read_timeout(timeout.encode("latin-1"))

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        """Convert something large without holding up the others."""
        return await asyncio.get_running_loop().run_in_executor(self._front.threads, function, *arguments)


class _Events(StreamingResponse):
    """Server-sent events of one call, which ends with them."""

    def __init__(self, routes: GenerateRoutes, call: StreamCall, first: bytes) -> None:
        super().__init__(routes.events(call, first), headers=_EVENT_HEADERS, media_type=_EVENTS)
        self._routes = routes
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._routes.left(self._call)


def _for_nobody() -> Response:
    return Response(status_code=Cancelled.http_status)


def _as_event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


async def _only(call: StreamCall) -> Streamed:
    """The one response to a call.

    Raises:
        InvalidRequest: there are none, or several.
        QInferError: why there is none.
    """
    only = await call.next()
    if only is not None and not only.empty:
        after = None if only.final else await call.next()
        if after is None or after.empty:
            return only
        found = "more than one"
    else:
        found = "none"
    raise InvalidRequest(
        f"model {call.model!r} gave {found} of the responses that generate answers with; expected exactly "
        "one (generate_stream takes any number)"
    )


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for something that only matters to whoever sent the request.

    Raises:
        ClientDisconnect: they have gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, nothing but this is received
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await cancelled(task, gone)
