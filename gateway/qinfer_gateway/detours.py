"""Calls that do not go the straight way, out in a frame of the tick and back in a frame of responses.

Large tensors go through the object store (`claims`). A call with an idempotency key looks first for an answer
that is kept, and is queued under its name, so that it runs once however often it is sent (`idempotency`).
Each such call has a task of its own, which ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from time import monotonic, time_ns
from typing import Any

from qinfer.answers import Kept, find_kept
from qinfer.bus import Bus, Watcher
from qinfer.claims import Claims
from qinfer.errors import (
    BusUnavailable,
    InternalError,
    MalformedMessage,
    NotFound,
    PayloadTooLarge,
    QInferError,
)
from qinfer.idempotency import check_fingerprint, fingerprint
from qinfer.message import KEPT, PROTOCOL_VERSION, RequestFrame, Response, ResponseFrame, encode
from qinfer_gateway.call import Call
from qinfer_gateway.observer import Observer

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds between two looks for an answer while the broker cannot be asked
_LINGER = 10.0  # seconds after its deadline for which the data of a call that nobody waits for are left
_FAREWELL = 5.0  # seconds that what is under way may take when the gateway stops


class Detour:
    """What a call has beside its place among those in flight.

    Attributes:
        ended: the call is over.
        changed: set when there is something new to look for, or the call is over.
        reconnected: the broker may have lost what was queued.
        held: bytes of large tensors that the call has room for.
        queued: the call's frame may be at the broker.
        fetching: an answer is there, and its data are on their way.
    """

    __slots__ = ("changed", "ended", "fetching", "held", "queued", "reconnected")

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.reconnected = False
        self.ended = False
        self.held = 0
        self.queued = False
        self.fetching = False


class Detours:
    """Takes calls around what frames cannot do.

    Args:
        bus: a started bus.
        observer: told of frames.
        max_claim_bytes: bytes of large tensors held at once.
        leave: publishes a call that is ready for it.
        answer: ends a call with a response that has its data.
        fail: ends a call with an error.
    """

    def __init__(
        self,
        bus: Bus,
        observer: Observer,
        *,
        max_claim_bytes: int,
        leave: Callable[[Call], None],
        answer: Callable[[Call, ResponseFrame, Response], None],
        fail: Callable[[Call, QInferError], None],
    ) -> None:
        self._bus = bus
        self._observer = observer
        self._leave = leave
        self._answer = answer
        self._fail = fail
        self._claims = Claims(bus, max_bytes=max_claim_bytes)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[Detour] = set()
        self._removals: set[asyncio.TimerHandle] = set()
        bus.on_reconnect(self._look_again)

    def admit(self, size: int) -> Detour:
        """A detour for a call of so many bytes, which is about to be accepted. `begin` is next.

        Raises:
            PayloadTooLarge, QueueFull: no room for its tensors.
        """
        detour = Detour()
        if size > self._bus.max_payload:
            self._claims.admit(size)
            detour.held = size
        return detour

    def begin(self, call: Call, detour: Detour) -> None:
        """Send a call that is in flight now on its way."""
        call.detour = detour
        self._start(self._once(call, detour) if call.request.idempotency else self._large(call, detour))

    def relieve(self, call: Call) -> bool:
        """A call turned out too large for a message by its names or parameters: whether a detour helps."""
        if call.detour is not None or not any(len(tensor.data) for tensor in call.request.inputs):
            return False
        try:
            self._claims.admit(call.size)
        except QInferError:
            return False
        detour = Detour()
        detour.held = call.size
        self.begin(call, detour)
        return True

    def fetch(self, call: Call, frame: ResponseFrame, response: Response) -> None:
        """A call's answer is here, its data are in the store."""
        detour = call.detour
        if detour is None:
            detour = call.detour = Detour()
        if detour.fetching:  # the first answer wins
            self._observer.stats.dropped += 1
            self.discard(response)
            return
        detour.fetching = True
        self._start(self._fetch(call, frame, response))

    async def redeem(self, response: Response) -> None:
        """Give one of many responses its data, and remove them from the store.

        Raises:
            QInferError: they cannot be had.
        """
        size = response.claim_bytes
        try:
            await self._claims.room(size)
            try:
                await self._claims.redeem(response.claim, size, response.outputs)
            finally:
                self._claims.release(size)
        except NotFound as error:
            raise _lost(error) from None
        except MalformedMessage as error:
            raise _unreadable(error) from None
        finally:
            self.discard(response)

    def discard(self, response: Response) -> None:
        """The data of an answer are not needed (any more): remove them, unless they are kept for others."""
        if not response.flags & KEPT:
            self._claims.remove(response.claim)

    def ended(self, call: Call, *, answered: bool) -> None:
        """A call is over, with an answer of a worker or without."""
        detour = call.detour
        if detour is None or detour.ended:
            return
        detour.ended = True
        detour.changed.set()
        if not call.request.claim:
            return
        if answered or not detour.queued or not call.request.idempotency:
            self._claims.remove(call.request.claim)
        else:  # it is run although nobody waits
            self._remove_later(call.request.claim, call.deadline - monotonic() + _LINGER)

    async def close(self) -> None:
        """Let what is under way finish for a moment; calls are over by now. Idempotent."""
        for handle in self._removals:
            handle.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_FAREWELL)
            for task in late:
                task.cancel()
        await self._claims.close(_FAREWELL)

    def _start(self, way: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(way)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a call's detour failed", exc_info=task.exception())

    def _remove_later(self, name: str, seconds: float) -> None:
        def remove() -> None:
            self._removals.discard(handle)
            self._claims.remove(name)

        handle = self._loop.call_later(seconds, remove)
        self._removals.add(handle)

    # Large tensors

    async def _large(self, call: Call, detour: Detour) -> None:
        try:
            await self._deposit(call, detour)
        except QInferError as error:
            self._fail(call, error)
            return
        if not detour.ended:
            detour.queued = True
            self._leave(call)

    async def _deposit(self, call: Call, detour: Detour) -> None:
        request = call.request
        try:
            request.claim, request.claim_bytes = await self._claims.deposit("in", request.inputs)
        finally:
            self._release(detour)
        if detour.ended:
            self._claims.remove(request.claim)

    def _release(self, detour: Detour) -> None:
        held, detour.held = detour.held, 0
        self._claims.release(held)

    async def _fetch(self, call: Call, frame: ResponseFrame, response: Response) -> None:
        size = response.claim_bytes
        try:
            await self._claims.room(size)
            try:
                await self._claims.redeem(response.claim, size, response.outputs)
                self._answer(call, frame, response)
            finally:
                self._claims.release(size)
        except NotFound as error:
            self._fail(call, _lost(error))
        except MalformedMessage as error:
            self._fail(call, _unreadable(error))
        except QInferError as error:
            self._fail(call, error)
        finally:
            self.discard(response)

    # Idempotency keys

    def _look_again(self) -> None:
        """After a reconnect: answers may have been sent meanwhile, to nobody."""
        for detour in self._asking:
            detour.reconnected = True
            detour.changed.set()

    async def _once(self, call: Call, detour: Detour) -> None:
        self._asking.add(detour)
        try:
            await self._ask(call, detour)
        except QInferError as error:
            self._fail(call, error)
        finally:
            self._asking.discard(detour)
            self._release(detour)

    async def _ask(self, call: Call, detour: Detour) -> None:
        """Wait for the answer to a call with a key: one that is kept, or that of another try, or its own."""
        request = call.request
        request.fingerprint = await fingerprint(request)
        watcher: Watcher | None = None
        tried = ""  # the id under which it was queued last
        own = False  # by this very call: an error kept then is its own
        try:
            while not detour.ended:
                detour.changed.clear()
                if detour.reconnected:
                    detour.reconnected, tried = False, ""
                try:
                    kept = await find_kept(self._bus, request.idempotency)
                    message_id = _message_id(request.idempotency, kept)
                    if kept is not None and (kept.final or (own and message_id != tried)):
                        check_fingerprint(request, kept.response)
                        self._give(call, kept)
                        return
                    if message_id != tried:
                        own = await self._queue(call, detour, message_id)
                        tried = message_id
                        if not own and watcher is None:
                            watcher = await self._watch(request.idempotency, detour)
                            continue
                except BusUnavailable:
                    if not detour.queued:
                        raise
                    # Under its id it may be queued again, whatever the broker did with it.
                    tried = ""
                    await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.0))
                    continue
                await detour.changed.wait()
        finally:
            if watcher is not None:
                await watcher.close()

    async def _watch(self, name: str, detour: Detour) -> Watcher:
        bucket = self._bus.names.answers_bucket
        return await self._bus.watch(bucket, lambda _key, _value: detour.changed.set(), name)

    async def _queue(self, call: Call, detour: Detour, message_id: str) -> bool:
        """Queue a call's frame; False when another try is queued under that id."""
        request = call.request
        if detour.held:
            await self._deposit(call, detour)
        while not detour.ended:
            detour.queued = True
            try:
                return await self._enqueue(call, message_id)
            except PayloadTooLarge:
                if request.claim:
                    raise
                self._claims.admit(call.size)
                detour.held = call.size
                await self._deposit(call, detour)
        return False

    async def _enqueue(self, call: Call, message_id: str) -> bool:
        request, target = call.request, call.target
        call.sent_us = now_us = time_ns() // 1000
        request.deadline_us = now_us + max(1, int((call.deadline - monotonic()) * 1e6))
        self._observer.published(call)
        frame = RequestFrame(
            PROTOCOL_VERSION,
            self._bus.reply_to,
            target.model,
            target.wanted_version,
            now_us,
            call.flight.count,
            [request],
        )
        own = await self._bus.enqueue(
            target.model, target.wanted_version, encode(frame), message_id=message_id
        )
        if own:
            self._observer.stats.record_frame(target.model, requests=1, rows=call.rows)
        return own

    def _give(self, call: Call, kept: Kept) -> None:
        kept.response.id = call.number
        if kept.response.claim:
            self.fetch(call, kept.frame, kept.response)
        else:
            self._answer(call, kept.frame, kept.response)


def _lost(error: NotFound) -> BusUnavailable:
    return BusUnavailable(f"the answer is lost: {error}", retry_after=1.0)


def _unreadable(error: MalformedMessage) -> InternalError:
    return InternalError(f"the worker's answer cannot be read: {error}")


def _message_id(name: str, kept: Kept | None) -> str:
    """The id of the next try: it is another one once an earlier try was told to try again."""
    return f"{name}.{0 if kept is None else kept.revision}"
