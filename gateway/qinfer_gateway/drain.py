"""How fast a model's queue is worked off, as one gateway sees it.

Answers a second are the model's capacity only while requests wait for it; at any other time they are what the
callers ask for, and to take that for capacity would refuse whoever asks for more. So a stretch of time counts
when it began with a backlog that fills a batch, and the gateway had requests in flight all through it.
"""

from __future__ import annotations

from math import exp

_MEMORY = 1.0  # seconds: what is older counts for little
_MEMORY_INTERVALS = 8  # or this many intervals between answers, where those are longer
_EVIDENCE_INTERVALS = 2.0
_EVIDENCE_SECONDS = 0.05
_FORGOTTEN = 60.0
_OVERDUE = 2.0  # mean intervals without an answer after which the silence itself is news


class DrainRate:
    """Learns a rate of rows a second; all times are of one monotonic clock, in seconds.

    Sums that fade: rows answered and the time that took. The rate also falls while answers fail to come, as
    they do when a worker dies.
    """

    __slots__ = ("_busy", "_intervals", "_last", "_rows", "backlogged")

    def __init__(self) -> None:
        self.backlogged = False
        """Whether more waits than the next batch takes, as of the last answer."""
        self._last = 0.0
        self._rows = 0.0
        self._busy = 0.0
        self._intervals = 0.0

    def answered(self, now: float, rows: int, *, backlogged: bool) -> None:
        """A batch's answers came.

        Args:
            now: when.
            rows: of this gateway's requests among them.
            backlogged: whether a full batch waits behind it, and something of this gateway is in flight.
        """
        if self.backlogged:
            elapsed = now - self._last
            kept = exp(-elapsed / self._memory())
            self._rows = self._rows * kept + rows
            self._busy = self._busy * kept + elapsed
            self._intervals = self._intervals * kept + 1.0
        elif backlogged and now - self._last > _MEMORY_INTERVALS * self._memory():
            self._rows = self._busy = self._intervals = 0.0  # of another day
        self._last = now
        self.backlogged = backlogged

    def pause(self) -> None:
        """Nothing of this gateway is in flight: time that passes now says nothing."""
        self.backlogged = False

    def rate(self, now: float) -> float:
        """Rows a second; 0 while too little has been seen to tell."""
        if self._intervals < _EVIDENCE_INTERVALS or self._busy < _EVIDENCE_SECONDS:
            return 0.0
        silence = now - self._last
        if silence > _FORGOTTEN:
            return 0.0
        if not self.backlogged or silence * self._intervals <= _OVERDUE * self._busy:
            return self._rows / self._busy
        kept = exp(-silence / self._memory())
        return self._rows * kept / (self._busy * kept + silence)

    def _memory(self) -> float:
        if not self._intervals:
            return _MEMORY
        return max(_MEMORY, _MEMORY_INTERVALS * self._busy / self._intervals)
