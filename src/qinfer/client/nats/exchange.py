"""Requests and responses over one connection.

Calls leave in frames; responses find their call by its correlation number. What a lost connection may have
swallowed is published again (`qinfer.recovery`), and the first answer wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.client.nats.call import Call, Flight
from qinfer.client.nats.notices import Notices
from qinfer.client.nats.outbox import Outbox
from qinfer.deadlines import Deadlines
from qinfer.errors import BusUnavailable, Cancelled, DeadlineExceeded, QInferError, QueueFull, Unavailable
from qinfer.message import KEPT, Response, ResponseFrame, decode_response_frame
from qinfer.recovery import Recovery

logger = logging.getLogger(__name__)

_COMPLAINT_SECONDS = 10.0  # between two log lines about answers that cannot be used


class Exchange:
    """What is in flight on a connection.

    Args:
        bus: a started bus that nobody else gets replies from.
        claims: tensors too large for messages.
        patience: seconds that calls in flight wait for a broker that is away.
    """

    def __init__(self, bus: Bus, claims: Claims, *, patience: float) -> None:
        self._bus = bus
        self._claims = claims
        self._patience = patience
        self._calls: dict[int, Call] = {}
        self._flights: dict[str, Flight] = {}
        self._last_number = 0
        self._deadlines = Deadlines(self._calls, lambda number: self._expire(self._calls[number]))
        self._outbox = Outbox(
            bus, self._calls, expired=self._expire, unsent=self._unsent, refused=self._refused
        )
        self._recovery = Recovery(
            bus,
            self._calls,
            patience=patience,
            resend=self._outbox.add,
            fail=self._fail,
            hasten=self._deadlines.add,
        )
        self.notices = Notices(bus)
        self._connected = asyncio.Event()
        self._closed = False
        self._complained = float("-inf")
        self.dropped = 0
        """Responses that came for no call: late or second ones, and what cannot be read."""
        bus.on_reconnect(self._connected.set)
        bus.on_reply(self._receive)

    async def connection(self, deadline: float) -> None:
        """Wait for a connection that is down.

        Raises:
            DeadlineExceeded: it was not back at the deadline, of `time.monotonic`.
            Unavailable: nor after all the time that calls wait for it.
            Cancelled: the client was closed.
        """
        if self._bus.connected and not self._closed:
            return
        left = deadline - monotonic()
        try:
            async with asyncio.timeout(min(left, self._patience)):
                while not (self._bus.connected or self._closed):
                    self._connected.clear()  # it is known to be down before anybody is told
                    await self._connected.wait()
            if self._closed:
                raise _closed()
        except TimeoutError:
            if left <= self._patience:
                raise DeadlineExceeded("deadline passed while the broker was away") from None
            raise Unavailable(f"the broker has been away for {self._patience:g} s", retry_after=1.0) from None

    def enter(self, call: Call) -> None:
        """Watch a call from now on; it is sent by its owner."""
        model = call.target.model
        flight = self._flights.get(model)
        if flight is None:
            flight = self._flights[model] = Flight()
        call.number = call.request.id = self._last_number = self._last_number + 1
        call.flight = flight
        flight.count += 1
        self._calls[call.number] = call
        if call.deadline < self._deadlines.next:
            self._deadlines.add(call.deadline)

    def send(self, call: Call) -> None:
        """Send a call that was entered, in this tick's frame."""
        self._outbox.add(call)

    def abandon(self, call: Call) -> None:
        """Nobody waits for a call any more: forget it, and tell the workers. Idempotent."""
        # With an idempotency key it is run although nobody waits: who asked may ask again.
        if self._take(call) and call.sent_us and not call.request.idempotency:
            self.notices.cancel(call.target.model, call.number)

    def discard(self, response: Response) -> None:
        """The data of a response are not needed (any more): remove them, unless they are kept for others."""
        if response.claim and not response.flags & KEPT:
            self._claims.remove(response.claim)

    def close(self) -> None:
        """Cancel what is in flight. Idempotent."""
        self._closed = True
        self._connected.set()
        error = _closed()
        for call in list(self._calls.values()):
            self.abandon(call)
            call.failed(error)
        self._recovery.close()
        self._deadlines.close()

    # Out

    def _unsent(self, calls: Sequence[Call], error: QInferError) -> None:
        for call in calls:
            if self._recovery.unsent(call, error):
                continue
            if isinstance(error, BusUnavailable) and not call.request.attempt:
                # It is certain that nothing was sent: that is safe to try again.
                self._fail(call, Unavailable(error.message, retry_after=error.retry_after))
            else:
                self._fail(call, error)

    def _refused(self, calls: Sequence[Call], sent_us: int, error: QInferError) -> None:
        calls = [call for call in calls if call.sent_us == sent_us and call.number in self._calls]
        for call in self._recovery.refused(calls, error):
            if isinstance(error, QueueFull) and call.request.attempt:  # "nothing was done" would be a guess
                message = f"whether an earlier try is run is not known, and then {error.message}"
                self._fail(call, BusUnavailable(message, retry_after=error.retry_after))
            else:
                self._fail(call, error)

    # Back

    def _receive(self, data: bytes) -> None:
        frame = self._read(data)
        if frame is None:
            return
        calls = self._calls
        for response in frame.responses:
            call = calls.get(response.id)
            if call is None:
                self.dropped += 1
                self.discard(response)
            elif call.take(frame, response):
                self._take(call)
                call.flight.heard(monotonic() - call.started)
            elif call.gapless:
                self._recovery.heard(call)

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
                "worker %s cannot read this client's requests: %s", frame.worker, frame.error.message
            )
            return None
        return frame

    def _complain(self, what: str, *about: object) -> None:
        self.dropped += 1
        now = monotonic()
        if now - self._complained >= _COMPLAINT_SECONDS:
            self._complained = now
            logger.warning(what, *about)

    # Ends

    def _expire(self, call: Call) -> None:
        if call.interrupted:
            error: QInferError = BusUnavailable(
                "the connection to the broker was lost, and the answer did not come in time", retry_after=1.0
            )
        else:
            error = DeadlineExceeded("deadline passed before the answer came")
        self._fail(call, error)

    def _fail(self, call: Call, error: QInferError) -> None:
        if self._take(call):
            call.failed(error)

    def _take(self, call: Call) -> bool:
        """Whether the call was in flight; it is no longer."""
        if self._calls.pop(call.number, None) is None:
            return False
        call.flight.count -= 1
        return True


def _closed() -> Cancelled:
    return Cancelled("this client was closed before the answer came")
