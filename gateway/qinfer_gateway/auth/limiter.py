"""How many requests a second."""

from __future__ import annotations

from math import ceil

_WHOLE = 1 - 1e-9  # sums of fractions miss 1 by a little


class RateLimit:
    """A bucket of tokens: a request takes one, and time puts them back.

    Args:
        rate: requests a second, on average.
        burst: requests that may come at once; None for those of one second.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self.rate = rate
        self.burst = burst or max(1, ceil(rate))
        self._tokens = float(self.burst)
        self._at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next token is there; 0 when there is one. `now` is of `time.monotonic`."""
        tokens = self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return 0.0 if tokens >= _WHOLE else (1 - tokens) / self.rate

    def take(self, now: float) -> float:
        """Take a token; returns 0, or, when there is none, the seconds until there is one."""
        wait = self.wait(now)
        if not wait:
            self._tokens -= 1
        return wait
