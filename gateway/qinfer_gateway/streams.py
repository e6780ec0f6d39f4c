"""Calls that take any number of responses, at the pace of their readers.

Responses come numbered. A request that was run again is answered from the start, and what was had is dropped.
So is what comes too early, because something before it was lost: it comes again. No more responses than a
window are on their way or wait here for their reader, and the worker is told how far it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from qinfer.errors import InternalError, InvalidRequest, QInferError, Unsupported
from qinfer.message import END, FINAL, Request, Response, ResponseFrame, WireError
from qinfer_gateway.call import Call

if TYPE_CHECKING:
    from qinfer_gateway.cancellations import Cancellations
    from qinfer_gateway.catalog import Target
    from qinfer_gateway.detours import Detours
    from qinfer_gateway.observer import Observer

WINDOW = 16
"""Responses of one call that may be on their way or wait for their reader."""

_TELL = WINDOW // 2  # that are taken before the worker is told
_MAX_WAITING = 4 * WINDOW  # of a worker that heeds no window


class Streamed(NamedTuple):
    """One of many responses.

    Attributes:
        version: of the model that gave it.
        response: the response; with the flag `END` there is nothing in it.
        final: nothing follows.
    """

    version: str
    response: Response
    final: bool

    @property
    def empty(self) -> bool:
        """Whether it only says that the one before was the last."""
        return bool(self.response.flags & END)


class StreamCall(Call):
    """A call that takes any number of responses; its reader asks for them with `next`."""

    takes_many: ClassVar[bool] = True

    __slots__ = (
        "_attempt", "_changed", "_ended", "_error", "_expected", "_gapless", "_streams", "_taken", "_told",
        "_waiting",
    )  # fmt: skip

    def __init__(self, started: float) -> None:
        super().__init__(started)
        self._streams: Streams | None = None
        self._waiting: deque[Streamed] = deque()
        self._changed = asyncio.Event()
        self._ended = False  # nothing more comes
        self._error: QInferError | None = None  # why
        self._attempt = 0  # the latest that a response was of
        self._expected = 0  # index of the next response
        self._gapless = False
        self._taken = 0  # by the reader
        self._told = 0  # of those, to the worker

    # The reader's side

    async def next(self) -> Streamed | None:
        """The next response; None after the last.

        Raises:
            QInferError: why there are no more.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        streamed = self._waiting.popleft()
        self._taken += 1
        if self._taken - self._told >= _TELL and not self._ended:
            self._tell()
        if streamed.response.claim and self._streams is not None:
            await self._streams.fetch(streamed.response)
        return streamed

    # The dispatcher's side

    def begin(self, streams: Streams) -> None:
        """It is about to be submitted."""
        self._streams = streams

    def arrived(self, frame: ResponseFrame, response: Response) -> bool:
        """A response came.

        Returns:
            Whether it is the last; it goes to `answered` or `failed` then.
        """
        if response.error is not None:
            return True
        again = response.attempt > self._attempt > 0
        self._attempt = max(self._attempt, response.attempt)
        if again:
            self._tell()  # the worker that begins anew knows nothing of what was taken
        final, early = bool(response.flags & FINAL), response.index - self._expected
        if final and early < 0:  # this run was shorter than the one before
            self._discard(response)
            response.outputs, response.parameters, response.flags = [], {}, FINAL | END
        elif early:
            self._gapless = self._gapless and early < 0
            self._discard(response)
            return False
        if final:
            return True
        if len(self._waiting) >= _MAX_WAITING:
            self._discard(response)
            response.error = WireError.of(
                InternalError(f"the worker sent more than the {WINDOW} responses it was to send at once")
            )
            return True
        self._put(frame, response, final=False)
        return False

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        self._ended = True
        self._put(frame, response, final=True)

    def failed(self, error: QInferError) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            self._changed.set()

    @property
    def gapless(self) -> bool:
        return self._gapless

    def dropped(self) -> None:
        """Nobody reads any more."""
        while self._waiting:
            self._discard(self._waiting.popleft().response)

    def _put(self, frame: ResponseFrame, response: Response, *, final: bool) -> None:
        if not self._expected and self._streams is not None:
            self._streams.begun(self)
        self._expected += 1
        self._gapless = True
        self._waiting.append(Streamed(frame.model_version, response, final))
        self._changed.set()

    def _tell(self) -> None:
        self._told = self._taken
        if self._streams is not None:
            self._streams.tell(self, self._taken)

    def _discard(self, response: Response) -> None:
        if response.claim and self._streams is not None:
            self._streams.discard(response)
            response.claim = ""


class Streams:
    """What the streams of a dispatcher share.

    Args:
        cancellations: tells workers of streams.
        detours: fetches large tensors.
        observer: told of first responses.
    """

    def __init__(self, cancellations: Cancellations, detours: Detours, observer: Observer) -> None:
        self._cancellations = cancellations
        self._detours = detours
        self._observer = observer
        self.discard = detours.discard
        """The data of a response are not needed: remove them from the store."""

    def admit(self, call: Call, target: Target, request: Request) -> None:
        """A call that takes many responses, or goes to a model that gives them, is about to be submitted.

        Raises:
            Unsupported: the call takes one response.
            InvalidRequest: it has an idempotency key.
        """
        if target.decoupled:
            if not call.takes_many:
                raise Unsupported(
                    f"model {target.model!r} is decoupled: it gives any number of responses to a request; "
                    "expected generate_stream over HTTP, or ModelStreamInfer over gRPC"
                )
            if request.idempotency:
                raise InvalidRequest(
                    f"model {target.model!r} is decoupled: its responses are not kept; expected no "
                    "idempotency key"
                )
            request.window = WINDOW
        if isinstance(call, StreamCall):
            call.begin(self)

    def begun(self, call: StreamCall) -> None:
        """A call's first response is here."""
        self._observer.begun(call, monotonic())

    def tell(self, call: StreamCall, taken: int) -> None:
        """Tell the worker how many responses were taken."""
        if call.request.window and call.sent_us:
            self._cancellations.taken(call.model, call.number, taken)

    def left(self, call: Call) -> None:
        """A call ended before its last response: its model is to stop."""
        if call.sent_us and call.target.decoupled:
            self._cancellations.add(call.model, call.number)

    async def fetch(self, response: Response) -> None:
        """Give a response the data that lie in the store.

        Raises:
            QInferError: they cannot be had.
        """
        await self._detours.redeem(response)
