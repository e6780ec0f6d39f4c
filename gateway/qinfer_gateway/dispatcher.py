"""From calls to frames and back.

A call is checked, admitted and put into the outbox, which publishes at the end of the event-loop tick.
Responses find their call by correlation number; the first response to a request wins, later ones are counted
and dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from qinfer.bus import Bus
from qinfer.deadlines import Deadlines
from qinfer.errors import (
    BusUnavailable,
    Cancelled,
    DeadlineExceeded,
    PayloadTooLarge,
    QInferError,
    QueueFull,
    ShuttingDown,
)
from qinfer.message import Request, Response, ResponseFrame, decode_response_frame
from qinfer.recovery import Recovery
from qinfer_gateway.admission import Admission, Flight
from qinfer_gateway.call import Call
from qinfer_gateway.cancellations import Cancellations
from qinfer_gateway.catalog import Target
from qinfer_gateway.detours import Detours
from qinfer_gateway.observer import Observer
from qinfer_gateway.outbox import Outbox
from qinfer_gateway.streams import Streams

__all__ = ["Call", "Dispatcher"]

logger = logging.getLogger(__name__)

_COMPLAINT_SECONDS = 10.0  # between two log lines about answers that cannot be used
_REQUEST_OVERHEAD = 256  # generous bound for what a request's frame entry adds to its tensors


class Dispatcher:
    """Sends calls over the bus and hands their answers back.

    Args:
        bus: a started bus.
        observer: told what happens to calls.
        max_in_flight: calls held at once; more are refused with `QueueFull`.
        max_queue_rows: rows of calls held at once for one model; 0 for no limit.
        timeout: seconds a call without a deadline of its own may take.
        patience: seconds that calls in flight wait for a broker that is away.
        max_claim_bytes: bytes held at once of tensors that are too large for a message.
    """

    def __init__(
        self,
        bus: Bus,
        observer: Observer,
        *,
        max_in_flight: int,
        timeout: float,
        max_queue_rows: int = 0,
        patience: float = 10.0,
        max_claim_bytes: int = 512 << 20,
    ) -> None:
        self._bus = bus
        self._observer = observer
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._flights: dict[str, Flight] = {}
        self._next_number = 0
        self._admission = Admission(max_in_flight=max_in_flight, max_queue_rows=max_queue_rows)
        self._deadlines = Deadlines(self._calls, lambda number: self._expire(self._calls[number]))
        self._outbox = Outbox(
            bus, self._calls, observer, expired=self._expire, unsent=self._unsent, refused=self._refused
        )
        self._detours = Detours(
            bus,
            observer,
            max_claim_bytes=max_claim_bytes,
            leave=self._leave,
            answer=self._answer,
            fail=self._fail,
        )
        self._cancellations = Cancellations(bus)
        self._streams = Streams(self._cancellations, self._detours, observer)
        self._recovery = Recovery(
            bus,
            self._calls,
            patience=patience,
            resend=self._resend,
            fail=self._fail,
            hasten=self._deadlines.add,
        )
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._complained = float("-inf")
        bus.on_disconnect(self._cut_off)
        bus.on_reply(self._receive)

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight by model."""
        return {model: flight.count for model, flight in self._flights.items()}

    @property
    def flights(self) -> dict[str, Flight]:
        """What is in flight by model, and what is known of the models' queues; only to be read."""
        return self._flights

    @property
    def dropped(self) -> int:
        """What came in for no call: late or second answers, and what cannot be read on either side."""
        return self._observer.stats.dropped

    def submit(self, call: Call, target: Target, request: Request, *, timeout: float = 0.0) -> None:
        """Check a request and queue it for this tick's frame.

        Args:
            call: gets the answer.
            target: where to.
            request: its `id`, `deadline_us` are set here, and the data of its inputs are taken out where they
                are too large for a message. It is kept until the call ends.
            timeout: seconds the caller allows from the call's start; 0 for the default.

        Raises:
            InvalidRequest: it does not fit the model's signature.
            QueueFull: too many calls are in flight, or wait for the model.
            WaitTooLong: the call would not be answered in its time.
            PayloadTooLarge: larger than this gateway takes.
            ShuttingDown: this gateway is draining.
            Unsupported: the model gives any number of responses, and the call takes one.
        """
        if call.takes_many or target.decoupled:
            self._streams.admit(call, target, request)
        _, rows = target.signature.check(request)
        size = _REQUEST_OVERHEAD
        for tensor in request.inputs:
            size += len(tensor.data)
        if self._draining:
            raise ShuttingDown("this gateway is shutting down", retry_after=1.0)
        flight = self._flights.get(target.model)
        if flight is None:
            flight = self._flights[target.model] = Flight()
        calls = self._calls
        deadline = call.started + (timeout or self._timeout)
        queued = size - _REQUEST_OVERHEAD if size <= self._bus.max_payload else 0
        self._admission.check(len(calls), flight, target, rows, deadline, queued)
        detour = None
        if size > self._bus.max_payload or request.idempotency:
            detour = self._detours.admit(size)
        number = self._next_number = self._next_number + 1
        flight.count += 1
        flight.rows += rows
        flight.bytes += queued
        call.number = request.id = number
        call.model = target.model
        call.target = target
        call.request = request
        call.rows = rows
        call.size = size
        call.queued = queued
        call.flight = flight
        call.deadline = deadline
        if not calls:
            self._idle.clear()
        calls[number] = call
        if deadline < self._deadlines.next:
            self._deadlines.add(deadline)
        if detour is None:
            self._outbox.add(call, target)
        else:
            self._detours.begin(call, detour)
        if self._observer.watches:
            self._observer.started(call, request, target.subject)

    def refused(self, call: Call, model: str, error: QInferError) -> None:
        """A call is answered with an error before it was submitted."""
        call.model = model
        self._observer.failed(call, error)

    def abandon(self, call: Call, *, private: bool = False) -> None:
        """The caller has gone: forget the call, and tell the workers.

        One with an idempotency key is run all the same, for who asks again, unless it is `private`.
        """
        if self._take(call):
            self._observer.failed(call, Cancelled("the caller has gone"))
            if call.sent_us and (private or not call.request.idempotency):
                self._cancellations.add(call.model, call.number)
        if call.takes_many:
            call.dropped()

    async def drain(self, timeout: float) -> None:
        """Refuse new calls and wait for those in flight; what is left after `timeout` seconds fails."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            error = ShuttingDown("this gateway shut down before the answer came", retry_after=1.0)
            for call in list(self._calls.values()):
                self._fail(call, error)
        self._recovery.close()
        self._deadlines.close()
        await self._detours.close()

    # Out

    def _leave(self, call: Call) -> None:
        self._outbox.add(call, call.target)

    def _resend(self, call: Call) -> None:
        self._observer.stats.resent += 1
        self._outbox.add(call, call.target)

    def _unsent(self, calls: Sequence[Call], error: QInferError) -> None:
        """Calls could not be handed to the connection."""
        for call in calls:
            if isinstance(error, PayloadTooLarge) and self._detours.relieve(call):
                continue
            if not self._recovery.unsent(call, error):
                self._fail(call, error)

    def _refused(self, calls: Sequence[Call], sent_us: int, error: QInferError) -> None:
        """The broker did not take calls that were published then, or nobody knows."""
        calls = [call for call in calls if call.sent_us == sent_us and call.number in self._calls]
        for call in self._recovery.refused(calls, error):
            self._fail(call, self._refusal(call, error))

    def _refusal(self, call: Call, error: QInferError) -> QInferError:
        if not isinstance(error, QueueFull):
            return error
        if call.request.attempt:  # "nothing was done" would be a guess
            return BusUnavailable(
                f"whether an earlier try is run is not known, and then {error.message}",
                retry_after=error.retry_after,
            )
        return self._admission.refused(error, call.flight, call.target)

    # Back

    def _receive(self, data: bytes) -> None:
        frame = self._read(data)
        if frame is None:
            return
        now = monotonic()  # the loop's clock counts milliseconds, too coarse for latencies
        calls = self._calls
        rows = late = 0
        call = None
        for response in frame.responses:
            found = calls.pop(response.id, None)
            if found is None:
                late += 1
                if response.claim:
                    self._detours.discard(response)
                continue
            if (found.takes_many or response.claim) and not self._ends(found, frame, response):
                calls[response.id] = found
                continue
            call = found
            rows += call.rows
            call.flight.count -= 1
            call.flight.rows -= call.rows
            call.flight.bytes -= call.queued
            if call.detour is not None:
                self._detours.ended(call, answered=True)
            if response.error is None:
                call.answered(frame, response)
            else:
                call.failed(response.error.exception())
            self._observer.answered(call, frame, response, now)
        self._observer.stats.dropped += late
        if call is not None:
            call.flight.heard(frame, rows + late, call.target.max_rows, now, latency=now - call.started)
        if not calls:
            self._idle.set()

    def _ends(self, call: Call, frame: ResponseFrame, response: Response) -> bool:
        """Whether a response is a call's last, and complete."""
        if call.takes_many:
            last = call.arrived(frame, response)
            if not last and call.gapless:
                self._recovery.heard(call)
            return last
        self._detours.fetch(call, frame, response)
        return False

    def _read(self, data: bytes) -> ResponseFrame | None:
        """A frame with responses; None where it has none."""
        try:
            frame = decode_response_frame(data)
        except QInferError as error:
            self._complain("a worker's answer cannot be read: %s", error)
            return None
        if frame.error is not None:
            # It names no request: whose they were is known when their deadline passes.
            self._complain(
                "worker %s cannot read this gateway's requests: %s", frame.worker, frame.error.message
            )
            return None
        return frame

    def _answer(self, call: Call, frame: ResponseFrame, response: Response) -> None:
        """A call's answer came on a detour."""
        if not self._take(call, answered=True):
            self._observer.stats.dropped += 1
            return
        if response.error is None:
            call.answered(frame, response)
        else:
            call.failed(response.error.exception())
        self._observer.answered(call, frame, response, monotonic())

    def _complain(self, what: str, *about: object) -> None:
        """Count what concerns no call, and say so now and then: it may come with every frame."""
        self._observer.stats.dropped += 1
        now = self._loop.time()
        if now - self._complained >= _COMPLAINT_SECONDS:
            self._complained = now
            logger.warning(what, *about)

    def _cut_off(self) -> None:
        now = monotonic()
        for flight in self._flights.values():
            flight.cut_off(now)

    def _expire(self, call: Call) -> None:
        if call.interrupted:
            error: QInferError = BusUnavailable(
                "the connection to the broker was lost, and the answer did not come in time", retry_after=1.0
            )
        else:
            error = DeadlineExceeded("deadline passed before the answer came")
        self._fail(call, error, expired=True)

    def _fail(self, call: Call, error: QInferError, *, expired: bool = False) -> None:
        if self._take(call, expired=expired):
            call.failed(error)
            self._observer.failed(call, error)
            if call.takes_many:
                self._streams.left(call)

    def _take(self, call: Call, *, answered: bool = False, expired: bool = False) -> bool:
        """Whether the call was in flight; it is no longer."""
        if self._calls.pop(call.number, None) is None:
            return False
        if expired:
            call.flight.expired(call.rows, call.queued, monotonic())
        else:
            call.flight.left(call.rows, call.queued)
        if call.detour is not None:
            self._detours.ended(call, answered=answered)
        if not self._calls:
            self._idle.set()
        return True
