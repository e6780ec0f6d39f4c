"""Runs batches of a decoupled model on one instance, and the iterators that come of it.

Called from the instance's thread. As in `execution`, a batch that fails is run again by halves; members whose
last response is there already are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter_ns

from qinfer.errors import Cancelled, ModelFailed, QInferError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import Outputs, Responses, StreamingInstance
from qinfer_workers.batch import Batch
from qinfer_workers.execution import Timing, describe
from qinfer_workers.streams.member import StreamMember
from qinfer_workers.streams.stream import RunResponder

logger = logging.getLogger(__name__)


class _Driven:
    """An iterator over a request's responses, and where they go."""

    __slots__ = ("responder", "responses")

    def __init__(self, responder: RunResponder, responses: Responses) -> None:
        self.responder = responder
        self.responses = responses


class StreamingExecutor:
    """Executes batches of one version of a decoupled model on one instance."""

    def __init__(self, config: ModelConfig, instance: StreamingInstance) -> None:
        self._model = f"model {config.name!r}"
        self._streaming = instance
        self._driven: list[_Driven] = []
        self.wake: Callable[[], None] | None = None
        """Called, from any thread, when it is worth to `step` again."""

    def execute(self, batch: Batch) -> Timing:
        """Begin to answer the members of a batch, which are `StreamMember`s."""
        timing = Timing()
        self._start([member for member in batch.members if isinstance(member, StreamMember)], batch, timing)
        return timing

    def step(self) -> bool:
        """Advance each iterator that has room for a response; whether one may be advanced again at once."""
        for driven in list(self._driven):
            if driven.responder.is_over():
                self._end(driven)
            elif driven.responder.has_room():
                self._advance(driven)
        return any(driven.responder.has_room() for driven in self._driven)

    def close(self) -> None:
        """End what still runs, then the instance."""
        for driven in list(self._driven):
            self._end(driven)
        self._streaming.close()

    def _start(self, members: Sequence[StreamMember], batch: Batch, timing: Timing) -> None:
        part = Batch(members, batch.reason, batched=batch.batched)
        for member in members:
            member.run()
        started = perf_counter_ns()
        try:
            # A batch of `StreamMember`s is a `StreamingBatch`, which no type says.
            results = self._streaming.execute(part)  # type: ignore[arg-type]
            timing.executions += 1
            if results is not None:
                self._drive(members, results)
        except BaseException as error:  # noqa: BLE001 (model code may even exit; every member is answered)
            timing.infer_ns += perf_counter_ns() - started
            self._failed(members, batch, error, timing)
            return
        timing.infer_ns += perf_counter_ns() - started

    def _drive(self, members: Sequence[StreamMember], results: Sequence[Responses | QInferError]) -> None:
        if len(results) != len(members):
            raise ModelFailed(f"{self._model} gave {len(results)} results for {len(members)} requests")
        for member, result in zip(members, results, strict=True):
            if isinstance(result, QInferError):
                member.responder.send(result, final=True)
            else:
                member.stream.wake = self.wake
                self._driven.append(_Driven(member.responder, result))

    def _failed(
        self, members: Sequence[StreamMember], batch: Batch, error: BaseException, timing: Timing
    ) -> None:
        open_ = [member for member in members if not member.stream.closed]
        for member in open_:
            if member.responder.is_cancelled():
                self._say(member.responder, Cancelled("nobody waits for the answer any more"))
        left: list[StreamMember] = [member for member in open_ if not member.responder.is_cancelled()]
        if len(left) > 1 or (left and len(members) > 1):
            middle = (len(left) + 1) // 2
            for half in (left[:middle], left[middle:]):
                if half:
                    self._start(half, batch, timing)
        elif left:
            self._say(left[0].responder, self._failure(error))

    def _advance(self, driven: _Driven) -> None:
        try:
            response = next(driven.responses)
        except StopIteration:
            self._driven.remove(driven)
            self._say(driven.responder, None)
        except BaseException as error:  # noqa: BLE001 (model code may even exit; its caller is answered)
            self._driven.remove(driven)
            self._say(driven.responder, self._failure(error))
        else:
            self._say(driven.responder, response, final=False)
            if isinstance(response, QInferError):
                self._end(driven)

    def _end(self, driven: _Driven) -> None:
        """Nobody wants what an iterator has: let it clean up."""
        self._driven.remove(driven)
        close = getattr(driven.responses, "close", None)
        if close is not None:
            try:
                close()
            except BaseException:  # model code may raise anything, and nobody is left to be told
                logger.exception("%s failed to stop", self._model)
        driven.responder.let_go()

    def _say(
        self, responder: RunResponder, outcome: Outputs | QInferError | None, *, final: bool = True
    ) -> None:
        try:
            responder.send(outcome, final=final)
        except QInferError as error:  # of the model's other threads: they have said enough
            logger.debug("%s: %s", self._model, error)

    def _failure(self, error: BaseException) -> QInferError:
        if isinstance(error, QInferError):
            return error
        logger.warning("%s failed", self._model, exc_info=error)
        return ModelFailed(f"{self._model}: {describe(error)}")
