"""`ModelInfer`, and what it shares with streams."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from time import monotonic
from typing import TypeAlias

from qinfer.errors import DeadlineExceeded, InvalidRequest, QInferError, ShuttingDown
from qinfer.keys import Permission
from qinfer.message import Request, Response, ResponseFrame
from qinfer.proto import METHODS, ModelInferRequest
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.grpc import identify
from qinfer_gateway.auth.principal import ANONYMOUS
from qinfer_gateway.catalog import Catalog, Target
from qinfer_gateway.dispatcher import Call, Dispatcher
from qinfer_gateway.grpc.codec import decode_request, encode_response, parse
from qinfer_gateway.grpc.status import Context, fail, unexpected
from qinfer_gateway.idempotency import KEY_HEADER, set_key
from qinfer_gateway.parameters import EMPTY_FINAL
from qinfer_gateway.streams import StreamCall

OFF_LOOP_BYTES = 64 * 1024
"""Typed contents of more bytes are converted in a thread, so that they do not hold up the other calls."""

_QUIET = 0.02  # seconds without a request after which no more are thought to come

Answer: TypeAlias = tuple[str, Response] | QInferError
"""The version that answered and its response, or why there is none."""


class GrpcCall(Call):
    """One inference request.

    Attributes:
        answer: its outcome. Errors are results too: nobody may be left to retrieve an exception.
    """

    __slots__ = ("answer",)

    protocol = "grpc"
    operation = METHODS["ModelInfer"].path[1:]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(monotonic())
        self.answer: asyncio.Future[Answer] = loop.create_future()

    def status(self, error: QInferError | None) -> int:
        return 0 if error is None else int(error.grpc_status)

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        if not self.answer.done():
            self.answer.set_result((frame.model_version, response))

    def failed(self, error: QInferError) -> None:
        if not self.answer.done():
            self.answer.set_result(error)


class GrpcStreamCall(StreamCall):
    """One inference request of a stream.

    Attributes:
        empty_final: the client wants an end of its own where the last response did not say that it was.
    """

    __slots__ = ("empty_final",)

    protocol = "grpc"
    operation = METHODS["ModelStreamInfer"].path[1:]

    def __init__(self) -> None:
        super().__init__(monotonic())
        self.empty_final = False

    def status(self, error: QInferError | None) -> int:
        return 0 if error is None else int(error.grpc_status)


class Inference:
    """Turns RPC messages into calls.

    Args:
        catalog: the models.
        dispatcher: where calls go.
        threads: for the conversion of large typed contents.
        access: the credentials that are accepted; None where none are asked for.
        ids_are_keys: the identifier of a request is its idempotency key, unless it has one.
    """

    def __init__(
        self,
        catalog: Catalog,
        dispatcher: Dispatcher,
        threads: Executor,
        access: Access | None = None,
        *,
        ids_are_keys: bool = False,
    ) -> None:
        self._ids_are_keys = ids_are_keys
        self._access = access
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._arrived = 0
        self._closing = False

    async def close(self, timeout: float) -> None:
        """Refuse new requests until none come in any more, for `timeout` seconds at most.

        A server that is stopped ends what it has read and not yet handed over with a bare CANCELLED: under
        load most of what is open, and none of the callers would know that trying elsewhere is worth it.
        """
        self._closing = True
        give_up = self._loop.time() + timeout
        seen = -1
        while seen != self._arrived and self._loop.time() < give_up:
            seen = self._arrived
            await asyncio.sleep(_QUIET)

    def new_call(self) -> GrpcCall:
        """A call that starts now."""
        return GrpcCall(self._loop)

    def check_caller(self, context: Context) -> None:
        """Refuse whoever may not send requests at all, before one is read.

        Raises:
            Unauthenticated: no credentials, or none that are good.
            Forbidden: good ones that do not allow this.
        """
        identify(self._access, context, Permission.INFERENCE, count=False)

    async def submit(self, call: GrpcCall | GrpcStreamCall, data: bytes, context: Context) -> None:
        """Decode a request and send it on its way; the call gets the answer.

        Args:
            call: gets the answer.
            data: the serialised request.
            context: of the RPC. Of a stream its metadata are those of other requests, too.

        Raises:
            QInferError: it was refused, which has been counted.
        """
        model = ""
        self._arrived += 1
        try:
            principal = identify(self._access, context, Permission.INFERENCE)
            message = parse(ModelInferRequest, data)
            model = message.model_name
            call.request_id = message.id
            principal.require_model(model)
            if self._closing:
                raise ShuttingDown("this gateway is shutting down", retry_after=1.0)
            target = self._catalog.find(model, message.model_version)
            if len(data) <= OFF_LOOP_BYTES or message.raw_input_contents:
                request, timeout = decode_request(message)
            else:
                request, timeout = await self._loop.run_in_executor(self._threads, decode_request, message)
            if principal is not ANONYMOUS:
                principal.stamp(request)
            if isinstance(call, GrpcStreamCall):
                call.empty_final = request.parameters.pop(EMPTY_FINAL, False) is True
            self._read_metadata(request, target, context, streamed=call.takes_many)
            timeout = _allowed(call, timeout, context.time_remaining(), monotonic())
            self._dispatcher.submit(call, target, request, timeout=timeout)
        except QInferError as error:
            self._dispatcher.refused(call, model, error)
            raise
        except Exception as error:
            fault = unexpected("ModelInfer", error)
            self._dispatcher.refused(call, model, fault)
            raise fault from error

    def _read_metadata(self, request: Request, target: Target, context: Context, *, streamed: bool) -> None:
        """Take over what an RPC's metadata say of its request: trace context and idempotency key."""
        key: str | None = None
        for name, value in context.invocation_metadata() or ():
            if name == "traceparent":
                request.traceparent = str(value)
            elif name == "tracestate":
                request.tracestate = str(value)
            elif name == KEY_HEADER:
                key = str(value)
        if key is not None and streamed:
            raise InvalidRequest(
                f"{KEY_HEADER!r} is in the metadata of a stream, and would be the key of all its requests; "
                "expected it with ModelInfer"
            )
        if key is not None or (self._ids_are_keys and not target.decoupled):
            set_key(request, target, key, ids=self._ids_are_keys)

    def abandon(self, call: GrpcCall | GrpcStreamCall) -> None:
        """The caller has gone."""
        self._dispatcher.abandon(call)

    async def model_infer(self, data: bytes, context: Context) -> bytes:
        """Handler of `ModelInfer`: one serialised request, one serialised response."""
        call = self.new_call()
        try:
            await self.submit(call, data, context)
            answer = await call.answer
            if isinstance(answer, QInferError):
                raise answer
            version, response = answer
            return encode_response(call.model, version, call.request_id, response)
        except QInferError as error:
            await fail(context, error)
        except asyncio.CancelledError:
            self.abandon(call)
            raise


def _allowed(call: Call, timeout: float, remaining: float | None, now: float) -> float:
    """Seconds from the call's start to the earlier of its own and the RPC's deadline; 0 for neither."""
    if remaining is None:
        return timeout
    if remaining <= 0:
        raise DeadlineExceeded("the RPC's deadline passed before the request was read")
    within = now - call.started + remaining
    return min(timeout, within) if timeout else within
