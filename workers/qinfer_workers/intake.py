"""Frames whose requests cannot be run as they come.

The data of large tensors lie in the broker's store and are read first. A request with an idempotency key that
is delivered again may have been answered by a worker that died before its ack: its answer is told again, and
it is not run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from qinfer.answers import find_kept
from qinfer.bus import Bus, Delivery
from qinfer.claims import Claims
from qinfer.errors import (
    InternalError,
    InvalidRequest,
    MalformedMessage,
    NotFound,
    PayloadTooLarge,
    QInferError,
    Unavailable,
)
from qinfer.lifecycle import cancelled
from qinfer.message import Request, RequestFrame, encode
from qinfer.naming import check_reply, check_stored
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.replies import Replies

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds before a frame is tried again that the broker could not complete

Settled = Mapping[int, QInferError | None]
"""Requests of a frame that are not to be run, by their place in it: why not, or None for those answered."""


class Intake:
    """Completes the frames of one model.

    Args:
        bus: a started bus.
        replies: tells kept answers again.
        claims: reads large tensors; what it holds for a frame is released by the frame's holder.
        admit: takes a frame that is complete, and which of its requests are settled.
        give_back: returns a frame to the queue after some seconds, if it is still held.
        held: whether a frame is still held.
    """

    def __init__(
        self,
        bus: Bus,
        replies: Replies,
        claims: Claims,
        *,
        admit: Callable[[RequestFrame, HeldFrame, Settled], None],
        give_back: Callable[[HeldFrame, float, Iterable[Member]], None],
        held: Callable[[HeldFrame], bool],
    ) -> None:
        self._bus = bus
        self._replies = replies
        self._claims = claims
        self._admit = admit
        self._give_back = give_back
        self._is_held = held
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, frame: RequestFrame, held: HeldFrame) -> None:
        """Complete a frame."""
        task = asyncio.create_task(self._complete(frame, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop; frames that are not complete have to be given back by their holder. Idempotent."""
        await cancelled(*self._tasks)

    async def _complete(self, frame: RequestFrame, held: HeldFrame) -> None:
        settled: dict[int, QInferError | None] = {}
        try:
            await self._tell_again(frame, held, settled)
            await self._fetch(frame, held, settled)
        except QInferError as error:
            logger.warning("a frame has to wait: %s", error)
            self._give_back(held, _PAUSE, ())
        except Exception:
            logger.exception("a frame cannot be completed")
            self._give_back(held, _PAUSE, ())
        else:
            if self._is_held(held):
                self._admit(frame, held, settled)
            else:  # returned meanwhile, with the version that was to run it
                self._give_back(held, 0.0, ())

    async def _tell_again(
        self, frame: RequestFrame, held: HeldFrame, settled: dict[int, QInferError | None]
    ) -> None:
        if held.delivery.attempt == 1:
            return
        for place, request in enumerate(frame.requests):
            if not request.idempotency:
                continue
            try:
                kept = await find_kept(self._bus, request.idempotency)
            except InternalError as error:
                logger.warning("request %r is run again: %s", request.request_id, error)
                continue
            if kept is not None and kept.final:
                kept.response.id = request.id
                kept.response.attempt = request.attempt + held.delivery.attempt
                held.unsent = held.unsent or not self._replies.tell(frame.reply_to, encode(kept.frame))
                settled[place] = None

    async def _fetch(
        self, frame: RequestFrame, held: HeldFrame, settled: dict[int, QInferError | None]
    ) -> None:
        """Read the data of a frame's large tensors. There is room for all of them, or for none."""
        claimed = {
            place: request
            for place, request in enumerate(frame.requests)
            if request.claim and place not in settled
        }
        size = sum([request.claim_bytes for request in claimed.values()])
        if not claimed:
            return
        try:
            await self._claims.room(size)
        except PayloadTooLarge as error:
            settled.update(dict.fromkeys(claimed, error))
            return
        if not self._is_held(held):
            self._claims.release(size)
            return
        held.claimed = size
        failures = await asyncio.gather(*(self._redeem(request) for request in claimed.values()))
        settled.update({place: error for place, error in zip(claimed, failures, strict=True) if error})

    async def _redeem(self, request: Request) -> QInferError | None:
        try:
            await self._claims.redeem(request.claim, request.claim_bytes, request.inputs)
        except NotFound as error:
            return Unavailable(f"the request's tensors: {error}", retry_after=1.0)
        except PayloadTooLarge as error:
            return MalformedMessage(f"the request's tensors: {error}")
        except MalformedMessage as error:
            return error
        return None


def check_names(frame: RequestFrame) -> None:
    """See that a frame can be answered, and what it is about be found.

    Raises:
        InvalidRequest: a name in it could not be part of a subject, or a size is negative.
    """
    check_reply(frame.reply_to)
    for request in frame.requests:
        if request.claim:
            check_stored(request.claim)
        if request.claim_bytes < 0:  # would make room that is not there
            raise InvalidRequest(f"claim_bytes is {request.claim_bytes}; expected 0 or more")
        if request.idempotency:
            check_stored(request.idempotency)


def is_incomplete(frame: RequestFrame, delivery: Delivery) -> bool:
    """Whether a frame has to be completed before its requests can be run."""
    again = delivery.attempt > 1
    return any(request.claim or (again and request.idempotency) for request in frame.requests)
