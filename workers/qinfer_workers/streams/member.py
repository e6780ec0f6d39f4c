"""Requests for decoupled models."""

from __future__ import annotations

from time import perf_counter_ns

from qinfer.errors import InvalidRequest
from qinfer.message import Request
from qinfer.signature import Plan, Signature
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.streams.stream import RunResponder, Stream


class StreamMember(Member):
    """One request for a decoupled model (implements `backends.base.StreamingMember`).

    Attributes:
        queue_us: from its arrival at this worker to the start of its batch.
    """

    __slots__ = ("_responder", "_stream", "queue_us")

    def __init__(self, request: Request, frame: HeldFrame, plan: Plan, rows: int, deadline: float) -> None:
        super().__init__(request, frame, plan, rows, deadline)
        self.queue_us = 0
        self._stream: Stream | None = None
        self._responder: RunResponder | None = None

    @property
    def stream(self) -> Stream:
        """Its responses, once its batch is under way."""
        if self._stream is None:  # set before the batch is handed to an instance
            raise AssertionError("the request's batch has not begun")
        return self._stream

    @property
    def responder(self) -> RunResponder:
        """Where the model is to send them."""
        if self._responder is None:
            raise AssertionError("the request's run has not begun")
        return self._responder

    def start(self, stream: Stream) -> None:
        """Its batch is under way."""
        self.queue_us = (perf_counter_ns() - self.frame.received_ns) // 1000
        self._stream = stream

    def run(self) -> None:
        """The model is about to get the request."""
        self._responder = self.stream.begin()


class StreamSignature(Signature):
    """The checks of a decoupled model."""

    def check(self, request: Request) -> tuple[Plan, int]:
        """See `Signature.check`.

        Raises:
            InvalidRequest: also for an idempotency key: what is kept is one answer.
        """
        if request.idempotency:
            raise InvalidRequest(
                "the request has an idempotency key; expected none: the responses of a decoupled model are "
                "not kept"
            )
        return super().check(request)
