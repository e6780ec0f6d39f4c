"""From calls to frames and back.

All requests of one event-loop tick for the same model leave in one frame, as far as a batch and the broker's
payload limit allow; there is no timer, so an idle gateway sends frames of one. Responses find their call by
correlation number; the first response to a request wins, later ones are counted and dropped.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from functools import partial
from time import monotonic, time_ns
from typing import ClassVar

from qinfer.bus import Bus
from qinfer.errors import (
    Cancelled,
    DeadlineExceeded,
    PayloadTooLarge,
    QInferError,
    QueueFull,
    ShuttingDown,
)
from qinfer.message import (
    PROTOCOL_VERSION,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    decode_response_frame,
    encode,
)
from qinfer.telemetry.tracing import RequestSpan
from qinfer_gateway.catalog import Target
from qinfer_gateway.deadlines import Deadlines
from qinfer_gateway.observer import Observer

logger = logging.getLogger(__name__)

_COMPLAINT_SECONDS = 10.0  # between two log lines about answers that cannot be used
_FRAME_SHARE = 2  # a frame takes at most this part of max_payload, unless one request alone is larger
_REQUEST_OVERHEAD = 256  # generous bound for what a request's frame entry adds to its tensors


class Flight:
    """Requests in flight for one model."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_NO_FLIGHT = Flight()  # of calls that were never submitted


class Call:
    """One request on its way: the transports subclass it to send the answer."""

    __slots__ = ("deadline", "flight", "model", "number", "request_id", "rows", "span", "started")

    protocol: ClassVar[str]
    """How the call came in, for metrics and logs: "http" or "grpc"."""
    operation: ClassVar[str]
    """Name of its span."""

    def __init__(self, started: float) -> None:
        """`started` is of `time.monotonic`, the event loop's clock in finer grains."""
        self.started = started
        self.deadline = 0.0
        self.model = ""
        self.request_id = ""
        self.rows = 0
        self.number = 0
        self.flight = _NO_FLIGHT
        self.span: RequestSpan | None = None

    def status(self, error: QInferError | None) -> int:
        """The protocol's status code of an outcome."""
        return 200 if error is None else error.http_status

    @abstractmethod
    def answered(self, frame: ResponseFrame, response: Response) -> None:
        """The model's answer is here. Must not raise."""

    @abstractmethod
    def failed(self, error: QInferError) -> None:
        """There will be no answer. Must not raise."""


class _Outgoing:
    """Requests for one model and version that leave at the end of this tick."""

    __slots__ = ("flight", "requests", "target")

    def __init__(self, target: Target, flight: Flight) -> None:
        self.target = target
        self.flight = flight
        self.requests: list[tuple[Request, int, int]] = []


class Dispatcher:
    """Sends calls over the bus and hands their answers back.

    Args:
        bus: a started bus.
        observer: told what happens to calls.
        max_in_flight: calls held at once; more are refused with `QueueFull`.
        timeout: seconds a call without a deadline of its own may take.
    """

    def __init__(self, bus: Bus, observer: Observer, *, max_in_flight: int, timeout: float) -> None:
        self._bus = bus
        self._observer = observer
        self._max_in_flight = max_in_flight
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._flights: dict[str, Flight] = {}
        self._outbox: dict[Target, _Outgoing] = {}
        self._next_number = 0
        self._deadlines = Deadlines(self._calls, self._expire)
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.dropped = 0
        """What came in for no call: late or second answers, and what cannot be read on either side."""
        self._complained = float("-inf")
        bus.on_reply(self._receive)

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight by model."""
        return {model: flight.count for model, flight in self._flights.items()}

    def submit(self, call: Call, target: Target, request: Request, *, timeout: float = 0.0) -> None:
        """Check a request and queue it for this tick's frame.

        Args:
            call: gets the answer.
            target: where to.
            request: its `id`, `deadline_us` are set here.
            timeout: seconds the caller allows from the call's start; 0 for the default.

        Raises:
            InvalidRequest: it does not fit the model's signature.
            QueueFull: too many calls are in flight.
            PayloadTooLarge: larger than the broker takes.
            ShuttingDown: this gateway is draining.
        """
        _, rows = target.signature.check(request)
        size = _REQUEST_OVERHEAD
        for tensor in request.inputs:
            size += len(tensor.data)
        if size > self._bus.max_payload:
            raise PayloadTooLarge(
                f"request of {size} bytes is above the broker's max_payload of {self._bus.max_payload} bytes"
            )
        calls = self._calls
        if len(calls) >= self._max_in_flight:
            raise QueueFull(f"this gateway has {self._max_in_flight} requests in flight", retry_after=1.0)
        if self._draining:
            raise ShuttingDown("this gateway is shutting down", retry_after=1.0)
        outgoing = self._outbox.get(target)
        if outgoing is None:
            outgoing = self._open(target)
        number = self._next_number = self._next_number + 1
        outgoing.flight.count += 1
        call.number = request.id = number
        call.model = target.model
        call.rows = rows
        call.flight = outgoing.flight
        deadline = call.deadline = call.started + (timeout or self._timeout)
        calls[number] = call
        if deadline < self._deadlines.next:
            self._deadlines.add(deadline)
        outgoing.requests.append((request, rows, size))
        if self._observer.watches:
            self._observer.started(call, request, target.subject)

    def _open(self, target: Target) -> _Outgoing:
        """Begin to collect what leaves for a target at the end of this tick."""
        flight = self._flights.get(target.model)
        if flight is None:
            flight = self._flights[target.model] = Flight()
        if not self._outbox:
            self._loop.call_soon(self._flush)
            self._idle.clear()
        outgoing = self._outbox[target] = _Outgoing(target, flight)
        return outgoing

    def refused(self, call: Call, model: str, error: QInferError) -> None:
        """A call is answered with an error before it was submitted."""
        call.model = model
        self._observer.failed(call, error)

    def abandon(self, call: Call) -> None:
        """The caller has gone: forget the call."""
        if self._take(call.number) is not None:
            self._observer.failed(call, Cancelled("the caller has gone"))

    async def drain(self, timeout: float) -> None:
        """Refuse new calls and wait for those in flight; what is left after `timeout` seconds fails."""
        self._draining = True
        if self._calls:  # set by a call that left in the same tick in which the next one was made
            self._idle.clear()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            error = ShuttingDown("this gateway shut down before the answer came", retry_after=1.0)
            for number in list(self._calls):
                self._fail(number, error)
        self._deadlines.close()

    # Out

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for outgoing in outbox.values():
            self._send(outgoing)

    def _send(self, outgoing: _Outgoing) -> None:
        """Send one model's requests in as few frames as its batch size and the broker's limit allow."""
        max_rows = outgoing.target.max_rows
        max_bytes = self._bus.max_payload // _FRAME_SHARE
        now_us = time_ns() // 1000
        now = monotonic()
        frame: list[Request] = []
        frame_rows = frame_bytes = 0
        for request, rows, size in outgoing.requests:
            call = self._calls.get(request.id)
            if call is None:
                continue  # the caller left within this very tick
            budget = call.deadline - now
            if budget <= 0:
                self._expire(request.id)
                continue
            if frame and (frame_rows + rows > max_rows or frame_bytes + size > max_bytes):
                self._publish(outgoing, frame, frame_rows, now_us)
                frame, frame_rows, frame_bytes = [], 0, 0
            request.deadline_us = now_us + int(budget * 1e6)
            if call.span is not None:
                self._observer.published(call)
            frame.append(request)
            frame_rows += rows
            frame_bytes += size
        if frame:
            self._publish(outgoing, frame, frame_rows, now_us)

    def _publish(self, outgoing: _Outgoing, requests: list[Request], rows: int, now_us: int) -> None:
        target = outgoing.target
        numbers = [request.id for request in requests]
        data = encode(
            RequestFrame(
                PROTOCOL_VERSION,
                self._bus.reply_to,
                target.model,
                target.wanted_version,
                now_us,
                outgoing.flight.count,
                requests,
            )
        )
        try:
            self._bus.publish(target.model, target.wanted_version, data, partial(self._refused, numbers))
        except PayloadTooLarge as error:
            # Names and parameters are not in the sizes that frames are filled by: find out whose they are.
            if len(requests) == 1:
                self._refused(numbers, error)
                return
            rows_of = {request.id: rows for request, rows, _ in outgoing.requests}
            for request in requests:
                self._publish(outgoing, [request], rows_of[request.id], now_us)
            return
        except QInferError as error:
            self._refused(numbers, error)
            return
        self._observer.stats.record_frame(target.model, requests=len(requests), rows=rows)

    def _refused(self, numbers: list[int], error: QInferError) -> None:
        for number in numbers:
            self._fail(number, error)

    # Back

    def _receive(self, data: bytes) -> None:
        try:
            frame = decode_response_frame(data)
        except QInferError as error:
            self._complain("a worker's answer cannot be read: %s", error)
            return
        if frame.error is not None:
            # It names no request: whose they were is known when their deadline passes.
            self._complain(
                "worker %s cannot read this gateway's requests: %s", frame.worker, frame.error.message
            )
            return
        now = monotonic()  # the loop's clock counts milliseconds, too coarse for latencies
        calls = self._calls
        for response in frame.responses:
            call = calls.pop(response.id, None)
            if call is None:
                self.dropped += 1
                continue
            call.flight.count -= 1
            if response.error is None:
                call.answered(frame, response)
            else:
                call.failed(response.error.exception())
            self._observer.answered(call, frame, response, now)
        if not calls:
            self._idle.set()

    def _complain(self, what: str, *about: object) -> None:
        """Count what concerns no call, and say so now and then: it may come with every frame."""
        self.dropped += 1
        now = self._loop.time()
        if now - self._complained >= _COMPLAINT_SECONDS:
            self._complained = now
            logger.warning(what, *about)

    def _expire(self, number: int) -> None:
        self._fail(number, DeadlineExceeded("deadline passed before the answer came"))

    def _fail(self, number: int, error: QInferError) -> None:
        call = self._take(number)
        if call is not None:
            call.failed(error)
            self._observer.failed(call, error)

    def _take(self, number: int) -> Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            call.flight.count -= 1
            if not self._calls:
                self._idle.set()
        return call
