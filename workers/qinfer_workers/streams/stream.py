"""One request's responses, on their way from the model's threads to the event loop.

A response is encoded in the thread that made it: what the model does with its arrays afterwards is its own
business, and the event loop has little to do. Few responses wait here, whatever the receiver's window.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from threading import Condition, Lock
from time import perf_counter_ns
from typing import TYPE_CHECKING

from qinfer.errors import Cancelled, ModelFailed, QInferError
from qinfer.message import END, FINAL, Response, Tensor, WireError, encode
from qinfer_workers.backends.base import Outputs, OutputsWithParameters

if TYPE_CHECKING:
    from qinfer_workers.streams.member import StreamMember

logger = logging.getLogger(__name__)

MAX_AHEAD = 16
"""Responses of one stream that may wait to be published."""

MAX_UNHEEDED = 64
"""Responses that a model may send to nobody before it is stopped."""

_LOOK = 1.0  # seconds between two looks of a model that waits for room, should nobody wake it


class Entry:
    """A response that waits to be published.

    Attributes:
        response: the response; it has its tensors only where it is too large for a message.
        raw: the same, encoded; empty where it is too large.
        infer_ns: time since the one before, or since the batch began.
        output_ns: time spent on encoding it.
    """

    __slots__ = ("infer_ns", "output_ns", "raw", "response")

    def __init__(self, response: Response, raw: bytes, infer_ns: int, output_ns: int) -> None:
        self.response = response
        self.raw = raw
        self.infer_ns = infer_ns
        self.output_ns = output_ns


class Stream:
    """The responses to one request.

    A request whose batch failed may be run again by the same worker: then a new run begins, what earlier ones
    have given is not given twice, and their responders are dead.

    Args:
        member: the request.
        where: the model as messages name it.
        datatypes: of its outputs, by name.
        largest: bytes of an encoded response that go into a message.
        begun_ns: when its batch was handed to its instance, of `perf_counter_ns`.
        changed: called, from any thread, when there is something to publish or the model has let go.

    Attributes:
        queue: responses to be published, in their order.
        over: nobody takes any more.
        released: the model is done with it.
    """

    def __init__(
        self,
        member: StreamMember,
        *,
        where: str,
        datatypes: Mapping[str, str],
        largest: int,
        begun_ns: int,
        changed: Callable[[Stream], None],
    ) -> None:
        self.member = member
        self.queue: deque[Entry] = deque()
        self.over = False
        self.released = False
        self.wake: Callable[[], None] | None = None
        """Called, from any thread, when there may be room, or nobody waits any more."""
        self._where = where
        self._datatypes = datatypes
        self._largest = largest
        self._changed = changed
        self._window = max(0, member.request.window)
        self._condition = Condition(Lock())
        self._run = 0
        self._index = 0  # of the next response of this run
        self._given = 0  # responses of all runs that were put into the queue
        self._taken = 0
        self._closed = False  # the model has sent its last response
        self._failed = False  # which was an error
        self._unheeded = 0
        self._latest_ns = begun_ns

    # The event loop's side

    def take(self, count: int) -> None:
        """The receiver has taken so many responses in all."""
        with self._condition:
            if count <= self._taken:
                return
            self._taken = count
        self._room()

    def flushed(self) -> None:
        """Responses left the queue."""
        self._room()

    def stop(self) -> None:
        """Nobody takes any more: a model that waits for room goes on, and what it sends is dropped."""
        with self._condition:
            self.over = True
            self.queue.clear()
        self._room()

    @property
    def published(self) -> int:
        """Responses that have left the queue."""
        return self._given - len(self.queue)

    @property
    def waits(self) -> bool:
        """Whether the receiver has all that it asked for, and the model has more to give."""
        return bool(self._window) and not self._closed and self._index - self._taken >= self._window

    def _room(self) -> None:
        with self._condition:
            self._condition.notify_all()
        wake = self.wake
        if wake is not None:
            wake()

    # The model's side

    @property
    def closed(self) -> bool:
        """Whether the model has sent its last response."""
        return self._closed

    def begin(self) -> RunResponder:
        """Begin a run; earlier ones are over."""
        with self._condition:
            self._run += 1
            self._index = 0
            return RunResponder(self, self._run)

    def has_room(self) -> bool:
        """Whether a response could be given now; what nobody wants needs no room."""
        if self.over or self._index < self._given:
            return True
        if len(self.queue) >= MAX_AHEAD:
            return False
        return not self._window or self._index - self._taken < self._window

    def send(self, run: int, outputs: Outputs | QInferError | None, final: bool) -> None:
        """See `Responder.send`; `run` is the one that the responder was made for."""
        with self._condition:
            if self._is_dropped(run, final):
                return
        now = perf_counter_ns()
        response = self._response(outputs, final)
        urgent = response.error is not None or bool(response.flags & END)
        with self._condition:
            while not (urgent or run != self._run or self.has_room()):
                self._condition.wait(_LOOK)
            if self._is_dropped(run, final):
                return
            self._give(response, now)
        self._changed(self)

    def let_go(self, run: int) -> None:
        """See `Responder.let_go`."""
        if run != self._run or self._closed:
            return
        if self.over or self.member.is_cancelled():
            self.released = True
            self._changed(self)
        else:
            self.send(
                run,
                ModelFailed(
                    f"{self._where} let go of a request after {self._index} responses; expected a last one, "
                    "marked as such"
                ),
                True,
            )

    def _is_dropped(self, run: int, final: bool) -> bool:
        """Whether what the model sends is for nobody.

        Raises:
            ModelFailed: it has sent its last response before.
            Cancelled: it has sent too much of that.
        """
        if run != self._run:
            raise Cancelled(f"{self._where}: this request is run again")
        if self._closed and not self._failed:
            logger.warning("%s sent a response after its last one", self._where)
            raise ModelFailed(f"{self._where} sent a response after its last one")
        if not (self.over or self._closed or self.member.is_cancelled()):
            return False
        self._unheeded += 1
        if final:
            self.released = True
            self._changed(self)
        elif self._unheeded > MAX_UNHEEDED:
            raise Cancelled(
                f"{self._where}: nobody waits for these responses any more; expected the model to ask "
                "is_cancelled() and to stop"
            )
        return True

    def _response(self, outputs: Outputs | QInferError | None, final: bool) -> Response:
        member = self.member
        number, attempt = member.request.id, member.request.attempt + member.frame.delivery.attempt
        if outputs is None:
            if final:
                return Response(number, attempt, None, flags=FINAL | END)
            outputs = ModelFailed(f"{self._where} sent no response, nor that it was the last")
        if not isinstance(outputs, QInferError):
            wanted = member.request.outputs
            try:
                tensors = [
                    Tensor.from_numpy(name, array, self._datatypes.get(name))
                    for name, array in outputs.items()
                    if not wanted or name in wanted
                ]
            except QInferError as error:
                outputs = ModelFailed(f"{self._where}: {error}")
            else:
                told = dict(outputs.parameters) if isinstance(outputs, OutputsWithParameters) else {}
                return Response(number, attempt, None, tensors, told, FINAL if final else 0)
        return Response(number, attempt, WireError.of(outputs))

    def _give(self, response: Response, now_ns: int) -> None:
        """Put a response into the queue, unless an earlier run did."""
        response.index = self._index
        response.queue_us = self.member.queue_us
        try:
            raw = encode(response)
        except (TypeError, ValueError, OverflowError, RecursionError) as problem:
            error = ModelFailed(f"{self._where}: its response has no wire form: {problem}")
            response = Response(response.id, response.attempt, WireError.of(error), index=self._index)
            raw = encode(response)
        self._index += 1
        last = bool(response.flags & FINAL)
        infer_ns, self._latest_ns = now_ns - self._latest_ns, perf_counter_ns()
        if last or self._index > self._given:  # not what an earlier run has given
            output_ns = self._latest_ns - now_ns
            if len(raw) > self._largest:
                raw = b""
                for tensor in response.outputs:
                    tensor.data = bytes(tensor.data)  # which the model may change later
            else:
                response.outputs = []
            self.queue.append(Entry(response, raw, max(0, infer_ns), output_ns))
        self._given = max(self._given, self._index)
        if last:
            self._closed = self.released = True
            self._failed = response.error is not None


class RunResponder:
    """A run's end of a stream (implements `backends.base.Responder`)."""

    __slots__ = ("_run", "_stream")

    def __init__(self, stream: Stream, run: int) -> None:
        self._stream = stream
        self._run = run

    def send(self, outputs: Outputs | QInferError | None, *, final: bool = False) -> None:
        self._stream.send(self._run, outputs, final)

    def has_room(self) -> bool:
        return self._stream.has_room()

    def is_over(self) -> bool:
        """Whether the stream has ended without the model's doing."""
        return self._stream.over

    def is_cancelled(self) -> bool:
        return self._stream.over or self._stream.member.is_cancelled()

    def let_go(self) -> None:
        self._stream.let_go(self._run)
