"""One request, one answer: the straight way, and the ways around what frames cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.client.nats.call import Answer, Call
from qinfer.client.nats.exchange import Exchange
from qinfer.errors import BusUnavailable, DeadlineExceeded, InternalError, MalformedMessage, NotFound
from qinfer.lifecycle import cancelled
from qinfer.message import Response, ResponseFrame

_FAREWELL = 5.0  # seconds that what is being stored may take when the client is closed


class Inference:
    """Asks models over the broker.

    Args:
        bus: a started bus.
        exchange: what is in flight on it.
        claims: tensors too large for messages.
    """

    def __init__(self, bus: Bus, exchange: Exchange, claims: Claims) -> None:
        self._bus = bus
        self._exchange = exchange
        self._claims = claims
        self._storing: set[asyncio.Task[tuple[str, int]]] = set()

    async def ask(self, call: Answer) -> tuple[ResponseFrame, Response]:
        """Send a call and wait for its answer, whose tensors have their data.

        Raises:
            QInferError: why there is none.
        """
        if call.size <= self._bus.max_payload:
            frame, response = await self._straight(call)
        else:
            try:
                await self.deposit(call)
                frame, response = await self._straight(call)
            finally:
                self.remove(call)
        if response.claim:
            await self.redeem(response, call.deadline)
        return frame, response

    async def _straight(self, call: Answer) -> tuple[ResponseFrame, Response]:
        self._exchange.enter(call)
        self._exchange.send(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._exchange.abandon(call)
            raise

    # Large tensors

    async def deposit(self, call: Call) -> None:
        """Store a call's inputs; its request carries a claim on them then.

        Raises:
            BusUnavailable, QueueFull, PayloadTooLarge: they cannot be stored.
            DeadlineExceeded: they are not, by the call's deadline.
        """
        async with until(call.deadline):
            await self._claims.room(call.size)
            # What is cut off in the middle would lie at the broker without a name.
            task = asyncio.create_task(self._claims.deposit("in", call.request.inputs))
            self._storing.add(task)
            task.add_done_callback(lambda done: self._stored(done, call.size))
            try:
                call.request.claim, call.request.claim_bytes = await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(self._unwanted)
                raise

    def remove(self, call: Call) -> None:
        """Nobody needs a call's stored inputs any more."""
        if call.request.claim:
            self._claims.remove(call.request.claim)

    async def redeem(self, response: Response, deadline: float) -> None:
        """Give a response the data that were too large for its message.

        Raises:
            BusUnavailable: they cannot be read, or are lost.
            PayloadTooLarge: they are more than this client takes.
            DeadlineExceeded: they are not here by the deadline.
        """
        size = response.claim_bytes
        try:
            async with until(deadline):
                await self._claims.room(size)
                try:
                    await self._claims.redeem(response.claim, size, response.outputs)
                finally:
                    self._claims.release(size)
        except NotFound as error:
            raise BusUnavailable(f"the answer is lost: {error}", retry_after=1.0) from None
        except MalformedMessage as error:
            raise InternalError(f"the worker's answer cannot be read: {error}") from None
        finally:
            self._exchange.discard(response)

    def _stored(self, task: asyncio.Task[tuple[str, int]], size: int) -> None:
        self._storing.discard(task)
        self._claims.release(size)

    def _unwanted(self, task: asyncio.Task[tuple[str, int]]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._claims.remove(task.result()[0])

    async def close(self) -> None:
        """Let what is being stored finish for a moment. Idempotent."""
        if self._storing:
            _, late = await asyncio.wait(self._storing, timeout=_FAREWELL)
            await cancelled(*late)
        await self._claims.close(_FAREWELL)


@asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Do something until a deadline, of `time.monotonic`.

    Raises:
        DeadlineExceeded: it was not done by then.
    """
    try:
        async with asyncio.timeout(deadline - monotonic()):
            yield
    except TimeoutError:
        raise DeadlineExceeded("deadline passed before the answer came") from None
