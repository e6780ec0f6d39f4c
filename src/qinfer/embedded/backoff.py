"""How long to wait before a process that died is started again."""

from __future__ import annotations

import random


class Backoff:
    """Doubling delays with jitter, forgotten once a process has stayed up for a while.

    Args:
        first: longest first delay, seconds.
        cap: longest delay, seconds.
        healthy_after: uptime in seconds after which the next death counts as the first again.
    """

    def __init__(self, *, first: float = 0.2, cap: float = 10.0, healthy_after: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self._healthy_after = healthy_after
        self._failures = 0

    def next(self, uptime: float) -> float:
        """The delay in seconds after a process that was up for `uptime` seconds died.

        Between half of the nominal delay and all of it, so that children which died together do not come
        back together.
        """
        if uptime >= self._healthy_after:
            self._failures = 0
        nominal = min(self._cap, self._first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return nominal * random.uniform(0.5, 1.0)
