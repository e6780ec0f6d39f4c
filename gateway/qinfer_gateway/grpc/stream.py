"""`ModelStreamInfer`: many requests on one stream, answered in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from qinfer.errors import QInferError, ShuttingDown
from qinfer_gateway.grpc.codec import encode_response, encode_streamed, encode_streamed_error
from qinfer_gateway.grpc.inference import GrpcCall, Inference
from qinfer_gateway.grpc.status import Context, fail

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
    """One stream: a task reads and submits, the handler's own task writes the answers."""

    def __init__(self, inference: Inference, requests: AsyncIterator[bytes], context: Context) -> None:
        self._inference = inference
        self._requests = requests
        self._context = context
        self._calls: asyncio.Queue[GrpcCall | None] = asyncio.Queue(MAX_IN_FLIGHT)
        self._current: GrpcCall | None = None
        self._closing = False
        metadata = context.invocation_metadata() or ()
        self._real_errors = any(name == _REAL_ERRORS and value == "true" for name, value in metadata)
        self._reader = asyncio.create_task(self._read(), name="grpc stream")
        self._reader.add_done_callback(self._wake)

    async def run(self) -> None:
        """Answer until the client has no more requests.

        Raises:
            QInferError: the stream ends with this error.
        """
        try:
            while not (self._reader.done() and self._calls.empty()):
                self._current = await self._calls.get()
                if self._current is not None:
                    await self._answer(self._current)
            if self._closing:
                raise ShuttingDown("this gateway is shutting down", retry_after=1.0)
            await self._reader
        finally:
            self._leave()

    def finish(self) -> None:
        """Read no more."""
        self._closing = True
        self._reader.cancel()

    async def _read(self) -> None:
        async for data in self._requests:
            call = self._inference.new_call()
            await self._calls.put(call)
            try:
                await self._inference.submit(call, data, self._context, streamed=True)
            except QInferError as error:
                call.failed(error)
            except asyncio.CancelledError:
                call.failed(ShuttingDown("this gateway is shutting down", retry_after=1.0))
                raise

    def _wake(self, _: asyncio.Task[None]) -> None:
        """The reader ended: the writer may be waiting for what will not come."""
        if not self._calls.full():
            self._calls.put_nowait(None)

    async def _answer(self, call: GrpcCall) -> None:
        answer = await call.answer
        if isinstance(answer, QInferError):
            if self._real_errors:
                raise answer
            message = encode_streamed_error(call.request_id, answer)
        else:
            version, response = answer
            message = encode_streamed(
                encode_response(call.model, version, call.request_id, response, final=True)
            )
        await self._context.write(message)

    def _leave(self) -> None:
        self._reader.cancel()
        while self._current is not None or not self._calls.empty():
            if self._current is not None:
                self._inference.abandon(self._current)
            self._current = None if self._calls.empty() else self._calls.get_nowait()
