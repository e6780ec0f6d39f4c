"""`ModelStreamInfer`: many requests on one stream, each with any number of responses.

Requests for models that give one answer are answered in their order. Those of decoupled models are written
as their responses come, among each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from qinfer.errors import QInferError, ShuttingDown
from qinfer.lifecycle import cancelled
from qinfer_gateway.grpc.codec import encode_response, encode_streamed, encode_streamed_error
from qinfer_gateway.grpc.inference import GrpcStreamCall, Inference
from qinfer_gateway.grpc.status import Context, fail, unexpected
from qinfer_gateway.streams import Streamed

MAX_IN_FLIGHT = 256
"""Requests of one stream in flight at once; more are not read until earlier ones are answered."""

_REAL_ERRORS = "triton_grpc_error"


class Streams:
    """The open streams of a server.

    Args:
        inference: where their requests go.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._open: set[_Stream] = set()
        self._closing = False

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Handler of `ModelStreamInfer`.

        A request that fails is answered with an `error_message` and the stream goes on, unless its metadata
        has `triton_grpc_error: true`: then the stream ends with the error's status.
        """
        try:
            self._inference.check_caller(context)
        except QInferError as error:
            await fail(context, error)
        stream = _Stream(self._inference, requests, context)
        self._open.add(stream)
        try:
            if self._closing:
                stream.finish()
            await stream.run()
        except QInferError as error:
            await fail(context, error)
        finally:
            self._open.discard(stream)

    def finish(self) -> None:
        """Read no more requests; streams end when what they have in flight is answered."""
        self._closing = True
        for stream in self._open:
            stream.finish()


class _Stream:
    """One stream: a task reads and submits, one answers in order, and each decoupled request has its own."""

    def __init__(self, inference: Inference, requests: AsyncIterator[bytes], context: Context) -> None:
        self._inference = inference
        self._requests = requests
        self._context = context
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._calls: set[GrpcStreamCall] = set()
        self._orderly: asyncio.Queue[GrpcStreamCall | None] = asyncio.Queue()  # bounded by the places
        self._writing = asyncio.Lock()
        self._closing = False
        metadata = context.invocation_metadata() or ()
        self._real_errors = any(name == _REAL_ERRORS and value == "true" for name, value in metadata)
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = self._spawn(self._read())
        self._spawn(self._answer_in_order())

    async def run(self) -> None:
        """Answer until the client has no more requests.

        Raises:
            QInferError: the stream ends with this error.
        """
        try:
            await self._end
            if self._closing:
                raise ShuttingDown("this gateway is shutting down", retry_after=1.0)
        finally:
            await self._leave()

    def finish(self) -> None:
        """Read no more."""
        self._closing = True
        self._reader.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="grpc stream")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._reader:
            self._orderly.put_nowait(None)
        error = None if task.cancelled() else task.exception()
        if self._end.done():
            return
        if isinstance(error, QInferError):
            self._end.set_exception(error)
        elif isinstance(error, Exception):
            self._end.set_exception(unexpected("ModelStreamInfer", error))
        elif not self._tasks:
            self._end.set_result(None)

    async def _read(self) -> None:
        async for data in self._requests:
            await self._places.acquire()
            call = GrpcStreamCall()
            self._calls.add(call)
            decoupled = False
            try:
                await self._inference.submit(call, data, self._context)
                decoupled = call.target.decoupled
            except QInferError as error:
                call.failed(error)
            except asyncio.CancelledError:
                call.failed(ShuttingDown("this gateway is shutting down", retry_after=1.0))
                self._orderly.put_nowait(call)
                raise
            if decoupled:
                self._spawn(self._answer(call))
            else:
                self._orderly.put_nowait(call)

    async def _answer_in_order(self) -> None:
        while (call := await self._orderly.get()) is not None:
            await self._answer(call)

    async def _answer(self, call: GrpcStreamCall) -> None:
        """Write all responses to a request."""
        try:
            while (streamed := await call.next()) is not None:
                if not streamed.empty or call.empty_final:
                    await self._write(self._encode(call, streamed))
        except QInferError as error:
            if self._real_errors:
                raise
            await self._write(encode_streamed_error(call.request_id, error))
        self._calls.discard(call)
        self._places.release()

    def _encode(self, call: GrpcStreamCall, streamed: Streamed) -> bytes:
        version, response, final = streamed
        return encode_streamed(encode_response(call.model, version, call.request_id, response, final=final))

    async def _write(self, message: bytes) -> None:
        async with self._writing:  # grpcio takes one message at a time
            await self._context.write(message)

    async def _leave(self) -> None:
        """Nobody listens any more, or nothing is left to be said."""
        await cancelled(*self._tasks)
        for call in self._calls:
            self._inference.abandon(call)
