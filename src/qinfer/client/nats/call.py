"""Requests in flight."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from time import monotonic

from qinfer.client.nats.models import Target
from qinfer.errors import InvalidRequest, QInferError
from qinfer.message import END, FINAL, Request, Response, ResponseFrame, encode

_LEARNING_RATE = 0.1  # of the latency
_OVERHEAD = 2048  # more than everything in a frame of one request whose size nobody chooses
_TENSOR_OVERHEAD = 64
_DIMENSION = 9
_CHARACTER = 4  # in UTF-8


class Flight:
    """What this client has in flight for one model.

    Attributes:
        count: requests.
        latency: seconds that answers take, a mean of the latest.
    """

    __slots__ = ("count", "latency")

    def __init__(self) -> None:
        self.count = 0
        self.latency = 0.0

    def heard(self, latency: float) -> None:
        """An answer came after so many seconds."""
        self.latency += _LEARNING_RATE * (latency - self.latency)


class Call(ABC):
    """A request on its way.

    Attributes:
        target, request: what it asks, and whom.
        deadline: of `time.monotonic`.
        rows: of the request.
        size: bound of the bytes of a frame with it alone.
        number: its correlation number.
        flight: of its model.
        started: when it was made, of `time.monotonic`.
        sent_us: when it was published last; 0 before the first time.
        interrupted: the connection to the broker was lost while it was in flight.
    """

    __slots__ = (
        "deadline", "flight", "interrupted", "number", "request", "rows", "sent_us", "size", "started",
        "target",
    )  # fmt: skip

    flight: Flight

    def __init__(self, target: Target, request: Request, deadline: float) -> None:
        _, self.rows = target.signature.check(request)
        self.target = target
        self.request = request
        self.deadline = deadline
        self.size = _size(request)
        self.number = 0
        self.started = monotonic()
        self.sent_us = 0
        self.interrupted = False

    @abstractmethod
    def take(self, frame: ResponseFrame, response: Response) -> bool:
        """A response came; whether it is the last one. Must not raise."""

    @abstractmethod
    def failed(self, error: QInferError) -> None:
        """There will be no (further) response. Must not raise."""

    @property
    def gapless(self) -> bool:
        """Whether every response up to the latest has come."""
        return False


class Answer(Call):
    """A request with one answer.

    A decoupled model gives as many as it likes: exactly one is an answer, too.

    Attributes:
        future: the answer.
    """

    __slots__ = ("_first", "future")

    def __init__(self, target: Target, request: Request, deadline: float) -> None:
        super().__init__(target, request, deadline)
        self._first: tuple[ResponseFrame, Response] | None = None
        self.future: asyncio.Future[tuple[ResponseFrame, Response]] = (
            asyncio.get_running_loop().create_future()
        )

    def take(self, frame: ResponseFrame, response: Response) -> bool:
        if response.error is not None:
            self.failed(response.error.exception())
        elif response.index or response.flags & END:
            return self._take_further(response)
        elif response.flags & FINAL:
            self._answered((frame, response))
        else:
            self._first = (frame, response)
            return False
        return True

    def _take_further(self, response: Response) -> bool:
        if not response.flags & END:
            more = "more than one response"
        elif self._first is not None:
            self._answered(self._first)
            return True
        else:
            more = "no response"
        self.failed(
            InvalidRequest(
                f"model {self.target.model!r} gave {more}; expected one, stream() takes any number"
            )
        )
        return True

    def _answered(self, answer: tuple[ResponseFrame, Response]) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def failed(self, error: QInferError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def forget(self) -> None:
        """Nobody looks at the future any more."""
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # or asyncio would complain that nobody has


def _size(request: Request) -> int:
    size = _OVERHEAD + _CHARACTER * len(request.request_id)
    for tensor in request.inputs:
        size += _TENSOR_OVERHEAD + _CHARACTER * len(tensor.name) + _DIMENSION * len(tensor.shape)
        size += len(tensor.data)
    for output in request.outputs:
        size += _TENSOR_OVERHEAD + _CHARACTER * len(output)
    if request.parameters:
        size += len(encode(request.parameters))
    return size
