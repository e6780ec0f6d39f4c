"""Answers that are put into the broker's store before they are told.

Those too large for a message go there as claims. Those to requests with an idempotency key are kept there for
who asks again: stored, then told, and only then is the request's frame acked, so that a worker that dies in
between leaves either an answer or a request behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from qinfer.answers import Kept, keep
from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.errors import BusUnavailable, KeyReused, PayloadTooLarge, QInferError, QueueFull
from qinfer.lifecycle import cancelled
from qinfer.message import FINAL, KEPT, BatchInfo, Request, Response, WireError, encode
from qinfer_workers.replies import NO_BATCH, Replies

logger = logging.getLogger(__name__)

_ATTEMPTS = 6
_PAUSE = 0.25  # seconds after the first attempt that failed; doubled each time

T = TypeVar("T")


class Answers:
    """Stores and tells answers of one model, each in a task of its own.

    Args:
        bus: a started bus.
        replies: publishes them.
        claims: stores what is too large.
    """

    def __init__(self, bus: Bus, replies: Replies, claims: Claims) -> None:
        self._bus = bus
        self._replies = replies
        self._claims = claims
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self,
        reply_to: str,
        version: str,
        info: BatchInfo,
        request: Request,
        response: Response,
        then: Callable[[bool], None],
    ) -> None:
        """Store an answer and tell it.

        Args:
            reply_to, version, info: of its frame.
            request: what it answers.
            response: the answer.
            then: called in the end, with False when the broker could not be reached: the request must be run
                again. Not called when this is closed before.
        """
        task = asyncio.create_task(self._send(reply_to, version, info, request, response, then))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def close(self) -> None:
        """Give up what is under way. Idempotent."""
        await cancelled(*self._tasks)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an answer could not be stored", exc_info=task.exception())

    async def _send(
        self,
        reply_to: str,
        version: str,
        info: BatchInfo,
        request: Request,
        response: Response,
        then: Callable[[bool], None],
    ) -> None:
        response.fingerprint = request.fingerprint
        try:
            data = await self._stored(version, info, request, response)
            if request.idempotency:
                kept = await _persist(lambda: keep(self._bus, request.idempotency, data))
                if kept is not None:
                    data = self._instead(kept, request, response)
        except QInferError as error:
            logger.warning("an answer could not be stored, and its request is run again: %s", error)
            then(False)
        else:
            then(self._replies.tell(reply_to, data))

    def _instead(self, kept: Kept, request: Request, response: Response) -> bytes:
        """What is told of a request that another worker has answered, too: what that one has kept."""
        if response.claim:
            self._claims.remove(response.claim)
        if kept.response.fingerprint != request.fingerprint:
            # Of another request with the same key: senders tell their callers what that means.
            error = KeyReused("this idempotency key was used before, with another request")
            return self._replies.encode(
                kept.frame.model_version,
                NO_BATCH,
                Response(request.id, response.attempt, WireError.of(error)),
            )
        kept.response.id, kept.response.attempt = request.id, response.attempt
        return encode(kept.frame)

    async def _stored(self, version: str, info: BatchInfo, request: Request, response: Response) -> bytes:
        """The answer as a frame; its data are in the store if they have to be."""
        limit = self._bus.max_payload
        if size_of(response) <= limit:
            data = self._replies.encode(version, info, response)
            if len(data) <= limit:
                return data
        if response.outputs:
            try:
                await self._claim(response, kept=bool(request.idempotency))
            except (PayloadTooLarge, QueueFull) as problem:
                _fail(response, PayloadTooLarge(f"the answer of {size_of(response)} bytes: {problem}"))
        data = self._replies.encode(version, info, response)
        if len(data) > limit:
            error = PayloadTooLarge(f"the answer of {len(data)} bytes without its tensors is too large")
            _fail(response, error)
            data = self._replies.encode(version, info, response)
        return data

    async def _claim(self, response: Response, *, kept: bool) -> None:
        """Put a response's data into the store; uploads are never cut off (see `Claims.deposit`)."""
        if size_of(response) > self._claims.max_bytes:
            raise PayloadTooLarge(f"above the limit of {self._claims.max_bytes} bytes (--max-claim-bytes)")
        upload = asyncio.ensure_future(
            _persist(lambda: self._claims.deposit("keep" if kept else "out", response.outputs))
        )
        response.claim, response.claim_bytes = await asyncio.shield(upload)
        if kept:
            response.flags |= KEPT


def size_of(response: Response) -> int:
    """Bytes of a response's tensors."""
    size = 0
    for tensor in response.outputs:
        size += len(tensor.data)
    return size


def _fail(response: Response, error: QInferError) -> None:
    """Turn an answer into an error."""
    response.error = WireError.of(error)
    response.outputs, response.parameters = [], {}
    response.flags |= FINAL  # it ends a stream, too


async def _persist(operation: Callable[[], Awaitable[T]]) -> T:
    """Do something at a broker that may be away for a moment."""
    for attempt in range(_ATTEMPTS):
        try:
            return await operation()
        except BusUnavailable:
            if attempt == _ATTEMPTS - 1:
                raise
        await asyncio.sleep(_PAUSE * 2**attempt)
    raise AssertionError("every attempt returns or raises")
