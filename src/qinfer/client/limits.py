"""How much a client has on its way at once, and how often it tries."""

from __future__ import annotations

import asyncio
import random
from time import monotonic

from qinfer.errors import DeadlineExceeded, QInferError, QueueFull, Retry

_FIRST_PAUSE = 0.1  # seconds after the first try that failed; doubled each time
_LONGEST_PAUSE = 5.0


class Gate:
    """Bounds the requests of a client that are on their way.

    Args:
        limit: how many may be.
        waits: whether one more waits for its turn, first come, first served, or is refused.
    """

    def __init__(self, limit: int, *, waits: bool) -> None:
        self._limit = limit
        self._waits = waits
        self._places = asyncio.Semaphore(limit)

    async def enter(self, deadline: float) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            QueueFull: there is none, and this gate has nobody wait.
            DeadlineExceeded: there was none until the deadline, of `time.monotonic`.
        """
        if not self._places.locked():
            await self._places.acquire()  # does not wait
            return
        if not self._waits:
            raise QueueFull(
                f"this client has {self._limit} requests in flight, as many as it may (max_in_flight)",
                retry_after=_FIRST_PAUSE,
            )
        try:
            async with asyncio.timeout(deadline - monotonic()):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"deadline passed before the request was sent: {self._limit} others were in flight, as many "
                "as may be (max_in_flight)"
            ) from None

    def leave(self) -> None:
        """Give a place back."""
        self._places.release()


class Tries:
    """Says whether and when a request is tried again.

    Args:
        retries: how often, at most.
        deadline: for all tries together, of `time.monotonic`.
        once: however often it is sent, it is run once: errors that leave open whether it was are no obstacle.
    """

    def __init__(self, retries: int, deadline: float, *, once: bool) -> None:
        self._retries = retries
        self._deadline = deadline
        self._once = once
        self._failed = 0

    def pause(self, error: QInferError) -> float | None:
        """Seconds until the next try, after one that failed; None where there is to be none."""
        safe = error.retry is Retry.LATER or (error.retry is Retry.MAYBE and self._once)
        if not safe or self._failed >= self._retries:
            return None
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self._failed) * random.uniform(0.5, 1.0)
        if error.retry_after is not None:  # not earlier than told, nor with all others who were told the same
            pause = max(pause, error.retry_after * random.uniform(1.0, 1.25))
        self._failed += 1
        return pause if monotonic() + pause < self._deadline else None
