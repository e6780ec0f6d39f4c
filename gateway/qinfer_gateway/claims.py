"""Tensors too large for a message, on their way through the broker's object store.

What a process holds of them is bounded: a request that does not fit is refused, the data of an answer wait
for their room. Nothing is copied on the way out; on the way in, tensors are views into what was read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex

from qinfer.bus import Bus
from qinfer.bus.base import Data
from qinfer.errors import (
    BusUnavailable,
    InternalError,
    MalformedMessage,
    NotFound,
    PayloadTooLarge,
    QInferError,
    QueueFull,
)
from qinfer.message import KEPT, Request, Response, encode_claim, redeem_claim

logger = logging.getLogger(__name__)

_TRANSFERS = 4  # at once, each a chunk at a time: other messages wait for no more than these
_READ_ATTEMPTS = 5
_REMOVE_ATTEMPTS = 6
_PAUSE = 0.25  # seconds after the first attempt that failed; doubled each time


class Claims:
    """What one gateway puts into the store and reads from it.

    Args:
        bus: a started bus.
        max_bytes: bytes held here at once, of requests until they are stored, of answers until they are given
            to their callers.
    """

    def __init__(self, bus: Bus, *, max_bytes: int) -> None:
        self._bus = bus
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(_TRANSFERS)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._removals: set[asyncio.Task[None]] = set()
        self.held_bytes = 0

    def admit(self, size: int) -> None:
        """Make room for a request, to be given back with `release`.

        Raises:
            PayloadTooLarge: there will never be so much room.
            QueueFull: there is none now.
        """
        self._check(size, "request")
        if self._waiting or self.held_bytes + size > self._max_bytes:
            raise QueueFull(
                f"this gateway holds {self.held_bytes} bytes of large tensors; a request of {size} bytes "
                f"does not fit into its {self._max_bytes} (--max-claim-bytes)",
                retry_after=1.0,
            )
        self.held_bytes += size

    def release(self, size: int) -> None:
        """So many bytes are held no longer."""
        self.held_bytes -= size
        while self._waiting:
            wanted, ready = self._waiting[0]
            if not ready.done():
                if self.held_bytes + wanted > self._max_bytes:
                    return
                self.held_bytes += wanted
                ready.set_result(None)
            self._waiting.popleft()

    async def deposit(self, request: Request) -> None:
        """Store the data of a request's inputs; the request has the claim on them then, and no data.

        Not to be cancelled, like `Bus.put_blob`.

        Raises:
            BusUnavailable, QueueFull: the broker does not take them.
        """
        name = f"in-{token_hex(16)}"
        parts = encode_claim(request.inputs)
        async with self._slots:
            await self._bus.put_blob(name, *parts)
        for tensor in request.inputs:
            tensor.data = b""
        request.claim, request.claim_bytes = name, sum([len(part) for part in parts])

    @asynccontextmanager
    async def redeemed(self, response: Response) -> AsyncIterator[None]:
        """Give a response the data that its claim stands for; they count as held until the end.

        Raises:
            PayloadTooLarge: they are more than may ever be held.
            BusUnavailable: they cannot be read.
            InternalError: they are not what they should be.
        """
        size = response.claim_bytes
        await self._room(size)
        try:
            async with self._slots:
                data = await self._read(response.claim, size)
            try:
                redeem_claim(response.outputs, data)
            except MalformedMessage as error:
                raise InternalError(f"the worker's answer cannot be read: {error}") from None
            del data
            yield
        finally:
            self.release(size)

    def discard(self, response: Response) -> None:
        """A response's data are not needed (any more): remove them, unless they are kept for others."""
        if not response.flags & KEPT:
            self.remove(response.claim)

    def remove(self, name: str) -> None:
        """Remove what is stored under a name, in the background. Best effort: the store forgets anyway."""
        task = asyncio.create_task(self._remove(name), name=f"remove {name}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def close(self, timeout: float) -> None:
        """Wait for removals under way, for at most `timeout` seconds. Idempotent."""
        if self._removals:
            _, late = await asyncio.wait(self._removals, timeout=timeout)
            for task in late:
                task.cancel()

    def _check(self, size: int, what: str) -> None:
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"{what} of {size} bytes is above this gateway's limit of {self._max_bytes} bytes for "
                "tensors that are too large for a message (--max-claim-bytes)"
            )

    async def _room(self, size: int) -> None:
        self._check(size, "answer")
        if not self._waiting and self.held_bytes + size <= self._max_bytes:
            self.held_bytes += size
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, ready))
        try:
            await ready
        except asyncio.CancelledError:
            if not ready.cancelled():
                self.release(size)
            raise

    async def _read(self, name: str, size: int) -> Data:
        for attempt in range(_READ_ATTEMPTS):
            try:
                return await self._bus.get_blob(name, limit=size)
            except BusUnavailable:
                if attempt == _READ_ATTEMPTS - 1:
                    raise
            except (NotFound, PayloadTooLarge) as error:
                raise BusUnavailable(f"the answer is lost: {error.message}", retry_after=1.0) from None
            await asyncio.sleep(_PAUSE * 2**attempt)
        raise AssertionError("every attempt returns or raises")

    async def _remove(self, name: str) -> None:
        for attempt in range(_REMOVE_ATTEMPTS):
            try:
                await self._bus.delete_blob(name)
                return
            except QInferError as error:
                reason = error
            await asyncio.sleep(_PAUSE * 2**attempt)
        logger.warning("large tensors %s stay at the broker until it forgets them: %s", name, reason)
