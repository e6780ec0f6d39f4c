"""How fast a model's queue is worked off, as one gateway sees it.

Answers a second are the model's capacity only while requests wait for it; at any other time they are what the
callers ask for, and to take that for capacity would refuse whoever asks for more. So a stretch of time counts
when it began with a backlog that fills a batch, and the gateway had requests in flight all through it.
"""

from __future__ import annotations

from math import exp

_MEMORY = 1.0  # seconds: what is older counts for little
_MEMORY_INTERVALS = 8.0  # or this many intervals between answers, where those are longer
_FORGOTTEN = 60.0  # seconds after which the last answer says nothing any more
_EVIDENCE_INTERVALS = 2.0
_EVIDENCE_SECONDS = 0.05
_OVERDUE = 2.0  # mean intervals without an answer after which the silence itself is news


class _Fading:
    """Rows over time, what is old counting less and less."""

    __slots__ = ("busy", "intervals", "rows")

    def __init__(self) -> None:
        self.rows = 0.0
        self.busy = 0.0
        self.intervals = 0.0

    @property
    def memory(self) -> float:
        """Seconds after which something counts for a third."""
        if not self.intervals:
            return _MEMORY
        return max(_MEMORY, _MEMORY_INTERVALS * self.busy / self.intervals)

    @property
    def rate(self) -> float:
        """Rows a second; 0 while too little has been seen to tell."""
        if self.intervals < _EVIDENCE_INTERVALS or self.busy < _EVIDENCE_SECONDS:
            return 0.0
        return self.rows / self.busy

    def add(self, rows: int, elapsed: float) -> None:
        kept = exp(-elapsed / self.memory)
        self.rows = self.rows * kept + rows
        self.busy = self.busy * kept + elapsed
        self.intervals = self.intervals * kept + 1.0

    def after_silence(self, silence: float) -> float:
        """The rate if nothing at all had come for that long."""
        if silence * self.intervals <= _OVERDUE * self.busy:
            return self.rate
        kept = exp(-silence / self.memory)
        return self.rows * kept / (self.busy * kept + silence)


class DrainRate:
    """Learns a rate of rows a second; all times are of one monotonic clock, in seconds."""

    __slots__ = ("_backlogged", "_capacity", "_last", "_silent", "_throughput")

    def __init__(self) -> None:
        self._backlogged = False
        self._last = float("-inf")
        self._silent = 0.0  # since the last answer, when time was stopped
        self._capacity = _Fading()
        # Of all answers: never more than the capacity. Admission by a capacity that was learned too low keeps
        # the backlog so short that it is not learned again; this lifts it.
        self._throughput = _Fading()

    def answered(self, now: float, rows: int, *, backlogged: bool) -> None:
        """A batch's answers came.

        Args:
            now: when.
            rows: of this gateway's requests among them.
            backlogged: whether a full batch waits behind it, and something of this gateway is in flight.
        """
        elapsed = now - self._last
        if elapsed > _MEMORY_INTERVALS * self._throughput.memory:
            self._capacity, self._throughput = _Fading(), _Fading()  # of another day
        else:
            self._throughput.add(rows, elapsed)
            if self._backlogged:
                self._capacity.add(rows, elapsed)
        self._last = now
        self._backlogged = backlogged

    def stop(self, now: float) -> None:
        """Nothing of this gateway is in flight any more: the time that passes now says nothing."""
        self._backlogged = False
        self._silent = now - self._last

    def go_on(self, now: float) -> None:
        """Something is in flight again."""
        self._last = now - self._silent

    def rate(self, now: float, *, silence_counts: bool) -> float:
        """Rows a second; 0 when it is not known.

        Args:
            now: when.
            silence_counts: whether answers are due. The rate falls then while they fail to come, as they do
                when a worker dies.
        """
        silence = now - self._last
        capacity, throughput = self._capacity, self._throughput
        if not capacity.rate or silence > max(_FORGOTTEN, _MEMORY_INTERVALS * throughput.memory):
            return 0.0
        if not silence_counts:
            return max(capacity.rate, throughput.rate)
        return max(capacity.after_silence(silence), throughput.after_silence(silence))
