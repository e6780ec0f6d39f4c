"""Receivers of webhooks, each kept from costing the others anything.

A host gets so many requests at once; one that hangs or fails gets none for a while, longer each time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic

_AT_ONCE = 16
_PATIENCE = 1.0  # seconds that a webhook waits here for its turn
_FAILURES = 3  # in a row, after which a host is left alone
_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_MOST_HOSTS = 10_000


class _Host:
    __slots__ = ("failures", "inside", "paused_until", "slots")

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(_AT_ONCE)
        self.failures = 0
        self.paused_until = 0.0
        self.inside = 0  # that have a turn, or wait for one


class Hosts:
    """Who may be sent a webhook now.

    Args:
        clock: a monotonic one.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._hosts: dict[str, _Host] = {}

    def pause(self, name: str) -> float:
        """Seconds for which a host is left alone; 0 when it may be asked."""
        host = self._hosts.get(name)
        left = host.paused_until - self._clock() if host is not None else 0.0
        # Spread, so that what waits for a host does not come back in one instant.
        return left + random.uniform(0.0, _LONGEST_PAUSE / 2) if left > 0 else 0.0

    async def enter(self, name: str) -> bool:
        """Have a turn with a host, to be given back with `leave`; False when none is free for a while."""
        if len(self._hosts) >= _MOST_HOSTS:
            now = self._clock()
            self._hosts = {
                name: host for name, host in self._hosts.items() if host.inside or host.paused_until > now
            }
        host = self._hosts.setdefault(name, _Host())
        host.inside += 1
        try:
            async with asyncio.timeout(_PATIENCE):
                await host.slots.acquire()
        except TimeoutError:
            host.inside -= 1
            return False
        except BaseException:
            host.inside -= 1
            raise
        return True

    def leave(self, name: str, *, well: bool) -> None:
        """A turn is over; `well` when the host answered as it should."""
        host = self._hosts[name]
        host.inside -= 1
        host.slots.release()
        if well:
            host.failures = 0
            host.paused_until = 0.0
            return
        host.failures += 1
        if host.failures >= _FAILURES:
            pause = min(_PAUSE * 2.0 ** min(host.failures - _FAILURES, 10), _LONGEST_PAUSE)
            host.paused_until = max(host.paused_until, self._clock() + pause)
