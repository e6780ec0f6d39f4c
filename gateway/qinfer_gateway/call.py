"""One request on its way through a gateway."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from qinfer.errors import QInferError
from qinfer.message import Request, Response, ResponseFrame
from qinfer.telemetry.tracing import RequestSpan
from qinfer_gateway.admission import Flight
from qinfer_gateway.catalog import Target

if TYPE_CHECKING:
    from qinfer_gateway.detours import Detour

_NO_FLIGHT = Flight()  # of calls that were never submitted


class Call:
    """One request on its way: the transports subclass it to send the answer.

    Attributes:
        started: when it arrived, of `time.monotonic`, the event loop's clock in finer grains.
        deadline: when it ends without an answer, of the same clock.
        number: its correlation number.
        model, rows: what it asks for.
        request, target: what was submitted, and where to; kept to send it again.
        size: bound of its bytes in a frame.
        queued: bytes of its tensors that lie in the model's queue.
        sent_us: when it was published last, as its frame says; 0 before the first time.
        interrupted: the connection to the broker was lost while it was in flight.
        flight: of its model.
        detour: where it, or its answer, does not go in a frame alone.
        span: when it is traced.
    """

    __slots__ = (
        "deadline", "detour", "flight", "interrupted", "model", "number", "queued", "request", "request_id",
        "rows", "sent_us", "size", "span", "started", "target",
    )  # fmt: skip

    protocol: ClassVar[str]
    """How the call came in, for metrics and logs: "http" or "grpc"."""
    operation: ClassVar[str]
    """Name of its span."""
    takes_many: ClassVar[bool] = False
    """Whether it is a `streams.StreamCall`."""

    request: Request
    target: Target

    def __init__(self, started: float) -> None:
        self.started = started
        self.deadline = 0.0
        self.model = ""
        self.request_id = ""
        self.rows = 0
        self.size = 0
        self.queued = 0
        self.number = 0
        self.sent_us = 0
        self.interrupted = False
        self.flight = _NO_FLIGHT
        self.detour: Detour | None = None
        self.span: RequestSpan | None = None

    def status(self, error: QInferError | None) -> int:
        """The protocol's status code of an outcome."""
        return 200 if error is None else error.http_status

    def arrived(self, frame: ResponseFrame, response: Response) -> bool:  # noqa: ARG002 (for streams)
        """One of many responses is here: whether it is the last, which `answered` or `failed` get then."""
        return True

    @property
    def gapless(self) -> bool:
        """Whether every one of many responses up to the latest has come."""
        return False

    def dropped(self) -> None:
        """Nobody reads the rest of its responses."""

    @abstractmethod
    def answered(self, frame: ResponseFrame, response: Response) -> None:
        """The model's answer is here. Must not raise."""

    @abstractmethod
    def failed(self, error: QInferError) -> None:
        """There will be no answer. Must not raise."""
