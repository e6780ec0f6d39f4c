"""Who is let in: limits, and waits that would be longer than the caller's deadline.

Workers tell with each batch how many requests wait behind it. While there is such a backlog the gateway
measures how fast its own requests are answered; what it has in flight divided by that rate is how long a
new one will wait (Little's law), whatever other gateways do with the same queue. Nothing is refused for its
wait without a backlog: a burst onto an idle system is let in. Nor is a request with nothing in flight before
it, so that a rate that was learned too low is learned anew.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from qinfer.errors import PayloadTooLarge, QInferError, QueueFull, WaitTooLong
from qinfer.registry import QUEUE_ROWS
from qinfer_gateway.drain import DrainRate

if TYPE_CHECKING:
    from qinfer.message import ResponseFrame
    from qinfer_gateway.catalog import Target

_DEADLINE_SHARE = 0.8
"""Part of its time that a request may be expected to wait: the estimate is of a mean, and the model runs in
batches. It costs no throughput, since the queue is as good as full."""

_LEARNING_RATE = 0.1  # of the latency
_UNKNOWN_RETRY = 1.0  # seconds, when nothing is measured
_RETRY_RANGE = (0.05, 30.0)
_LONGEST_WAIT = 3600.0  # a rate that fades to nothing is still a number in a header


class Flight:
    """What this gateway has in flight for one model, and what it knows of the model's queue.

    Attributes:
        count: requests.
        rows: of those requests.
        bytes: of their tensors, but for those that went to the object store.
        backlog: requests that waited behind the last batch, as its worker told.
        drain: how fast rows are answered.
        latency: seconds that answers take, a mean of the latest.
    """

    __slots__ = ("_count_then", "backlog", "bytes", "count", "drain", "latency", "rows")

    def __init__(self) -> None:
        self.count = 0
        self.rows = 0
        self.bytes = 0
        self.backlog = 0
        self.drain = DrainRate()
        self.latency = 0.0
        self._count_then = 0

    @property
    def known_backlog(self) -> int:
        """Requests that wait by now: as the worker told, and what this gateway has sent since."""
        return self.backlog + max(0, self.count - self._count_then)

    @property
    def drain_rate(self) -> float:
        """Rows a second, as measured in a backlog; 0 when not known."""
        return self.drain.rate(monotonic(), silence_counts=self.backlog > 0)

    def heard(self, frame: ResponseFrame, rows: int, max_rows: int, now: float, *, latency: float) -> None:
        """Answers came, and are counted off.

        Args:
            frame: the answers.
            rows: of this gateway's requests among them.
            max_rows: what a batch of the model takes.
            now: of the monotonic clock.
            latency: seconds that one of them took.
        """
        self.latency += _LEARNING_RATE * (latency - self.latency)
        if not frame.backlog and not self.backlog:
            return
        # Of a queue that it has nothing in this gateway hears nothing more: what it knows would never change.
        self.backlog = frame.backlog if self.count else 0
        self._count_then = self.count
        if frame.batch.requests:  # what never reached the model says nothing about its speed
            self.drain.answered(now, rows, backlogged=self.backlog >= max_rows)

    def left(self, rows: int, size: int = 0) -> None:
        """A request of that many rows and bytes has ended without an answer."""
        self.count -= 1
        self.rows -= rows
        self.bytes -= size
        if not self.count:
            self.backlog = 0

    def expired(self, rows: int, size: int, now: float) -> None:
        """A request's deadline has passed. Where all do, that is no reason to let more in."""
        self.count -= 1
        self.rows -= rows
        self.bytes -= size
        if not self.count:
            self._count_then = 0
            self.drain.stop(now)

    def cut_off(self, now: float) -> None:
        """The broker is away. That no answers come says nothing about the model, nor is its backlog known."""
        self.backlog = 0
        self.drain.stop(now)

    def wait(self, now: float) -> float | None:
        """Seconds until a request that is sent now will be answered; None when that is not known."""
        if not self.backlog:
            return None
        rate = self.drain.rate(now, silence_counts=True)
        return min(self.rows / rate, _LONGEST_WAIT) if rate else None


class Admission:
    """The limits of one gateway.

    Args:
        max_in_flight: requests it holds at once.
        max_queue_rows: rows it has in flight for one model; 0 for no limit.
        clock: the monotonic clock of deadlines.
    """

    def __init__(
        self, *, max_in_flight: int, max_queue_rows: int = 0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._max_rows = max_queue_rows or sys.maxsize

    def check(
        self, held: int, flight: Flight, target: Target, rows: int, deadline: float, size: int = 0
    ) -> None:
        """Let a request in, or not.

        Args:
            held: requests this gateway holds.
            flight: of the request's model.
            target: where it goes.
            rows: it has.
            deadline: of the monotonic clock.
            size: bytes it adds to the model's queue.

        Raises:
            QueueFull: a limit is reached.
            PayloadTooLarge: the queue could not take it if it were empty.
            WaitTooLong: the deadline would pass before its turn.
        """
        if held >= self._max_in_flight:
            message = f"this gateway has {held} requests in flight; its limit is {self._max_in_flight}"
            raise _full(f"{message} (--max-in-flight)", flight, target, self._clock())
        max_rows = target.max_queue_rows or self._max_rows
        if flight.rows + rows > max_rows:
            raise self._too_many_rows(flight, target, rows, max_rows)
        if flight.bytes + size > target.max_queue_bytes:
            raise self._too_many_bytes(flight, target, size)
        if not flight.backlog:
            return
        if flight.count:
            self._check_wait(flight, target, deadline)
        else:
            flight.drain.go_on(self._clock())  # and let it in: it will tell how the model fares now

    def _too_many_rows(self, flight: Flight, target: Target, rows: int, limit: int) -> QueueFull:
        whose = QUEUE_ROWS if target.max_queue_rows else "--max-queue-rows"
        message = (
            f"model {target.model!r} has {flight.rows} rows in flight at this gateway, the request {rows}; "
            f"the limit is {limit} ({whose})"
        )
        return _full(message, flight, target, self._clock(), excess=flight.rows + rows - limit)

    def _too_many_bytes(self, flight: Flight, target: Target, size: int) -> QInferError:
        """The broker would refuse it: what is in flight here is not even all that it has."""
        limit = f"the queue of model {target.model!r} takes {target.max_queue_bytes} bytes (queue.max_bytes)"
        if size > target.max_queue_bytes:
            return PayloadTooLarge(f"{limit}, the request has {size}")
        message = f"{limit}; {flight.bytes} are in flight at this gateway, the request has {size}"
        return _full(message, flight, target, self._clock())

    def _check_wait(self, flight: Flight, target: Target, deadline: float) -> None:
        now = self._clock()
        budget = deadline - now
        limit, waiting = target.max_queue_size, flight.known_backlog
        if limit and waiting >= limit:
            message = f"{waiting} requests wait for model {target.model!r}; its max_queue_size is {limit}"
            raise _full(message, flight, target, now, excess=waiting - limit)
        wait = flight.wait(now)
        if wait is not None and wait > budget * _DEADLINE_SHARE:
            raise WaitTooLong(
                f"the queue of model {target.model!r} is {wait:.3f} s long; the request has {budget:.3f} s",
                retry_after=_jittered(wait - budget * _DEADLINE_SHARE),
                position=waiting + 1,
                estimated_wait=wait,
            )

    def refused(self, error: QueueFull, flight: Flight, target: Target) -> QueueFull:
        """The broker's refusal, with what this gateway knows of the queue."""
        return _full(error.message, flight, target, self._clock())


def _full(message: str, flight: Flight, target: Target, now: float, *, excess: int = 0) -> QueueFull:
    """A refusal until `excess` rows and a batch more are gone: room comes a batch at a time."""
    rate = flight.drain.rate(now, silence_counts=flight.backlog > 0)
    return QueueFull(
        message,
        retry_after=_jittered((excess + target.max_rows) / rate if rate else _UNKNOWN_RETRY),
        position=flight.known_backlog + 1 if flight.backlog else None,
        estimated_wait=flight.wait(now),
    )


def _jittered(seconds: float) -> float:
    """Spread, so that those who were refused together do not come back together."""
    low, high = _RETRY_RANGE
    return min(max(seconds, low), high) * random.uniform(1.0, 1.5)
