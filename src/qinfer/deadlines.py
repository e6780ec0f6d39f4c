"""Ends calls whose deadline passes, with one timer for all of them.

A timer a call would be made and cancelled for every request. Instead the earliest deadline that may still
matter is kept; when it comes, the calls in flight (a bounded number) are looked through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

_GRAIN = 0.002  # deadlines this close together are served by one look


class HasDeadline(Protocol):
    """Something with a deadline on the event loop's clock."""

    deadline: float


class Deadlines:
    """Watches the deadlines of a mapping of calls.

    Args:
        calls: what is in flight, by number; only read.
        expire: called with the number of each call whose deadline has passed.
    """

    def __init__(self, calls: Mapping[int, HasDeadline], expire: Callable[[int], None]) -> None:
        self._calls = calls
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self.next = float("inf")
        """The earliest deadline watched for: a later one need not be added."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: float) -> None:
        """A call with this deadline was added."""
        if deadline < self.next:
            self._schedule(deadline)

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.next = deadline
        self._timer = self._loop.call_at(deadline + _GRAIN, self._look)

    def _look(self) -> None:
        self._timer = None
        self.next = float("inf")
        now = self._loop.time()
        earliest = float("inf")
        late = []
        for number, call in self._calls.items():
            if call.deadline <= now:
                late.append(number)
            elif call.deadline < earliest:
                earliest = call.deadline
        for number in late:
            self._expire(number)
        self.add(earliest)  # unless one that is due before was added meanwhile
