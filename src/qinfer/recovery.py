"""What becomes of calls when the connection to the broker is lost.

A frame that the broker had not confirmed may not be there; an answer that was sent meanwhile has reached
nobody. So such calls are published again: the unconfirmed when the bus gives them up, the others when their
answers have not come in about the time that answers take: a queue that is long, or a model that is slow,
would have its work doubled otherwise. Of two answers the first one wins. Where the broker stays away, callers
hear of it after `patience`, or shortly before their deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Generic, Protocol, TypeVar

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable, NoWorker, QInferError, QueueFull
from qinfer.message import Request

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 8
_NO_QUEUE_ATTEMPTS = 3
_FIRST_PAUSE = 0.1  # seconds before a refused call is published again; doubled each time
_LONGEST_PAUSE = 1.0
_MARGIN = 0.1  # seconds before the deadline at which an interrupted caller is told, if it has that many
_MARGIN_SHARE = 0.1
_LATENCIES = 1.5  # mean latencies that an answer of before may take after a reconnect
_GRAIN = 0.05  # seconds between two looks at what is due


class HasLatency(Protocol):
    """What is known of the other requests for a call's model."""

    @property
    def latency(self) -> float:
        """Seconds that answers take, a mean of the latest."""


class InFlight(Protocol):
    """A request in flight.

    Attributes:
        number: its correlation number.
        request: what was published; its `attempt` is counted up here.
        deadline: on the monotonic clock.
        sent_us: when it was published last; 0 before the first time.
        interrupted: the connection to the broker was lost while it was in flight.
    """

    number: int
    request: Request
    deadline: float
    sent_us: int
    interrupted: bool

    @property
    def flight(self) -> HasLatency:
        """Of its model."""


CallT = TypeVar("CallT", bound=InFlight)


class Recovery(Generic[CallT]):
    """Publishes again what a lost connection may have swallowed.

    Args:
        bus: a started bus.
        calls: what is in flight, by number; only read.
        patience: seconds that calls wait for the broker to come back.
        grace: seconds after that before anything is sent again: workers settle, too, before they answer.
        resend: publishes a call again.
        fail: ends a call with an error.
        hasten: told of a deadline that has become earlier.
    """

    def __init__(
        self,
        bus: Bus,
        calls: Mapping[int, CallT],
        *,
        patience: float,
        grace: float = 2.0,
        resend: Callable[[CallT], None],
        fail: Callable[[CallT, QInferError], None],
        hasten: Callable[[float], None],
    ) -> None:
        self._bus = bus
        self._calls = calls
        self._patience = patience
        self._grace = grace
        self._resend = resend
        self._fail = fail
        self._hasten = hasten
        self._loop = asyncio.get_running_loop()
        self._doubtful: dict[int, CallT] = {}
        self._back_at = 0.0
        self._timers: set[asyncio.TimerHandle] = set()
        bus.on_disconnect(self._lost)
        bus.on_reconnect(self._back)

    def close(self) -> None:
        """Publish nothing any more. Idempotent."""
        self._stop_timers()
        self._doubtful.clear()

    def refused(self, calls: Sequence[CallT], error: QInferError) -> list[CallT]:
        """The broker did not take calls, or nobody knows whether it did.

        Returns:
            Those that are not sent again.
        """
        hopeless, again = [], []
        pause = _LONGEST_PAUSE
        now = monotonic()
        for call in calls:
            wait = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**call.request.attempt)
            if not self._transient(call, error) or now + wait >= call.deadline:
                hopeless.append(call)
            elif not self._bus.connected:
                self._doubtful[call.number] = call
            else:
                self._doubtful.pop(call.number, None)
                again.append(call)
                pause = min(pause, wait)
        if again:
            self._later(pause * random.uniform(0.5, 1.0), partial(self._again, again))
        return hopeless

    def heard(self, call: CallT) -> None:
        """Responses to a call come, and nothing is missing: nothing of it was lost."""
        self._doubtful.pop(call.number, None)

    def _transient(self, call: CallT, error: QInferError) -> bool:
        """Whether another try may do better."""
        if isinstance(error, NoWorker) and not call.interrupted:
            # A live worker says that it serves the model: its queue is without a leader, or being made anew.
            return call.request.attempt < _NO_QUEUE_ATTEMPTS and self._repeatable(call)
        if isinstance(error, QueueFull) and not call.request.attempt:
            return False  # else an earlier try may be in that queue, or its answer on its way
        return isinstance(error, BusUnavailable | NoWorker | QueueFull) and self._repeatable(call)

    def unsent(self, call: CallT, error: QInferError) -> bool:
        """The connection does not take a call: whether it waits for it, as one does that was sent before."""
        if not (call.request.attempt and isinstance(error, BusUnavailable) and self._repeatable(call)):
            return False
        self._doubtful[call.number] = call
        return True

    def _lost(self) -> None:
        """Whatever is in flight is in doubt; its callers are to know before their deadlines."""
        self._stop_timers()
        now = monotonic()
        for number, call in self._calls.items():
            self._doubtful[number] = call
            if not call.interrupted:
                call.interrupted = True
                call.deadline -= min(_MARGIN, max(0.0, call.deadline - now) * _MARGIN_SHARE)
                self._hasten(call.deadline)
        self._later(self._patience, self._give_up)

    def _give_up(self) -> None:
        doubtful, self._doubtful = self._doubtful, {}
        error = BusUnavailable(f"the broker has been away for {self._patience:g} s", retry_after=1.0)
        for number, call in doubtful.items():
            if number in self._calls:
                self._fail(call, error)

    def _back(self) -> None:
        self._stop_timers()
        self._back_at = monotonic()
        self._later(self._grace, self._resend_doubtful)

    def _resend_doubtful(self) -> None:
        """Publish again what has had its time since the reconnect."""
        now = monotonic()
        self._doubtful = {number: call for number, call in self._doubtful.items() if number in self._calls}
        due = {number: self._due(call) for number, call in self._doubtful.items()}
        lost = [self._doubtful.pop(number) for number, when in due.items() if when <= now]
        if lost:
            logger.warning("%d requests were not answered since the reconnect: sent again", len(lost))
        self._again(lost)
        if self._doubtful:
            wait = min(due[number] for number in self._doubtful) - now
            self._later(max(wait, _GRAIN), self._resend_doubtful)

    def _due(self, call: CallT) -> float:
        """When a call is published again: after its answer should have come, with time left for another."""
        patient = self._grace + _LATENCIES * call.flight.latency
        half = (call.deadline - self._back_at) / 2
        return self._back_at + min(patient, max(self._grace, half))

    def _again(self, calls: Iterable[CallT]) -> None:
        for call in calls:
            # One that was not sent yet has large tensors, which are still on their way.
            if call.number in self._calls and call.sent_us and self._repeatable(call):
                call.request.attempt += 1
                self._resend(call)

    @staticmethod
    def _repeatable(call: CallT) -> bool:
        # One with an idempotency key has its answer kept: there is another way to it.
        return call.request.attempt < _MAX_ATTEMPTS and not call.request.idempotency

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        def act() -> None:
            self._timers.discard(timer)
            then()

        timer = self._loop.call_later(seconds, act)
        self._timers.add(timer)

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
