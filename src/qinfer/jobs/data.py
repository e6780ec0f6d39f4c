"""Requests and results of jobs, cut into pieces that fit into messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from secrets import token_hex
from time import monotonic
from typing import TypeVar

from qinfer.bus import Table
from qinfer.errors import NotFound, QueueFull
from qinfer.jobs.stored import DataRef

_CHUNK = 512 * 1024
_PAYLOAD_SHARE = 2  # a piece is at most this part of a message
_AT_ONCE = 4
_SIZE_LIFETIME = 1.0  # seconds for which the table is taken to have the size that it had
_FOR_REQUESTS = 0.8  # of the table; what is left is for the results of those that were accepted

T = TypeVar("T")


class JobData:
    """The table of data.

    Args:
        table: where they lie.
        max_bytes: what the table may take; 0 where only the broker knows.
        max_payload: of a message.
    """

    def __init__(self, table: Table, *, max_bytes: int, max_payload: int) -> None:
        self.table = table
        self._max_bytes = max_bytes
        self._chunk = max(1, min(_CHUNK, max_payload // _PAYLOAD_SHARE))
        self._size = 0
        self._looked = float("-inf")

    async def admit(self, size: int) -> None:
        """Make sure that there is room for a request.

        Raises:
            QueueFull: there is none.
            BusUnavailable: nobody knows.
        """
        if not self._max_bytes:
            return
        if monotonic() - self._looked > _SIZE_LIFETIME:
            self._size = await self.table.size()
            self._looked = monotonic()
        limit = int(self._max_bytes * _FOR_REQUESTS)
        if self._size + size > limit:
            raise QueueFull(
                f"requests and results of jobs take {self._size} bytes, this request {size}; the limit for "
                f"requests is {limit} bytes, {_FOR_REQUESTS:.0%} of --max-job-bytes",
                retry_after=10.0,
            )
        self._size += size

    def place(self, job_id: str, kind: str, size: int) -> DataRef:
        """Where data of a job will lie, under a name that nobody else uses."""
        return DataRef(f"{job_id}.{kind}{token_hex(4)}", max(1, -(-size // self._chunk)), size)

    async def put(self, ref: DataRef, data: bytes, *, lifetime: float) -> None:
        """Store data at their place.

        Raises:
            BusUnavailable, QueueFull: they are not stored, or not all.
        """
        view, size = memoryview(data), self._chunk

        async def put(number: int) -> int:
            piece = bytes(view[number * size : (number + 1) * size])
            return await self.table.write(f"{ref.name}.{number}", piece, lifetime=lifetime)

        await _each(ref, put)

    async def get(self, ref: DataRef) -> bytes:
        """Stored data.

        Raises:
            NotFound: they are gone.
            BusUnavailable: the broker does not answer.
        """
        found = await _each(ref, lambda number: self.table.get(f"{ref.name}.{number}", settled=True))
        data = b"".join([piece[0] for piece in found if piece is not None])
        if None in found or len(data) != ref.size:
            raise NotFound("the data of the job are not kept any more")
        return data

    async def renew(self, ref: DataRef, *, lifetime: float) -> None:
        """Have data live on for so many seconds, or only for so many.

        Raises:
            NotFound: they are gone.
            BusUnavailable, QueueFull: nobody knows, or there is no room.
        """
        for number in range(ref.chunks):
            key = f"{ref.name}.{number}"
            piece = await self.table.get(key)
            if piece is None:
                raise NotFound("the data of the job are not kept any more")
            await self.table.write(key, piece[0], lifetime=lifetime)

    async def remove(self, ref: DataRef | None) -> None:
        """Remove data, if there are any.

        Raises:
            BusUnavailable: nobody knows whether they are there.
        """
        if ref is not None:
            name = ref.name
            await _each(ref, lambda number: self.table.remove(f"{name}.{number}"))


async def _each(ref: DataRef, step: Callable[[int], Awaitable[T]]) -> list[T]:
    """Do something with each piece, a few at once; a failure is raised when all have ended."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def do(number: int) -> T:
        async with slots:
            return await step(number)

    outcomes = await asyncio.gather(*map(do, range(ref.chunks)), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
