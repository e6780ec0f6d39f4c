"""Claims: tensors too large for a message travel through the broker's object store.

See "Large tensors" in `docs/protocol.md`. What a process holds of them is bounded. Nothing is copied on the
way out; on the way in, tensors are views into what was read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from secrets import token_hex
from typing import Literal

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable, PayloadTooLarge, QInferError, QueueFull
from qinfer.message import Tensor, encode_claim, redeem_claim

logger = logging.getLogger(__name__)

_TRANSFERS = 4  # at once, each a chunk at a time: other messages wait for no more than these
_READ_ATTEMPTS = 5
_REMOVE_ATTEMPTS = 6
_PAUSE = 0.25  # seconds after the first attempt that failed; doubled each time


class Claims:
    """What one process puts into the store and reads from it.

    Args:
        bus: a started bus.
        max_bytes: what the process may hold at once.
        limit: what that is called where it is set.

    Attributes:
        held_bytes: what it holds.
    """

    def __init__(self, bus: Bus, *, max_bytes: int, limit: str = "--max-claim-bytes") -> None:
        self._bus = bus
        self._limit = limit
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._slots = asyncio.Semaphore(_TRANSFERS)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._removals: set[asyncio.Task[None]] = set()

    def admit(self, size: int) -> None:
        """Hold so many bytes, now or never; they are given back with `release`.

        Raises:
            PayloadTooLarge: more than may ever be held.
            QueueFull: no room now.
        """
        self._check(size)
        if self._waiting or self.held_bytes + size > self.max_bytes:
            raise QueueFull(
                f"{self.held_bytes} bytes of large tensors are held here; {size} more do not fit into "
                f"{self.max_bytes} ({self._limit})",
                retry_after=1.0,
            )
        self.held_bytes += size

    async def room(self, size: int) -> None:
        """Hold so many bytes, as soon as there is room; first come, first served.

        Raises:
            PayloadTooLarge: more than may ever be held.
        """
        self._check(size)
        if not self._waiting and self.held_bytes + size <= self.max_bytes:
            self.held_bytes += size
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, ready))
        try:
            await ready
        except asyncio.CancelledError:
            # Cancelled as it waits, or after it was given its room.
            self.release(0 if ready.cancelled() else size)
            raise

    def release(self, size: int) -> None:
        """So many bytes are held no longer."""
        self.held_bytes -= size
        while self._waiting:
            wanted, ready = self._waiting[0]
            if not ready.done():
                if self.held_bytes + wanted > self.max_bytes:
                    return
                self.held_bytes += wanted
                ready.set_result(None)
            self._waiting.popleft()

    async def deposit(self, kind: Literal["in", "out", "keep"], tensors: Sequence[Tensor]) -> tuple[str, int]:
        """Store the data of tensors and take it out of them.

        Not to be cancelled, like `Bus.put_blob`.

        Returns:
            The name of the claim, and the bytes it stands for.

        Raises:
            BusUnavailable, QueueFull: the broker does not take them; the tensors are as they were.
        """
        name = f"{kind}-{token_hex(16)}"
        parts = encode_claim(tensors)
        async with self._slots:
            await self._bus.put_blob(name, *parts)
        for tensor in tensors:
            tensor.data = b""
        return name, sum([len(part) for part in parts])

    async def redeem(self, name: str, size: int, tensors: Sequence[Tensor]) -> None:
        """Give tensors the data that a claim stands for. Its size is to be held already.

        Raises:
            NotFound: there are none (any more).
            PayloadTooLarge: there are more of them than `size`.
            MalformedMessage: they are something else.
            BusUnavailable: they cannot be read.
        """
        async with self._slots:
            for attempt in range(_READ_ATTEMPTS):
                try:
                    data = await self._bus.get_blob(name, limit=size)
                    break
                except BusUnavailable:
                    if attempt == _READ_ATTEMPTS - 1:
                        raise
                await asyncio.sleep(_PAUSE * 2**attempt)
        redeem_claim(tensors, data)

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

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise PayloadTooLarge(
                f"{size} bytes of tensors that are too large for a message are above the limit of "
                f"{self.max_bytes} bytes ({self._limit})"
            )

    async def _remove(self, name: str) -> None:
        for attempt in range(_REMOVE_ATTEMPTS):
            try:
                await self._bus.delete_blob(name)
                return
            except QInferError as error:
                reason = error
            await asyncio.sleep(_PAUSE * 2**attempt)
        logger.warning("large tensors %s stay at the broker until it forgets them: %s", name, reason)
